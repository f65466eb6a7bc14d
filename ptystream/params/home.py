"""`io.home` while a configuration is checked: where the files lie that it names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_HOME: ContextVar[Path] = ContextVar("home", default=Path())


@contextmanager
def home(folder: str | Path) -> Iterator[None]:
    """Relative names mean files below `folder` in here."""
    token = _HOME.set(Path(folder))
    try:
        yield
    finally:
        _HOME.reset(token)


def inside(name: str | Path) -> Path:
    """The path of a file that a configuration names: an absolute one stays, a relative one is below home."""
    return _HOME.get() / name


def located(name: str) -> str:
    """The same as text, absolute where home is not the working folder: so it may be asked for again, and read anywhere."""
    return name if _HOME.get() == Path() else str(inside(name).absolute())
