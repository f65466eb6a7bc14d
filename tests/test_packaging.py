"""What a wheel holds, and which walls of the house stand."""

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    found = {
        ".".join((name, *init.parent.relative_to(ROOT / folder).parts))
        for name, folder in setuptools["package-dir"].items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(setuptools["packages"])


@pytest.mark.parametrize("group", ["detectors", "engines", "viewers"])
def test_entry_points_load_nothing_heavy(group: str) -> None:
    modules = sorted({point.module for point in entry_points(group=f"ptystream.{group}")})
    assert modules
    heavy = ("numba", "cupy", "mpi4py", "bluesky", "matplotlib")
    code = f"import sys, {', '.join(modules)}\nprint([m for m in {heavy!r} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_the_core_names_no_folder_beside_it() -> None:
    for file in (ROOT / "ptystream").rglob("*.py"):
        text = file.read_text()
        for folder in ("detectors", "engines", "viewers"):
            assert f"from ptystream.{folder}" not in text, file
            assert f"import ptystream.{folder}" not in text, file


def test_the_version_stands_in_the_changelog() -> None:
    assert PROJECT["project"]["version"] in (ROOT / "CHANGELOG.md").read_text()
