"""`ptystream live`: one session, from a configuration to its results."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ptystream.cli.progress import progress_line
from ptystream.metrics import Metrics
from ptystream.params.branches import PublishParameters, level
from ptystream.params.load import Configuration, load, plugins
from ptystream.plan import make_plan, recorder_of
from ptystream.publish.publisher import Publisher
from ptystream.recording import Recording
from ptystream.replay import Replay
from ptystream.session import Session


def live(config: str, replay: str | None, device: str | None) -> int:
    """Body of the command."""
    run_session(load(config, {"device": device}), Console(stderr=True), replay=replay)
    return 0


def run_session(
    configuration: Configuration,
    console: Console,
    *,
    replay: str | None = None,
    on_publish: Callable[[str], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> list[Path]:
    """Run a session to its end with a progress line; ctrl-c saves what is there. Returns the results' paths."""
    root = configuration.root
    logging.getLogger("ptystream").setLevel(min(level(root.verbose_level), logging.WARNING))
    metrics = Metrics()
    publisher = _publisher(root.io.publish) if root.io.publish.active else None
    url, close_metrics = metrics.serve(root.io.metrics.address, root.io.metrics.port) if root.io.metrics.active else ("", None)
    recorder, interrupted = (None, None) if replay else recorder_of(configuration)
    finished = False
    try:
        if replay:
            recording = Recording(replay)
            names = {f"{s.label}/{k}" for s in configuration.scans for k in ("data", "positions")}
            present = [name for name in names if name in _channels(recording)]
            pace = Replay(recording, present)
            plan = make_plan(configuration, transports={name: pace.transport(name) for name in present})
        else:
            plan = make_plan(configuration, recorder=recorder, interrupted=interrupted is not None)
        console.print(plan.device, highlight=False, markup=False)
        recorded = Recording(interrupted) if interrupted is not None else ()
        session = Session(plan, metrics=metrics, publisher=publisher, tap=recorder, recorded=recorded, on_ready=on_ready)
        _stop_on_signals(session)
        if publisher is not None:
            console.print(f"publishing on {publisher.endpoint}", highlight=False)
            if on_publish is not None:
                on_publish(publisher.endpoint)
        if url:
            console.print(f"metrics on {url}", highlight=False)
        with progress_line(session.status, console):
            results = session.run()
        finished = True
    finally:
        if recorder is not None:
            recorder.close(finished=finished)
        if publisher is not None:
            publisher.close()
        if close_metrics is not None:
            close_metrics()
    for path in results:
        console.print(f"result: {path}", highlight=False)
        figure = plugins("viewers").get("figure")
        if figure is not None:
            from ptystream.storage import ptyr

            console.print(f"picture: {figure.save_png(ptyr.read(path), path.with_suffix('.png'))}", highlight=False)
    return results


def _publisher(p: PublishParameters) -> Publisher:
    return Publisher(p.address, keys=p.keys, peer_keys=p.peer_keys, insecure=p.insecure)


def _channels(recording: Recording) -> set[str]:
    for _ in recording:
        pass
    return set(recording.channels.values())


def _stop_on_signals(session: Session) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: session.stop())
