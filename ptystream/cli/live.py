"""`ptystream live`: one session, from a configuration to its results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ptystream.launch import launch
from ptystream.parallel import team
from ptystream.params.load import Configuration, load, plugins
from ptystream.playback import Playback
from ptystream.session import Session, SessionError
from ptystream.storage import ptyr


def live(config: str, replay: str | None, device: str | None, endless: bool = False) -> int:
    """Body of the command. Under an MPI launcher rank 0 goes on here."""
    team()
    configuration = load(config, {"device": device})
    if endless:
        configuration.root.live.runs = None
    run_session(configuration, Console(stderr=True), replay=replay)
    return 0


def run_session(
    configuration: Configuration,
    console: Console,
    *,
    replay: Playback | str | None = None,
    on_publish: Callable[[str], None] | None = None,
    on_steering: Callable[[str], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> list[Path]:
    """Run a session to its end with a progress line; ctrl-c saves what is there. Returns the results' paths. Raises
    `SessionError` where nothing could be reconstructed, unless somebody stopped it before."""
    sessions: list[Session] = []
    launch(
        configuration,
        console,
        talkative=True,
        replay=replay,
        on_session=sessions.append,
        on_publish=on_publish,
        on_steering=on_steering,
        on_ready=on_ready,
    )
    for session in sessions:
        if not session.reconstructed and not session.asked_to_stop:
            raise SessionError(f"{configuration.name}: nothing was reconstructed: {session.fruitless_because()}")
    results = [path for session in sessions for path in session.results]
    figure = plugins("viewers").get("figure")
    for path in results if figure is not None else ():
        assert figure is not None
        picture = figure.save_png(ptyr.read(path), path.with_suffix(".png"), configuration.root.io.autoplot.layout)
        if configuration.root.log_format == "text":
            console.print(f"picture: {picture}", highlight=False, markup=False, soft_wrap=True)
    return results
