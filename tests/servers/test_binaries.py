"""Finding the programs under test: no test may pass or vanish because one is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.servers.binaries import (
    COLLECTOR,
    OWN_VARIABLES,
    VERIFY_PROOF,
    VICTORIALOGS,
    VICTORIAMETRICS,
    VMALERT_TOOL,
    Binary,
)

pytestmark = pytest.mark.processes

BINARIES = pytest.mark.parametrize(
    "binary", [COLLECTOR, VERIFY_PROOF, VICTORIALOGS, VICTORIAMETRICS, VMALERT_TOOL], ids=lambda binary: binary.name
)


def executable(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def nowhere(tmp_path: Path, **more: str) -> dict[str, str]:
    """An environment with an empty cache and nothing on PATH but what runs the scripts."""
    shell = shutil.which("bash")
    assert shell is not None
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "bash").symlink_to(shell)
    return {"PATH": str(programs), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), **more}


@BINARIES
def test_the_variable_comes_before_path(binary: Binary, tmp_path: Path) -> None:
    named, on_path = executable(tmp_path / "named"), executable(tmp_path / binary.name)

    assert binary.path({"PATH": str(tmp_path), binary.variable: str(named)}) == named
    assert binary.path({"PATH": str(tmp_path)}) == on_path


@BINARIES
def test_a_variable_that_names_no_program_fails(binary: Binary, tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=f"{binary.variable}: expected the path of an executable"):
        binary.path(nowhere(tmp_path, **{binary.variable: str(tmp_path / "absent")}))


@BINARIES
def test_a_missing_program_skips_with_the_way_to_get_it(binary: Binary, tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match=f"needs {binary.name}: run `{binary.script[0]}"):
        binary.path(nowhere(tmp_path))


def test_programs_that_tests_start_do_not_see_the_variables_of_the_tests() -> None:
    assert set(OWN_VARIABLES).isdisjoint(os.environ)
