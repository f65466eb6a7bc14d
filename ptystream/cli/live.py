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
    """Body of the command. Under an MPI launcher rank 0 goes on here. Raises `SessionError` where no scan gave anything, unless
    somebody stopped it."""
    team()
    configuration = load(config, {"device": device})
    if endless:
        configuration.root.live.runs = None
    sessions: list[Session] = []
    run_session(configuration, Console(stderr=True), replay=replay, on_session=sessions.append)
    for session in sessions:
        if not session.reconstructed and not session.asked_to_stop:
            raise SessionError(f"{configuration.name}: nothing was reconstructed: {session.fruitless_because()}")
    return 0


def run_session(
    configuration: Configuration,
    console: Console,
    *,
    replay: Playback | str | None = None,
    on_session: Callable[[Session], None] | None = None,
    on_publish: Callable[[str], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> list[Path]:
    """Run a session to its end with a progress line; ctrl-c saves what is there. Returns the results' paths."""
    sessions: list[Session] = []

    def begun(session: Session) -> None:
        sessions.append(session)
        if on_session is not None:
            on_session(session)

    launch(
        configuration,
        console,
        talkative=True,
        replay=replay,
        on_session=begun,
        on_publish=on_publish,
        on_ready=on_ready,
    )
    results = [path for session in sessions for path in session.results]
    figure = plugins("viewers").get("figure")
    for path in results if figure is not None else ():
        assert figure is not None
        picture = figure.save_png(ptyr.read(path), path.with_suffix(".png"), configuration.root.io.autoplot.layout)
        if configuration.root.log_format == "text":
            console.print(f"picture: {picture}", highlight=False, markup=False, soft_wrap=True)
    return results
