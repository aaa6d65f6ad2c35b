"""Make files of evidence, change them, and check them as an auditor does."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from click.testing import CliRunner, Result

from otel_audit.cli import main
from otel_audit.signing.keys import SigningKey
from tests.verification.forge import Forge

__all__ = [
    "LOG",
    "MANIFEST",
    "Change",
    "a_signed_trail",
    "changed",
    "checked",
    "content_of",
    "contents_of",
    "evidence_of",
    "evidence_of_broken",
    "key_of",
    "lines_of",
    "run",
]

LOG = "otel-audit/shop"
MANIFEST = "MANIFEST.sha256"
Change = Callable[[dict[str, bytes]], object]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)], env={"OTEL_AUDIT_DIR": ""})


def evidence_of(source: Path, *arguments: str | Path) -> Path:
    """The file that the command writes, in a directory where nothing else is."""
    out = source.parent / f"for-auditor-{source.name}" / "evidence.zip"
    out.parent.mkdir(exist_ok=True)
    result = run(source, "--evidence", out, *arguments)
    assert result.exit_code == 0, result.output
    return out


def checked(evidence: Path, *arguments: str, program: Path | None = None) -> tuple[int, str]:
    """Exit code and output of the check: of the program in the file, on a Python that has its standard library only."""
    command = [sys.executable, "-I", "-S", *([str(program)] if program else []), str(evidence), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=evidence.parent, env={}
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def content_of(evidence: Path) -> dict[str, bytes]:
    with ZipFile(evidence) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def changed(evidence: Path, change: Change, *, hidden: bool = True) -> Path:
    """A copy with something changed; `hidden`: the list of files says the same."""
    content = content_of(evidence)
    change(content)
    if hidden:
        names = sorted(content.keys() - {MANIFEST})
        content[MANIFEST] = "".join(f"{hashlib.sha256(content[name]).hexdigest()}  {name}\n" for name in names).encode()
    path = evidence.with_name("changed.zip")
    with ZipFile(path, "w") as archive:
        for name, raw in content.items():
            archive.writestr(name, raw)
    return path


def lines_of(evidence: Path) -> list[bytes]:
    return content_of(evidence)["events.jsonl"].split(b"\n")[:-1]


def contents_of(evidence: Path) -> Mapping[str, Any]:
    contents: dict[str, Any] = json.loads(content_of(evidence)["contents.json"])
    return contents


def evidence_of_broken(source: Path) -> Path:
    out = source.parent / "broken.zip"
    assert run(source, "--evidence", out).exit_code == 1
    return out


def key_of(forge: Forge) -> str:
    assert forge.identity is not None
    return str(forge.identity.verifier(LOG))


def a_signed_trail(directory: Path) -> Forge:
    """Two streams, one of them with two segments, under a key that outsiders know."""
    forge = Forge(directory, identity=SigningKey.generate())
    forge.honest_stream(segments=2)
    forge.honest_stream()
    return forge.write()
