"""`ptystream replay`: a recording given back, as it came or damaged on purpose, on the wire or into a session."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ptystream.cli.live import run_session
from ptystream.faults import Faults
from ptystream.giving import ANYWHERE, GIVE_S, LINKS, branches_of, giver_of, sources_of
from ptystream.params.load import load
from ptystream.playback import Playback
from ptystream.recording import Recording
from ptystream.replay import Replay
from ptystream.transport import TransportClosed


def replay(
    file: str, speed: float, into: str | None, to: list[str], link: str | None, device: str | None, faults: Mapping[str, Any]
) -> int:
    """Body of the command. Channels without an address get free ports, which are printed."""
    console = Console(stderr=True)
    try:
        playback = Playback(file, speed, Faults(**faults))
        if into is not None and to:
            raise ValueError("--to: an address is of no use with --into, which needs no sockets")
        if link is not None and link not in LINKS:
            raise ValueError(f"--link: {link!r}: must be one of {', '.join(LINKS)}")
        if into is None:
            _on_the_wire(playback, to, link, console)
            return 0
        configuration = load(into, {"device": device})
        run_session(configuration, console, replay=playback, on_ready=lambda: _say(playback, console))
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    return 0


def _say(playback: Playback, console: Console) -> None:
    """What is given back and what was done to it."""
    told = f"{playback.total} messages" if playback.damaged is None else str(playback.damaged)
    console.print(f"{playback.file}: {told}", highlight=False)


def _on_the_wire(playback: Playback, to: list[str], link: str | None, console: Console) -> None:
    recording = Recording(playback.file)
    sources, branches = sources_of(recording), branches_of(recording)
    addresses = dict(item.split("=", 1) for item in to if "=" in item)
    if set(addresses) - set(sources) or len(addresses) != len(to):
        raise ValueError(f"--to {to}: must be CHANNEL=ADDRESS with a channel of {', '.join(sorted(sources))}")
    pace = playback.replay(recording, sources)
    _say(playback, console)
    if recording.torn:
        console.print(f"{playback.file}: {recording.torn} bytes torn at the end", highlight=False)
    failures: list[BaseException] = []

    def give(channel: str) -> None:
        transport = pace.transport(channel)
        try:
            with giver_of(channel, branches[channel], addresses.get(channel, ANYWHERE), link) as out:
                console.print(f"{channel} on {out.address}", highlight=False)
                out.wait(GIVE_S)
                transport.open()
                try:
                    while True:
                        message = transport.receive(1.0)
                        if message is not None:
                            out.again(message.parts)
                except TransportClosed:
                    out.flush(GIVE_S)
        except BaseException as error:
            failures.append(error)
        finally:
            transport.close()

    threads = [threading.Thread(target=give, args=(channel,), name=channel) for channel in sources]
    for thread in threads:
        thread.start()
    with _shown(pace, playback.total, console):
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _shown(pace: Replay, total: int, console: Console) -> Iterator[None]:
    """A bar of the messages given out."""
    over = threading.Event()
    columns = (TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("replay", total=total)

        def follow() -> None:
            while not over.wait(0.2):
                progress.update(task, completed=pace.given)
            progress.update(task, completed=pace.given)

        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(5.0)
