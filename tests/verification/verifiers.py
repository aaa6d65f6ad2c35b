"""The three verifiers of a proof, asked alike: that of the package, and the two that strangers are given."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from otel_audit.errors import AuditError
from otel_audit.signing.keys import VerifierKey
from otel_audit.verification.proof import EventProof
from tests.servers.binaries import VERIFY_PROOF

__all__ = ["PYTHON_VERIFIER", "Answer", "loaded", "of_go", "of_package", "of_python", "of_python_command"]

PYTHON_VERIFIER = Path(__file__).resolve().parents[2] / "verifiers" / "python" / "verify_proof.py"


@dataclass(frozen=True, slots=True)
class Answer:
    """The event that a verifier printed, or None and why it printed none."""

    event: bytes | None
    why: str = ""

    def __eq__(self, other: object) -> bool:
        """The same event; each says in its own words why there is none."""
        return isinstance(other, Answer) and self.event == other.event

    def __hash__(self) -> int:
        return hash(self.event)


def of_package(proof: bytes, key: VerifierKey) -> Answer:
    """What `otel_audit.verification` says."""
    try:
        return Answer(EventProof.parse(proof).check([key]).event)
    except AuditError as error:
        return Answer(None, str(error))


def of_python(proof: bytes, key: VerifierKey | str) -> Answer:
    """What verify_proof.py says, in this process."""
    module = loaded()
    try:
        return Answer(module.proven_event(proof, str(key)))
    except module.Refused as error:
        return Answer(None, str(error))


def of_python_command(proof: bytes, key: VerifierKey | str, scratch: Path) -> Answer:
    """What verify_proof.py prints, with neither this package nor any other on its path."""
    return _run([sys.executable, "-I", "-S", str(PYTHON_VERIFIER)], proof, key, scratch)


def of_go(proof: bytes, key: VerifierKey | str, scratch: Path) -> Answer:
    """What the verifier in Go prints."""
    return _run([str(VERIFY_PROOF.path())], proof, key, scratch)


def _run(program: list[str], proof: bytes, key: VerifierKey | str, scratch: Path) -> Answer:
    file = scratch / "event.tlog-proof"
    file.write_bytes(proof)
    done = subprocess.run(
        [*program, "--key", str(key), str(file)], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    said = done.stderr.decode()
    if done.returncode == 0:
        assert done.stdout.endswith(b"\n"), done.stdout
        assert said == ""
        return Answer(done.stdout[:-1])
    assert (done.returncode, done.stdout) == (1, b""), done
    assert said.startswith("refused: "), said
    assert said.count("\n") == 1, said
    return Answer(None, said)


_modules: list[ModuleType] = []


def loaded() -> ModuleType:
    """The module verify_proof.py."""
    if not _modules:
        spec = importlib.util.spec_from_file_location("verify_proof", PYTHON_VERIFIER)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _modules.append(module)
    return _modules[0]
