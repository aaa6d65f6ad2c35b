"""What the plugin is to a user's suite: there when it is asked for, and nothing at all when it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the suite in a directory as a user does, with no variable of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command,
        cwd=directory,
        env={**kept, "XDG_STATE_HOME": str(directory / "state"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_the_tests_of_the_example_pass_in_several_processes(tmp_path: Path) -> None:
    for name in ("fastapi_app.py", "test_fastapi_app.py"):
        shutil.copy(EXAMPLES / name, tmp_path)

    done = run_pytest(tmp_path, "-n", "2")

    assert "3 passed" in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "state").exists()


def test_a_suite_that_does_not_use_it_imports_nothing_and_sees_no_change(tmp_path: Path) -> None:
    (tmp_path / "test_of_a_user.py").write_text(
        "import sys\n"
        "\n"
        "\n"
        "def test_nothing_is_imported():\n"
        "    names = {name for name in sys.modules if name.startswith(('otel_audit', 'opentelemetry', 'pydantic'))}\n"
        "    assert names == {'otel_audit', 'otel_audit.testing', 'otel_audit.testing.plugin'}\n"
    )

    done = run_pytest(tmp_path, "-W", "error")

    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_failure_shows_what_was_logged_and_no_line_of_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_of_a_user.py").write_text(
        "def test_a_log_in(audit_trail, audit_events):\n"
        "    audit_trail.log_authn(outcome='failure')\n"
        "    audit_events.one(event_type='authn.success')\n"
    )

    done = run_pytest(tmp_path, "-W", "error")

    assert "1 failed" in done.stdout, done.stdout + done.stderr
    assert "event_type: expected 'authn.success', got 'authn.failure'" in done.stdout
    assert "events.py" not in done.stdout


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "test_of_a_user.py").write_text("def test_a_log_in(audit_trail):\n    assert audit_trail\n")

    done = run_pytest(tmp_path, "-p", "no:otel_audit")

    assert "fixture 'audit_trail' not found" in done.stdout, done.stdout + done.stderr
