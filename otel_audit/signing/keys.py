"""Ed25519 keys: one that signs notes, one that verifies them, and the file of an identity.

Source: RFC 8032 for the signatures; C2SP signed-note v1, "Verifier keys" and "Signature types", for names and ids.
`cryptography` takes 20 ms to import, so it is imported when a key is first used: in the background, never by `log()`;
or when a server starts.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_audit.errors import ConfigError, KeyUnusable, NoteMalformed
from otel_audit.threads import FORKS_WAIT

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "KEY_ID_BYTES",
    "SigningKey",
    "VerifierKey",
    "checked_name",
    "create_identity",
    "import_signatures",
    "read_identity",
    "read_public_identity",
    "strict_base64",
]

KEY_ID_BYTES: Final = 4
_SEED_BYTES: Final = 32
_PUBLIC_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_ED25519: Final = b"\x01"  # the signature type of signed-note
_KEY_ID: Final = re.compile(r"[0-9a-f]{8}\Z")


def checked_name(name: str) -> str:
    """Return the name of a key if it can stand in a note.

    Source: signed-note, "Format": not empty, neither Unicode spaces nor a plus; no control characters, as nowhere in
    a note.

    Raises:
        NoteMalformed: it cannot.
    """
    if not name or "+" in name or any(each.isspace() or unicodedata.category(each) == "Cc" for each in name):
        raise NoteMalformed(
            f"name of a key: expected at least one character, without spaces, plus and control characters, got {name!r}"
        )
    return name


def strict_base64(text: str, what: str) -> bytes:
    """Return the bytes of a base64 text that is written in the one canonical way. Source: RFC 4648, section 4.

    A loose decoder ignores foreign characters and left-over bits: two texts for one signature.

    Raises:
        NoteMalformed: it is not, and `what` says in the message what the text stands for.
    """
    try:
        value = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        value = None
    if value is None or base64.b64encode(value).decode() != text:
        raise NoteMalformed(f"{what}: expected canonical base64 (RFC 4648, section 4), got {text[:80]!r}")
    return value


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public half of a key, under the name that its signatures carry; written as a `vkey`."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        """Check the name and the length.

        Raises:
            NoteMalformed: one of them is not allowed.
        """
        checked_name(self.name)
        if len(self.public) != _PUBLIC_BYTES:
            raise NoteMalformed(f"public key: expected {_PUBLIC_BYTES} bytes (Ed25519), got {len(self.public)}")

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read a vkey, `<name>+<key id in hex>+<base64 of 0x01 and the public key>`.

        Raises:
            NoteMalformed: it is none, is not for Ed25519, or its id is not that of its name and key.
        """
        name, _, rest = text.partition("+")
        key_id, plus, encoded = rest.partition("+")
        if not plus or not _KEY_ID.match(key_id):
            raise NoteMalformed(f"verifier key: expected <name>+<8 hex digits>+<base64>, got {text[:200]!r}")
        material = strict_base64(encoded, "verifier key")
        if material[:1] != _ED25519:
            raise NoteMalformed(
                f"verifier key: expected one of type 1 (Ed25519), got type {material[:1].hex() or 'none'}"
            )
        key = cls(name, material[1:])
        if key.key_id.hex() != key_id:
            raise NoteMalformed(f"verifier key: expected the id {key.key_id.hex()} of its name and key, got {key_id}")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    @property
    def key_id(self) -> bytes:
        """The four bytes that a signature of this key begins with."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:KEY_ID_BYTES]

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Return True if the signature is of this key and of this message."""
        import_signatures()
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if len(signature) != _SIGNATURE_BYTES:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


class SigningKey:
    """The private half of a key. It is shown in no `repr`, and a copy over a fork is never used: see the ledger."""

    __slots__ = ("_private",)

    def __init__(self, seed: bytes) -> None:
        """Take the 32 random bytes that the key is made from.

        Raises:
            KeyUnusable: they are not 32.
        """
        import_signatures()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if len(seed) != _SEED_BYTES:
            raise KeyUnusable(f"signing key: expected a seed of {_SEED_BYTES} bytes, got {len(seed)}")
        self._private: Ed25519PrivateKey = Ed25519PrivateKey.from_private_bytes(seed)

    @classmethod
    def generate(cls) -> SigningKey:
        """Return a new key, of the operating system's random numbers."""
        return cls(os.urandom(_SEED_BYTES))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes."""
        return self._private.private_bytes_raw()

    def verifier(self, name: str) -> VerifierKey:
        """Return the public half, under the name that signatures will carry."""
        return VerifierKey(name, self._private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the signature."""
        return self._private.sign(message)


def import_signatures() -> None:
    """Import what signing and verifying need, while no other thread forks this process.

    A child that was forked within the import would wait for its lock for ever.
    """
    with FORKS_WAIT:
        import_module("cryptography.exceptions")
        import_module("cryptography.hazmat.primitives.asymmetric.ed25519")


def create_identity(path: Path) -> SigningKey:
    """Write a new identity key to a file of its own, readable by its owner alone, and return it.

    The file is PEM with PKCS#8 (RFC 8410), so that `openssl pkey -in FILE` reads it.

    Raises:
        ConfigError: the file exists, or cannot be written. Nothing was overwritten.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = SigningKey.generate()
    text = key._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise ConfigError(
            f"{path}: expected no file there yet, got one; name another, keys are never overwritten"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: expected a place for a new key, got {error.strerror}; name another file") from None
    return key


def read_identity(path: Path) -> SigningKey:
    """Read an identity key from its file.

    Raises:
        KeyUnusable: there is no such file, others may read it, or it holds no Ed25519 private key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(64 * 1024)
    except OSError as error:
        raise KeyUnusable(
            f"{path}: expected an identity key, got {error.strerror}; make one with `otel-audit keygen`"
        ) from None
    if mode & 0o077:
        raise KeyUnusable(f"{path}: expected a file that only its owner may read, got mode {mode:04o}; run chmod 600")
    try:
        private = load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyUnusable(
            f"{path}: expected an Ed25519 private key in PEM without a passphrase, got something else; "
            "make one with `otel-audit keygen`"
        )
    return SigningKey(private.private_bytes_raw())


def read_public_identity(path: Path) -> bytes:
    """Read the public half of an identity: 32 bytes, from a file of its private or of its public key.

    A public key is PEM with SubjectPublicKeyInfo (RFC 8410), as `openssl pkey -pubout` and key management services
    write it. Anybody may read that file.

    Raises:
        KeyUnusable: there is no such file, it holds no Ed25519 key, or others may read a private one.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        with open(path, "rb") as file:
            text = file.read(64 * 1024)
    except OSError as error:
        raise KeyUnusable(
            f"{path}: expected an identity key, got {error.strerror}; make one with `otel-audit keygen`"
        ) from None
    if b"PRIVATE KEY" in text:
        return read_identity(path).verifier("identity").public
    try:
        public = load_pem_public_key(text)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise KeyUnusable(
            f"{path}: expected an Ed25519 key in PEM, private or public, got something else; make one with "
            "`otel-audit keygen`"
        )
    return public.public_bytes_raw()
