"""Shared by all tests: what a machine may lack."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

os.environ.setdefault("MPLBACKEND", "agg")  # no test opens a window on somebody's desktop


@pytest.fixture(scope="session")
def require() -> Callable[[str, bool], None]:
    """require(name, present): skip with the reason, or fail where PTYSTREAM_REQUIRE names it."""

    def check(name: str, present: bool) -> None:
        if present:
            return
        if name in os.environ.get("PTYSTREAM_REQUIRE", "").split(","):
            pytest.fail(f"{name} is required here and not found")
        pytest.skip(f"{name} is not installed")

    return check


@pytest.fixture(scope="session")
def chromium(require: Callable[[str, bool], None]) -> str:
    """Path of the browser."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    require("chromium", path is not None)
    assert path is not None
    return path
