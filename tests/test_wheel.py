"""What a user installs: the built wheel, in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Sequence
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

import otel_audit

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 150

needs_the_build = pytest.mark.skipif(
    find_spec("hatchling") is None or find_spec("build") is None,
    reason="the wheel cannot be built: pip install -e '.[test]'",
)


def run(command: Sequence[str | os.PathLike[str]], cwd: Path) -> str:
    """The output of a program that sees neither the checkout nor our variables."""
    hidden = ("OTEL_", "PYTHON")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    finished = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive, as a release is."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of programs of an environment with the wheel; what it needs is taken from this environment."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False)
    bin_directory = home / "bin"
    site = Path(
        run([bin_directory / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home).strip()
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "--python", str(bin_directory / "python"), "install", "--no-deps", "--no-index", "--quiet", wheel], home)
    # Behind the wheel's own place, so that an editable install here cannot stand in for it.
    (site / "needed.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}) + "\n")
    return bin_directory


@needs_the_build
def test_the_wheel_has_every_module_the_marker_of_types_and_the_licence_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "otel_audit"
    modules = {str(path.relative_to(ROOT)) for path in package.rglob("*.py")}

    assert modules <= names
    assert "otel_audit/py.typed" in names
    assert {f"otel_audit/viewing/page/{name}" for name in ("index.html", "view.css", "view.js")} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    others = {name for name in names if not name.startswith("otel_audit/") and ".dist-info/" not in name}
    assert others == set()
    assert [name for name in names if name.endswith((".pyc", ".jsonl", ".lock"))] == []


@needs_the_build
def test_its_metadata_say_the_version_python_licence_and_what_it_needs(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))

    assert metadata["Version"] == otel_audit.__version__
    assert f"otel_audit-{otel_audit.__version__}-py3-none-any.whl" == wheel.name
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    always = [need for need in map(Requirement, metadata.get_all("Requires-Dist") or []) if need.marker is None]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert {str(need) for need in always} == {str(Requirement(text)) for text in declared}


@needs_the_build
def test_a_user_may_upgrade_opentelemetry_up_to_its_next_major_version(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    needs = map(Requirement, metadata.get_all("Requires-Dist") or [])
    otel = {
        need.name: need.specifier for need in needs if need.marker is None and need.name.startswith("opentelemetry")
    }

    assert otel.keys() >= {"opentelemetry-sdk", "opentelemetry-exporter-otlp"}
    for specifier in otel.values():
        assert {"1.40.0", "1.999.0"} == set(specifier.filter(["1.39.0", "1.40.0", "1.999.0", "2.0.0"]))


@needs_the_build
def test_the_installed_package_is_the_one_of_the_wheel_and_its_command_works(installed: Path, tmp_path: Path) -> None:
    where = run([installed / "python", "-c", "import otel_audit; print(otel_audit.__file__)"], tmp_path)

    assert Path(where.strip()).is_relative_to(installed.parent)
    assert otel_audit.__version__ in run([installed / "otel-audit", "--version"], tmp_path)
    for command in ("status", "tail", "config", "schema", "demo"):
        assert "--help" in run([installed / "otel-audit", command, "--help"], tmp_path)


@needs_the_build
def test_an_event_is_journalled_by_what_was_installed(installed: Path, tmp_path: Path) -> None:
    program = (
        "import sys, otel_audit\n"
        "audit = otel_audit.configure(directory=sys.argv[1], export='none')\n"
        "print(audit.log_authn(outcome='success').durable)\n"
    )

    assert run([installed / "python", "-c", program, tmp_path / "audit"], tmp_path).strip() == "True"


@needs_the_build
def test_evidence_by_what_was_installed_is_checked_by_what_is_in_it(installed: Path, tmp_path: Path) -> None:
    program = (
        "import sys, otel_audit\n"
        "audit = otel_audit.configure(directory=sys.argv[1], export='none', ledger='true')\n"
        "audit.log_authn(outcome='success')\n"
        "audit.close()\n"
    )
    run([installed / "python", "-c", program, tmp_path / "audit"], tmp_path)

    run([installed / "otel-audit", "report", tmp_path / "audit", "--evidence", "evidence.zip"], tmp_path)

    said = run([sys.executable, "-I", "-S", "evidence.zip"], tmp_path)
    assert "CONSISTENT: 2 of 2 lines are as the keys in it signed them" in said


@needs_the_build
def test_pytest_finds_the_plugin_of_the_wheel_also_when_the_package_was_imported_first(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_of_a_user.py").write_text(
        "def test_it(audit_trail):\n    assert audit_trail.log_authn(outcome='x')\n"
    )
    program = "import sys, otel_audit, pytest; sys.exit(pytest.main(['-W', 'error', '-p', 'no:cacheprovider']))"

    said = run([installed / "python", "-c", program], tmp_path)

    assert "1 passed" in said


@needs_the_build
def test_a_user_of_the_wheel_sees_its_types(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import otel_audit\n"
        "audit = otel_audit.configure()\n"
        "reveal_type(audit.log_authn(outcome='success'))\n"
        "audit.log_authn(outcome=1)\n"
    )
    command = [sys.executable, "-m", "mypy", "--python-executable", str(installed / "python"), "program.py"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    finished = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )

    assert "Receipt" in finished.stdout
    assert 'Argument "outcome" to "log_authn" of "AuditLogger" has incompatible type "int"' in finished.stdout


@needs_the_build
def test_the_source_archive_holds_what_a_packager_needs(wheel: Path, tmp_path: Path) -> None:
    (archive,) = wheel.parent.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    (root,) = tmp_path.iterdir()

    for name in (
        "pyproject.toml",
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
        "noxfile.py",
        "zensical.toml",
        "docker-compose.yml",
        "benchmarks/__main__.py",
        "collector-config/builder.yaml",
        "otel_audit/py.typed",
        "tests/conftest.py",
        "verifiers/go/main.go",
        "verifiers/python/verify_proof.py",
    ):
        assert (root / name).is_file(), name
