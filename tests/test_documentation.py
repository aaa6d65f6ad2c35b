"""Every code block of README and docs is run as it stands, unless a comment above it says what it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click import Context
from markdown_it import MarkdownIt

from otel_audit.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- (?P<why>not run: .+|demo command|test command) -->")  # both commands are run by .ci/run
RUNNABLE = {"sh", "python"}


@dataclass(frozen=True)
class Block:
    """A fenced block, and the reason not to run it, if its document gives one."""

    place: str
    language: str
    text: str
    not_run: str | None


def blocks() -> list[Block]:
    found = []
    for document in DOCUMENTS:
        comment = None
        for token in MarkdownIt().parse(document.read_text()):
            if token.type == "html_block":
                comment = token.content.strip()
            elif token.type == "fence":
                match = NOT_RUN.match(comment or "")
                line = (token.map or [0])[0] + 1
                place = f"{document.relative_to(ROOT)}:{line}"
                found.append(Block(place, token.info.strip(), token.content, match["why"] if match else None))
                comment = None
            elif token.type not in {"paragraph_open", "inline", "paragraph_close"}:
                comment = None
    return found


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language in RUNNABLE and not b.not_run], ids=lambda b: b.place
)
def test_a_block_of_the_documents_runs_as_it_stands(block: Block, tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "OTEL_AUDIT_DIR": str(tmp_path / "audit"),
    }
    command = (
        [sys.executable, "-W", "error", "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    )
    done = subprocess.run(
        [*command, block.text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{block.place}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_a_block_without_a_language_is_no_command() -> None:
    """A command that nobody runs rots; a block of commands says `sh`, or says why it is not run."""
    commands = re.compile(r"^\s*(\$|otel-audit|python|pip|docker|git|pytest|\.ci)", re.MULTILINE)
    unmarked = [b.place for b in blocks() if b.language not in RUNNABLE and not b.not_run and commands.search(b.text)]
    assert unmarked == []


def test_every_command_that_the_documents_name_exists() -> None:
    named = {
        word for document in DOCUMENTS for word in re.findall(r"otel-audit (?!DIR)([a-z]+)\b", document.read_text())
    }
    existing = set(main.list_commands(Context(main)))
    assert named <= existing, sorted(named - existing)


def test_every_file_that_the_documents_link_to_exists() -> None:
    missing = [
        f"{document.name}: {target}"
        for document in DOCUMENTS
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert missing == []


def test_every_test_that_the_documents_name_exists() -> None:
    missing = [
        f"{document.name}: {file}::{name}"
        for document in DOCUMENTS
        for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text())
        if not (ROOT / file).exists() or f"def {name}(" not in (ROOT / file).read_text()
    ]
    assert missing == []
