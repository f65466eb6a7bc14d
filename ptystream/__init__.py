"""Live ptychography: frames and positions in, a growing picture out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptystream.front import pypty_run
    from ptystream.params.plain import Param
    from ptystream.ptycho import Ptycho
    from ptystream.session import Session

__version__ = "0.1.0"
__all__ = ["Param", "Ptycho", "Session", "__version__", "pypty_run"]

_HOMES = {
    "Param": "ptystream.params.plain",
    "Ptycho": "ptystream.ptycho",
    "Session": "ptystream.session",
    "pypty_run": "ptystream.front",
}


def __getattr__(name: str) -> Any:
    """Names of the front door, loaded when they are asked for: `import ptystream` alone loads nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ptystream' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
