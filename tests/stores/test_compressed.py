"""Files that were compressed by gzip or zstd: the same lines as before, bounded memory, and damage that is said."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from otel_audit.stores import compression as compressed
from otel_audit.stores import lines as module
from otel_audit.stores.compression import Compression, compression_of
from otel_audit.stores.lines import is_marked, numbered_lines
from tests.examples import examples

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SKIPPED_FRAME = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"  # pzstd writes one in front
MESSAGE = json.dumps({"resourceLogs": [], "id": "0af7651916cd43dd8448eb211c80319c"}).encode() + b"\n"

Pack = Callable[[bytes], bytes]
PACKED: dict[str, Pack] = {
    "gzip": gzip.compress,
    "gzip, two members and padding": lambda content: (
        gzip.compress(content[: len(content) // 2]) + gzip.compress(content[len(content) // 2 :]) + bytes(600)
    ),
    "zstd": zstd.compress,
    "zstd with its checksum": lambda content: zstd.compress(
        content, options={zstd.CompressionParameter.checksum_flag: 1}
    ),
    "zstd, a frame a line": lambda content: SKIPPED_FRAME + b"".join(map(zstd.compress, content.splitlines(True))),
}
every_kind = pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED.keys())


@every_kind
@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=6).filter(lambda line: b"\n" not in line), min_size=1, max_size=6), st.booleans())
def test_the_lines_and_marks_are_those_of_the_file_before(
    pack: Pack, tmp_path: Path, lines: list[bytes], ended: bool
) -> None:
    plain, packed = tmp_path / "audit.jsonl", tmp_path / "other name"
    content = b"{" + b"\n".join(lines) + (b"\n" if ended else b"rest")
    plain.write_bytes(content)
    packed.write_bytes(pack(content))

    read = list(numbered_lines(plain))

    assert list(numbered_lines(packed)) == read
    for index, line in enumerate(read):
        assert is_marked(packed, line.end)
        assert list(numbered_lines(packed, line.end)) == read[index + 1 :]


@every_kind
def test_a_file_that_is_cut_off_anywhere_is_read_up_to_there_and_said(pack: Pack, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    lines = [b"%d %b" % (number, os.urandom(9).hex().encode()) for number in range(4)]
    content = pack(b"".join(line + b"\n" for line in lines)).rstrip(b"\0")  # of padding nobody sees the end

    for size in range(len(content)):
        path.write_bytes(content[:size])
        if compression_of(path) is None:
            continue
        read = list(numbered_lines(path))
        whole = [line for line in read if line.ended]
        assert [line.content for line in whole] == lines[: len(whole)]
        between_streams = not any(line.damage for line in read)
        assert between_streams or read[-1].damage.endswith("cut off, or not yet whole")
        assert not between_streams or content[size:].startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))


@pytest.mark.parametrize("kind", ["gzip", "zstd with its checksum"])
def test_a_changed_byte_anywhere_changes_nothing_or_is_said(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "changed"
    content = PACKED[kind](MESSAGE * 20)
    path.write_bytes(content)
    lines = list(numbered_lines(path))
    said = 0

    for place in range(4, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        read = list(numbered_lines(path))
        assert read == lines or read[-1].damage
        said += read != lines

    assert said > len(content) / 2


@every_kind
def test_the_memory_is_bounded_whatever_a_small_file_unpacks_to(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINE_MAX_BYTES", 1 << 20)
    path = tmp_path / "bomb"
    path.write_bytes(pack(bytes(64 << 20) + b"\nafter\n"))
    assert path.stat().st_size < 1 << 17

    tracemalloc.start()
    try:
        read = [(line.content, line.end.offset) for line in numbered_lines(path)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert read == [(None, (64 << 20) + 1), (b"after", (64 << 20) + 7)]
    assert peak < 6 << 20


def test_going_on_from_a_mark_unpacks_what_is_before_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl.gz"
    path.write_bytes(gzip.compress(MESSAGE * 20_000))
    marks = [line.end for line in numbered_lines(path)]
    decoders = []

    class Counted(compressed._GzipDecoder):
        def __init__(self) -> None:
            decoders.append(self)
            super().__init__()

    monkeypatch.setattr(compressed, "_GzipDecoder", Counted)

    assert len(list(numbered_lines(path, marks[15_000]))) == 20_000 - 15_001
    assert len(decoders) == 1  # with each one it begins at the start again


def test_the_first_bytes_tell_the_compression_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl.gz"
    contents = {
        b"": None,
        b"\x1f": None,
        MESSAGE: None,
        gzip.compress(b""): Compression.GZIP,
        zstd.compress(b""): Compression.ZSTD,
        SKIPPED_FRAME: Compression.ZSTD,
    }

    for content, compression in contents.items():
        path.write_bytes(content)
        assert compression_of(path) is compression
