"""Signed notes, checkpoints and keys, against the specifications' examples and Wycheproof, and by strictness."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import ConfigError, KeyUnusable, NoteMalformed, SignatureInvalid
from otel_audit.signing.keys import SigningKey, VerifierKey, create_identity, read_identity
from otel_audit.signing.note import Checkpoint, Note, Signature

# The example of C2SP signed-note v1, "Verifier keys".
EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "ed25519.json").read_text())["ed25519"]

KEY = SigningKey(bytes(range(32)))
NAME = "otel-audit/shop/0198c0de-0000-7000-8000-000000000001"
NOTE = Note(str(Checkpoint(NAME, 7, bytes(32)))).signed(KEY, NAME)
LINE = str(NOTE.signatures[0])


def test_the_example_of_the_specification_is_verified() -> None:
    key = VerifierKey.parse(EXAMPLE_KEY)

    assert str(key) == EXAMPLE_KEY
    assert Note.parse(EXAMPLE).verified([key]) == (key,)


def test_each_change_of_one_byte_of_the_example_is_refused() -> None:
    key = VerifierKey.parse(EXAMPLE_KEY)

    for place in range(len(EXAMPLE)):
        for byte in {EXAMPLE[place] ^ 1, EXAMPLE[place] ^ 0x20, 0x0A, 0x20, 0x41} - {EXAMPLE[place]}:
            changed = EXAMPLE[:place] + bytes([byte]) + EXAMPLE[place + 1 :]
            with pytest.raises((NoteMalformed, SignatureInvalid)):
                Note.parse(changed).verified([key])


@pytest.mark.parametrize("number", VECTORS)
def test_a_signature_is_judged_as_wycheproof_judges_it(number: str) -> None:
    case = VECTORS[number]
    key = VerifierKey("wycheproof", bytes.fromhex(case["public"]))

    assert key.verifies(bytes.fromhex(case["message"]), bytes.fromhex(case["signature"])) is case["valid"]


def test_what_a_key_signs_its_public_half_verifies() -> None:
    key = KEY.verifier(NAME)

    assert key.verifies(b"a message", KEY.sign(b"a message"))
    assert not key.verifies(b"another", KEY.sign(b"a message"))
    assert VerifierKey.parse(str(key)) == key


@given(
    text=st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\n"), max_size=200).map(
        lambda text: text + "\n"
    ),
    seeds=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4, unique=True),
)
def test_a_note_is_read_as_it_was_written(text: str, seeds: list[bytes]) -> None:
    note = Note(text)
    for number, seed in enumerate(seeds):
        note = note.signed(SigningKey(seed), f"key/{number}")

    read = Note.parse(bytes(note))

    assert read == note
    assert bytes(read) == bytes(note)
    keys = [SigningKey(seed).verifier(f"key/{number}") for number, seed in enumerate(seeds)]
    assert read.verified(keys) == tuple(keys)


@given(st.binary(max_size=120) | st.text(max_size=120).map(lambda text: text.encode()) | st.just(bytes(NOTE)))
def test_whatever_is_read_as_a_note_is_written_as_the_same_bytes(raw: bytes) -> None:
    try:
        note = Note.parse(raw)
    except NoteMalformed:
        return

    assert bytes(note) == raw


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "expected a text, an empty line"),
        (b"text\n", "expected a text, an empty line"),
        (b"text\n\n", "expected a text, an empty line"),
        (b"text\n\n" + LINE.encode(), "newline at its end"),
        (b"text\r\n\n" + LINE.encode() + b"\n", "got byte 0x0d at 4"),
        (b"te\x00xt\n\n" + LINE.encode() + b"\n", "got byte 0x00 at 2"),
        (b"te\xffxt\n\n" + LINE.encode() + b"\n", "got byte 0xff at 2"),
        (b"text\n\n- name AAAAAAA=\n", "expected '— <name> <base64>'"),
        ("text\n\n—  AAAAAAA=\n".encode(), "at least one character"),
        ("text\n\n— a+b AAAAAAA=\n".encode(), "without spaces, plus"),
        ("text\n\n— a\u00a0b AAAAAAA=\n".encode(), "without spaces, plus"),
        ("text\n\n— name AAAAAA\n".encode(), "canonical base64"),
        ("text\n\n— name AAAAAAB=\n".encode(), "canonical base64"),
        ("text\n\n— name AAAA AAA=\n".encode(), "canonical base64"),
        ("text\n\n— name AAAAA-A=\n".encode(), "canonical base64"),
        ("text\n\n— name AAAAAA==\n".encode(), "more than 4 bytes"),
        ("text\n\n— name AAAAAAA= \n".encode(), "canonical base64"),
        (b"text\n\n" + 101 * (LINE.encode() + b"\n"), "at most 100 signatures"),
        (b"a" * (1 << 20) + b"\n\n" + LINE.encode() + b"\n", "at most 1048576 bytes"),
    ],
)
def test_what_is_no_note_is_refused_with_its_reason(raw: bytes, said: str) -> None:
    with pytest.raises(NoteMalformed, match=said):
        Note.parse(raw)


def test_a_note_of_sixteen_signatures_is_read() -> None:
    note = NOTE
    for number in range(15):
        note = note.signed(SigningKey(bytes([number]) * 32), f"witness/{number}")

    assert len(Note.parse(bytes(note)).signatures) == 16


def test_signatures_of_unknown_keys_are_passed_over() -> None:
    other = SigningKey(bytes(32))
    note = Note(NOTE.text).signed(other, NAME).signed(KEY, "another/name").signed(KEY, NAME)

    assert note.verified([KEY.verifier(NAME)]) == (KEY.verifier(NAME),)


def test_a_false_signature_of_a_known_key_refuses_the_whole_note() -> None:
    other = SigningKey(bytes(32))
    forged = Signature(NAME, KEY.verifier(NAME).key_id, bytes(64))
    note = Note(NOTE.text, (*NOTE.signatures, forged)).signed(other, "other")

    with pytest.raises(SignatureInvalid, match="this key did not make"):
        note.verified([KEY.verifier(NAME), other.verifier("other")])


def test_a_note_that_no_known_key_signed_says_who_did() -> None:
    key = SigningKey(bytes(32)).verifier(NAME)

    with pytest.raises(SignatureInvalid, match=KEY.verifier(NAME).key_id.hex()) as caught:
        NOTE.verified([key])

    assert key.key_id.hex() in str(caught.value)


def test_the_text_of_another_note_is_not_verified() -> None:
    with pytest.raises(SignatureInvalid):
        Note(str(Checkpoint(NAME, 8, bytes(32))), NOTE.signatures).verified([KEY.verifier(NAME)])


@pytest.mark.parametrize("size", [0, 1, 7, 10**18, 9_223_372_036_854_775_807])
def test_a_checkpoint_is_read_as_it_was_written(size: int) -> None:
    checkpoint = Checkpoint(NAME, size, bytes(range(32)))

    assert Checkpoint.parse(str(checkpoint)) == checkpoint


def test_the_checkpoint_of_the_specification_is_read() -> None:
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"

    checkpoint = Checkpoint.parse(text)

    assert (checkpoint.origin, checkpoint.size, str(checkpoint)) == ("example.com/behind-the-sofa", 20852163, text)


ROOT = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{NAME}\n7\n{ROOT}",
        f"{NAME}\n7\n{ROOT}\nan extension\n",
        f"\n7\n{ROOT}\n",
        f"{NAME}\n07\n{ROOT}\n",
        f"{NAME}\n+7\n{ROOT}\n",
        f"{NAME}\n-7\n{ROOT}\n",
        f"{NAME}\n 7\n{ROOT}\n",
        f"{NAME}\n\u0667\n{ROOT}\n",
        f"{NAME}\n\n{ROOT}\n",
        f"{NAME}\n10000000000000000000\n{ROOT}\n",
        f"{NAME}\n7\n{ROOT[:-1]}\n",
        f"{NAME}\n7\n{base64.b64encode(bytes(31)).decode()}\n",
        f"{NAME}\n7\n{base64.b64encode(bytes(33)).decode()}\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteMalformed):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected <name>"),
        ("name", "expected <name>"),
        (EXAMPLE_KEY.upper(), "expected <name>"),
        (EXAMPLE_KEY.replace("530d903a", "530d903b"), "expected the id 530d903a"),
        (EXAMPLE_KEY.replace("foo", "bar"), "expected the id"),
        (EXAMPLE_KEY + "=", "canonical base64"),
        (EXAMPLE_KEY.replace("+Ae", "+Be"), "of type 1"),
        (EXAMPLE_KEY[:-4], "expected 32 bytes"),
        ("+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", "at least one character"),
    ],
)
def test_what_is_no_verifier_key_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(NoteMalformed, match=said):
        VerifierKey.parse(text)


def test_an_identity_is_kept_in_a_file_that_its_owner_alone_may_read(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    key = create_identity(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_identity(path).seed == key.seed
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")  # PKCS#8, without a passphrase


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    key = create_identity(path)

    with pytest.raises(ConfigError, match="never overwritten"):
        create_identity(path)

    assert read_identity(path).seed == key.seed


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    create_identity(path)
    path.chmod(0o640)

    with pytest.raises(KeyUnusable, match="got mode 0640; run chmod 600"):
        read_identity(path)


def pem(key: Ed25519PrivateKey | rsa.RSAPrivateKey, encryption: KeySerializationEncryption) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "rsa", "public", "encrypted"])
def test_what_is_no_identity_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    match kind:
        case "empty" | "text":
            path.write_text("" if kind == "empty" else "not a key")
        case "rsa":
            path.write_bytes(pem(rsa.generate_private_key(65537, 2048), NoEncryption()))
        case "public":
            public = Ed25519PrivateKey.generate().public_key()
            path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        case "encrypted":
            path.write_bytes(pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"a passphrase")))
    if path.exists():
        path.chmod(0o600)

    with pytest.raises(KeyUnusable, match=r"identity\.pem: expected"):
        read_identity(path)


def test_a_key_shows_nothing_of_itself() -> None:
    assert KEY.seed.hex() not in repr(KEY) + str(KEY)
