"""Pictures below a cell: only where there is one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from ptystream.notebook import display_in_notebook
from ptystream.stopwatch import PARTS, Stopwatch


class ZMQInteractiveShell:
    """As a notebook's kernel has it."""


class TerminalInteractiveShell:
    """As a terminal has it."""


def shell_of(kind: type | None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for IPython; gives what was displayed."""
    shown: list[Any] = []
    module, display = ModuleType("IPython"), ModuleType("IPython.display")

    class Handle:
        def update(self, picture: Any) -> None:
            shown.append(picture)

    module.get_ipython = lambda: None if kind is None else kind()  # type: ignore[attr-defined]
    display.Image = lambda data, format: (format, data)  # type: ignore[attr-defined]
    display.display = lambda display_id: Handle()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_a_notebook_gets_each_picture_in_the_place_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shell_of(ZMQInteractiveShell, monkeypatch)
    show = display_in_notebook()
    assert show is not None
    show(b"one")
    show(b"two")
    assert shown == [("png", b"one"), ("png", b"two")]


@pytest.mark.parametrize("kind", [None, TerminalInteractiveShell])
def test_a_script_and_a_terminal_have_no_cell(kind: type | None, monkeypatch: pytest.MonkeyPatch) -> None:
    shell_of(kind, monkeypatch)
    assert display_in_notebook() is None
    monkeypatch.delitem(sys.modules, "IPython")
    assert display_in_notebook() is None


def test_a_moment_belongs_to_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 6.0, 100.0, 110.0])
    monkeypatch.setattr("ptystream.stopwatch.time.perf_counter", lambda: next(now))
    watch = Stopwatch()
    with watch.measure("data_load"), watch.measure("engine_prepare"):  # 0 … 1 … 3 … 6
        pass
    with watch.measure("data_load"):  # 100 … 110; what lies between belongs to nobody
        pass
    assert watch.seconds == dict.fromkeys(PARTS, 0.0) | {"data_load": 1.0 + 3.0 + 10.0, "engine_prepare": 2.0}
