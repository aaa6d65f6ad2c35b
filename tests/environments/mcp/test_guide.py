"""What the guide says of an MCP server, as a reader would do it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY
from sdk import IS_SDK1

from tests.walkthrough import Section, sections_of, walk

SECTIONS = [section for section in sections_of(REPOSITORY / "docs" / "guide.md") if section.run_by == "nox -s mcp2"]

if not IS_SDK1:

    @pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
    def test_a_section_leads_where_it_says(section: Section, tmp_path: Path) -> None:
        walk(section, tmp_path)
