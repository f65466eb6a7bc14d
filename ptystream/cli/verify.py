"""`ptystream verify`: does the recording give this result again, and is it what an offline run gives?"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ptystream.params.load import plugins, tree_of
from ptystream.recording import Recording
from ptystream.storage import ptyr
from ptystream.storage.h5 import H5Error
from ptystream.verify import Verification, VerifyError
from ptystream.verify import verify as again


def verify(result: str, recording: str, config: str | None, offline: bool, picture: str | None) -> int:
    """Body of the command: 0 where everything is as promised, 1 where not."""
    console = Console(stderr=True)
    try:
        was, held = ptyr.read(result), Recording(recording)
    except H5Error as error:
        raise VerifyError(str(error)) from error
    given = None if config is None else tree_of(config)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=None)
        found = again(
            was,
            held,
            given,
            offline=offline,
            tell=lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
        )
    for line in found.lines():
        print(line)
    if picture is not None:
        _draw(was, found, Path(picture))
        print(f"picture: {picture}")
    return 0 if found.good else 1


def _draw(was: ptyr.Result, found: Verification, path: Path) -> None:
    others = {"repeated": found.repeated_object, "offline": found.offline_object}
    plugins("viewers")["difference"].save_png(was, {name: o for name, o in others.items() if o is not None}, path)
