"""The documentation: links lead somewhere, every command and option is named, the examples compile."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import typer

from ptystream.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_in_the_pages_compiles(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        ast.parse(block)


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        kind = page.parent.name
        if kind in ("tutorial", "how-to", "reference", "explanation", "adr"):
            assert f"({kind}/{page.name})" in index, page.name


def test_every_command_and_option_is_described() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        row = next((line for line in text.splitlines() if line.startswith(f"| `ptystream {name}")), "")
        assert row, name
        assert f"\nptystream {name}" in text, f"no example of {name}"
        real = {o for option in command.params for o in (*option.opts, *option.secondary_opts) if o.startswith("-")}
        described = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", row.split("|", 2)[2]))
        assert described == real, name


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *(d for group in project["optional-dependencies"].values() for d in group)]
    table = (ROOT / "docs" / "adr" / "0005-dependencies.md").read_text(encoding="utf-8")
    first = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    reasoned = {name.strip() for name in re.split(r"[,\s]+", first)}
    for requirement in listed:
        name = re.split(r"[<>=\[]", requirement)[0]
        assert name in reasoned, name
