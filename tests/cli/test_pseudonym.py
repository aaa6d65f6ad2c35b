"""`otel-audit pseudonym` with lists of names as auditors have them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

COMMAND = Path(sys.executable).with_name("otel-audit")


def test_a_list_of_names_may_come_from_windows(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ab" * 32 + "\n")
    keys.chmod(0o600)
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}

    plain, windows = (
        subprocess.run(
            [COMMAND, "pseudonym", "--keys", keys, "--json", "-"],
            input=names,
            env=env,
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
        for names in (b"alice\nbob\n", b"alice\r\n\r\nbob\r\n")
    )

    assert windows == plain
    assert [json.loads(line)["name"] for line in plain.splitlines()] == ["alice", "bob"]
