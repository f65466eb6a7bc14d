"""`ptystream convert`: from one kind of file to another, with a bar."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ptystream.convert import ConvertError
from ptystream.convert import convert as into
from ptystream.params.load import tree_of
from ptystream.storage.h5 import H5Error


def convert(given: str, made: str, config: str | None, scan: str | None, acquisition: str | None, force: bool) -> int:
    """Body of the command."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    tree = None if config is None else tree_of(config)
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=None)
            done = into(
                Path(given),
                Path(made),
                tree,
                scan,
                acquisition,
                force=force,
                tell=lambda what, count, total: progress.update(task, description=what, completed=count, total=total),
            )
    except H5Error as error:
        raise ConvertError(str(error)) from error
    print(done)
    return 0
