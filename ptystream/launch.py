"""One session from a checked configuration to its results, with everything around it that the configuration asks for.

`ptystream live` and `ptystream.Ptycho` are this with a terminal or a script around it.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ptystream.archives import archivist_of, documents_of
from ptystream.citations import citations_of
from ptystream.cli.progress import progress_line
from ptystream.dryrun import dry_run
from ptystream.health import Health
from ptystream.interaction.namespace import Namespace
from ptystream.interaction.server import InteractionError, InteractionServer
from ptystream.kernel import start_kernel
from ptystream.metrics import Metrics
from ptystream.notebook import display_in_notebook
from ptystream.notifying import Notifier
from ptystream.parallel import team
from ptystream.params.branches import IoParameters, PublishParameters, SteeringParameters
from ptystream.params.home import home, located
from ptystream.params.load import Configuration, plugins
from ptystream.plan import make_plan, recorder_of
from ptystream.playback import Playback
from ptystream.publish.plotting import Plotter
from ptystream.publish.publisher import Publisher
from ptystream.publish.window import Window
from ptystream.recording import Recorder, Recording
from ptystream.results import file_name
from ptystream.session import Session
from ptystream.steering.desk import Desk
from ptystream.steering.server import Server
from ptystream.storage.frames import FrameFiles
from ptystream.transport import Transport
from ptystream.verbosity import CITATION, INTERACTIVE, TEXT, AsJson, ToStderr, level

log = logging.getLogger(__name__)


def launch(
    configuration: Configuration,
    console: Console,
    *,
    talkative: bool = False,
    replay: Playback | str | None = None,
    transports: Mapping[str, Transport] | None = None,
    on_session: Callable[[Session], None] | None = None,
    on_publish: Callable[[str], None] | None = None,
    on_steering: Callable[[str], None] | None = None,
    on_interaction: Callable[[int], None] | None = None,
    on_document: Callable[[str, dict[str, Any]], object] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> bool:
    """Run a session to its end; ctrl-c saves what is there. Returns whether it was interrupted so.

    `talkative`: where the configuration says no `verbose_level`, say addresses, progress, warnings and results all the
    same. `replay`: a recording, or one with pace and faults, instead of the sources; `transports` in the place of some of
    them. `on_session` is given the session before it runs; `on_document(name, document)` Bluesky's documents of its runs.
    """
    team()  # other ranks work for the first one in there, and open no file and no socket of their own
    root = configuration.root
    wanted = level(root.verbose_level)
    if talkative and "verbose_level" not in root.model_fields_set:
        wanted = logging.WARNING
    shown, as_json = talkative or wanted <= INTERACTIVE, root.log_format == "json"

    def tell(text: str, number: int = INTERACTIVE) -> None:
        if as_json:
            log.log(number, text)
        else:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    def say(text: str) -> None:
        if shown:
            tell(text)

    with ExitStack() as stack:
        stack.enter_context(_logging_at(wanted, AsJson() if as_json else TEXT))
        if root.dry_run:
            for line in dry_run(configuration).lines():
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            return False
        metrics, health = Metrics(), Health(root.io.metrics.stuck_after_s)
        stack.callback(Notifier(health).close)
        publisher = _publisher(root.io.publish, root.io.home) if root.io.publish.active else None
        if publisher is not None:
            stack.callback(publisher.close)
            health.parts["publisher"] = publisher
        url = ""
        if root.io.metrics.active:
            url, close = metrics.serve(root.io.metrics.address, root.io.metrics.port, health)
            stack.callback(close)
        recorder, before = (None, None) if replay else recorder_of(configuration)
        held = replay.file if isinstance(replay, Playback) else replay or before
        recording = None if held is None else Recording(held)
        finished = False
        if recorder is not None:
            stack.callback(lambda: recorder.close(finished=finished))
            health.parts["recorder"] = recorder
            health.warnings["recorder"] = partial(_lost, recorder)
            metrics.before_scrape.append(partial(metrics.disk, recorder.path))
        given = dict(transports or {})
        if replay:
            given |= (Playback(replay) if isinstance(replay, str) else replay).transports(configuration)
        plan = make_plan(configuration, recorder=recorder, transports=given, interrupted=before is not None, recording=recording)
        archivist = archivist_of(configuration, metrics)
        if archivist is not None:
            stack.callback(archivist.close)
            plan = archivist.beside(plan)
            _watch("archive", archivist, health, metrics)
        documents = documents_of(configuration, metrics, on_document)
        if documents is not None:
            stack.callback(documents.close)
            plan = documents.beside(plan)
            _watch("documents", documents, health, metrics)
        say(plan.device)
        plotter = plotter_of(configuration)
        if plotter is not None:
            stack.callback(plotter.close)
        recorded = () if before is None or recording is None else recording
        interaction = root.io.interaction
        namespace = Namespace(configuration) if interaction.active and interaction.server.active else None
        frame_files = None if replay else frame_files_of(configuration, recorder)
        if frame_files is not None:
            health.warnings["frame files"] = lambda: "" if frame_files.failure is None else str(frame_files.failure)
        session = Session(
            plan,
            metrics=metrics,
            publisher=publisher,
            plotter=plotter,
            follower=namespace,
            documents=documents,
            tap=recorder,
            frame_files=frame_files,
            recorded=recorded,
            on_ready=on_ready,
            health=health,
        )
        steering = _steering(session.desk, root.io.steering, root.io.home) if root.io.steering.active else None
        if steering is not None:
            stack.callback(steering.close)
            _watch("steering", steering, health, metrics)
        server = None if namespace is None else _interaction(namespace, session.desk, root.io)
        if server is not None:
            stack.callback(server.close)
            _watch("interaction", server, health, metrics)
        if on_session is not None:
            on_session(session)
        if root.ipython_kernel:
            start_kernel({"session": session, "configuration": configuration})
        if publisher is not None:
            say(f"publishing on {publisher.endpoint}")
            if on_publish is not None:
                on_publish(publisher.endpoint)
        if steering is not None:
            say(f"steering on {steering.endpoint}")
            if on_steering is not None:
                on_steering(steering.endpoint)
        if server is not None:
            say(f"ptypy's clients connect to {server.endpoint}")
            if on_interaction is not None:
                on_interaction(server.port)
        if url:
            say(f"metrics on {url}")
        movies: list[Path] = []
        try:
            with _stopping(session) as interrupted, ExitStack() as progress:
                if shown and wanted <= INTERACTIVE and not as_json:
                    progress.enter_context(progress_line(session.status, console))
                session.run()
            finished = True
        finally:
            movies += [] if plotter is None else plotter.close()
        for path in movies:
            say(f"movie: {path}")
        for path in session.results:
            say(f"result: {path}")
        if archivist is not None:
            archivist.close()
            for line in archivist.done:
                say(line)
        tell("To cite with this result:", CITATION)
        for citation in citations_of(configuration):
            tell(f"  {citation}", CITATION)
    return interrupted.is_set()


def plotter_of(configuration: Configuration) -> Plotter | None:
    """What plots for a session, as `io.autoplot` says; None where nothing is to be plotted."""
    settings, home = configuration.root.io.autoplot, Path(configuration.root.io.home)
    drawing = plugins("viewers").get("autoplot")
    if not settings.active:
        return None
    if drawing is None or settings.interval <= 0:
        return None
    show = display_in_notebook() or Window.open(drawing.window)
    if not (settings.dump or settings.make_movie or show):
        return None
    return Plotter(settings, drawing, lambda run, info: home / file_name(settings.imfile, run, info), show)


def _watch(name: str, part: Any, health: Health, metrics: Metrics) -> None:
    """Have it told where a part has ended without which the session goes on: `part.failure` says why."""
    health.warnings[name] = lambda: "" if part.failure is None else f"{type(part.failure).__name__}: {part.failure}"
    metrics.before_scrape.append(lambda: metrics.dead(name, part.failure))


def _lost(recorder: Recorder) -> str:
    """What somebody should know of a recording that goes on."""
    if not recorder.lost and not recorder.full:
        return ""
    return f"{'the disk is full; ' if recorder.full else ''}{recorder.lost} messages are not recorded"


def _publisher(p: PublishParameters, folder: str) -> Publisher:
    with home(folder):
        keys, peer_keys = (None if name is None else located(name) for name in (p.keys, p.peer_keys))
    return Publisher(p.address, keys=keys, peer_keys=peer_keys, insecure=p.insecure)


def _steering(desk: Desk, p: SteeringParameters, folder: str) -> Server:
    with home(folder):
        found = {name: getattr(p, name) for name in ("keys", "peer_keys", "operators")}
        keys = {name: None if file is None else located(file) for name, file in found.items()}
    return Server(desk, p.address, **keys, insecure=p.insecure)


def _interaction(namespace: Namespace, desk: Desk, io: IoParameters) -> InteractionServer | None:
    """The server for ptypy's clients; None, with a warning, where no port is free: nothing else depends on it.

    It cannot tell who asks. So where steering is for those with keys, or for nobody, its clients only look.
    """
    steering = io.steering
    open_to_all = steering.active and steering.keys is None
    try:
        return InteractionServer(namespace, desk, io.interaction.server, role="operator" if open_to_all else "viewer")
    except InteractionError as error:
        log.warning("%s; ptypy's clients cannot connect", error)
        return None


def frame_files_of(configuration: Configuration, recorder: Recorder | None) -> FrameFiles | None:
    """What writes frames to files, as `io.frames` says; a session that continues a recording makes its files anew."""
    io, run = configuration.root.io, configuration.name
    if not io.frames.active:
        return None
    session = "" if recorder is None else str(Recording(recorder.path).metadata.get("session", ""))

    def path(scan: str, epoch: str) -> Path:
        return Path(io.home) / (io.frames.file % {"run": run, "scan": scan, "epoch": epoch})

    return FrameFiles(path, run, session)


class _Log:
    """What the project's log says while sessions run, of which a process may have several at a time: as much as the most
    talkative one wants. The last to end leaves it as the first has found it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: list[int] = []
        self._undo: list[Callable[[], object]] = []

    def begin(self, wanted: int, form: logging.Formatter) -> None:
        logger = logging.getLogger("ptystream")
        with self._lock:
            if not self._wanted:
                self._undo.append(partial(logger.setLevel, logger.level))
                if not logger.hasHandlers():  # to standard error where nobody else has set a place for it
                    handler = ToStderr()
                    logger.addHandler(handler)
                    self._undo.append(partial(logger.removeHandler, handler))
                for own in (*logger.handlers, *logging.getLogger().handlers):
                    if isinstance(own, ToStderr):
                        self._undo.append(partial(own.setFormatter, own.formatter))
                        own.setFormatter(form)
            self._wanted.append(wanted)
            logger.setLevel(min(self._wanted))

    def end(self, wanted: int) -> None:
        with self._lock:
            self._wanted.remove(wanted)
            if self._wanted:
                logging.getLogger("ptystream").setLevel(min(self._wanted))
            while self._undo and not self._wanted:
                self._undo.pop()()


_LOG = _Log()


@contextmanager
def _logging_at(wanted: int, form: logging.Formatter) -> Iterator[None]:
    """What the project's log says in here, and how."""
    _LOG.begin(wanted, form)
    try:
        yield
    finally:
        _LOG.end(wanted)


@contextmanager
def _stopping(session: Session) -> Iterator[threading.Event]:
    """In the main thread ctrl-c or SIGTERM stops the session, a second one at once; the event says whether one came. SIGUSR1
    pauses it, and the next one lets it go on."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def stop(number: int, frame: Any) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()
        session.stop()

    def pause(number: int, frame: Any) -> None:
        (session.resume if session.paused else session.pause)()

    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, pause)
    try:
        yield came
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
