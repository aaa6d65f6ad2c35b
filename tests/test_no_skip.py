"""A run in which no test may be skipped fails for each that is, wherever it says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.no_skip import NO_SKIP

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
CONFTEST = "from tests.no_skip import pytest_make_collect_report, pytest_runtest_makereport"
SKIPS = {
    "in the test": "import pytest\ndef test_it(): pytest.skip('no such thing here')",
    "in a fixture": """
import pytest
@pytest.fixture
def thing(): pytest.skip('no such thing here')
def test_it(thing): pass
""",
    "by a mark": "import pytest\n@pytest.mark.skipif(True, reason='no such thing here')\ndef test_it(): pass",
    "by its module": "import pytest\npytest.skip('no such thing here', allow_module_level=True)\ndef test_it(): pass",
    "for want of a package": "import pytest\npytest.importorskip('otel_audit_no_such', reason='no such thing here')",
}


def exit_code(tmp_path: Path, test: str, **variables: str) -> tuple[int, str]:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("test", SKIPS.values(), ids=SKIPS)
def test_a_skip_is_a_failure_that_says_why(tmp_path: Path, test: str) -> None:
    code, said = exit_code(tmp_path, test, **{NO_SKIP: "1"})

    assert code in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED), said
    assert f"expected every test to run ({NO_SKIP}=1), got Skipped: no such thing here" in said


def test_elsewhere_it_is_a_skip(tmp_path: Path) -> None:
    code, said = exit_code(tmp_path, SKIPS["in the test"] + "\ndef test_that(): pass")

    assert code == pytest.ExitCode.OK
    assert "1 passed, 1 skipped" in said


def test_what_is_expected_to_fail_may_fail(tmp_path: Path) -> None:
    code, said = exit_code(
        tmp_path, "import pytest\n@pytest.mark.xfail\ndef test_it(): raise ValueError", **{NO_SKIP: "1"}
    )

    assert code == pytest.ExitCode.OK, said
