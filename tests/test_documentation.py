"""Every code block of README and docs is run as it stands, unless a comment above it says what it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import Context
from markdown_it import MarkdownIt

from otel_audit.cli import main
from tests.servers import COLLECTOR
from tests.walkthrough import ROOT, RUNNABLE, Block, Section, sections_of, walk

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
# Both commands are run by .ci/run.
MOST_WORDS = 25  # in a cell of a table: what is longer is a list
TABLE_CELL = 4
KINDS = {"", "file", "server", "prints", "not run", "demo command", "test command"}

SECTIONS = [section for document in DOCUMENTS for section in sections_of(document)]
BLOCKS = [block for section in SECTIONS for block in section.blocks]
ALONE = [block for section in SECTIONS if not section.is_walk for block in section.blocks if block.is_run]
WALKS = [section for section in SECTIONS if section.is_walk and not section.run_by]


@pytest.mark.processes
@pytest.mark.parametrize("block", ALONE, ids=lambda block: block.place)
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


@pytest.mark.processes
@pytest.mark.parametrize("section", WALKS, ids=lambda section: section.title)
def test_a_section_leads_where_it_says(section: Section, tmp_path: Path) -> None:
    if any("build-collector.sh" in block.text for block in section.blocks):
        COLLECTOR.path()

    walk(section, tmp_path)


def test_a_comment_above_a_block_is_understood() -> None:
    assert [f"{block.place}: {block.kind}" for block in BLOCKS if block.kind not in KINDS] == []


def test_what_another_session_runs_is_run_there() -> None:
    sessions = {section.run_by for section in SECTIONS if section.run_by}

    assert sessions == {"nox -s mcp2"}  # tests/environments/mcp/test_guide.py


def test_a_block_without_a_language_is_no_command() -> None:
    """A command that nobody runs rots; a block of commands says `sh`, or says why it is not run."""
    commands = re.compile(
        r"^\s*(\$|otel-audit|opentelemetry-instrument|uvicorn|curl|python|pip|docker|git|pytest|\.ci)", re.MULTILINE
    )
    unmarked = [b.place for b in BLOCKS if b.language not in RUNNABLE and not b.kind and commands.search(b.text)]
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


def headings_of(document: Path) -> set[str]:
    """The anchors of a page, as GitHub and the site make them."""
    found: set[str] = set()
    tokens = MarkdownIt().parse(document.read_text())
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            words = re.sub(r"[^\w\- ]", "", tokens[index + 1].content.lower()).replace(" ", "-")
            found.add(words)
    return found


def test_every_heading_that_the_documents_link_to_exists() -> None:
    missing = [
        f"{document.name}: {target}#{anchor}"
        for document in DOCUMENTS
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", document.read_text())
        if anchor not in headings_of(document.parent / target if target else document)
    ]
    assert missing == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    shown = re.findall(r"[\w-]+\.md", str(nav))

    assert sorted(shown) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def cells_of(document: Path) -> Iterator[tuple[int, str]]:
    """The line and the text of each cell of a table."""
    for token in MarkdownIt().enable("table").parse(document.read_text()):
        if token.type == "inline" and token.level == TABLE_CELL:
            yield (token.map or [0])[0] + 1, token.content


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_a_cell_of_a_table_is_short_enough_to_be_read_across(document: Path) -> None:
    long = [
        f"{document.name}:{line}: {len(cell.split())} words"
        for line, cell in cells_of(document)
        if len(cell.split()) > MOST_WORDS
    ]
    assert long == []


def test_every_test_that_the_documents_name_exists() -> None:
    missing = [
        f"{document.name}: {file}::{name}"
        for document in DOCUMENTS
        for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text())
        if not (ROOT / file).exists() or f"def {name}(" not in (ROOT / file).read_text()
    ]
    assert missing == []
