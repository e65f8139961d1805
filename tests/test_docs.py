"""The README says what is true now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rankc.optimizer.cli import _parser
from rankc.optimizer.pipeline.registry import pass_class
from rankc.optimizer.target import TARGETS
from rankc.passes import PASSES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(PASSES))
def test_readme_lists_every_pass_with_its_promise(name: str) -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", README, re.MULTILINE))
    assert rows.get(name) == pass_class(name).exactness.value


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_readme_names_every_target(name: str) -> None:
    assert f"`{name}`" in README


def test_cli_page_has_every_command() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    (commands,) = (a.choices for a in _parser()._actions if isinstance(a.choices, dict))
    assert [command for command in commands if f"rankc {command}" not in page] == []


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
