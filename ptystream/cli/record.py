"""`ptystream record`: keep what arrives."""

from __future__ import annotations

import threading
from pathlib import Path

from rich.console import Console

from ptystream import __version__
from ptystream.events import Event, ScanEnded
from ptystream.ingest import Source
from ptystream.params.load import load
from ptystream.plan import transport_of
from ptystream.recording import Recorder
from ptystream.results import as_json
from ptystream.session import SessionError
from ptystream.transport import Message


def record(config: str, output: str) -> int:
    """Body of the command: ends when every source has ended its scan, or on ctrl-c."""
    configuration = load(config)
    console = Console(stderr=True)
    over, counts = threading.Event(), {"messages": 0}
    open_channels: set[str] = set()
    failures: list[BaseException] = []

    def route(channel: str, event: Event, message: Message) -> None:
        counts["messages"] += 1
        if isinstance(event, ScanEnded):
            open_channels.discard(channel)
            if not open_channels:
                over.set()

    def failed(error: BaseException) -> None:
        failures.append(error)
        over.set()

    recorder = Recorder(output, {"configuration": as_json(configuration.given), "version": __version__})
    sources = []
    for scan in configuration.scans:
        for kind, source in scan.sources.items():
            name = f"{scan.label}/{kind}"
            open_channels.add(name)
            decoder = source.plugin.decoder(source.parameters, name)
            transport = transport_of(source, name, decoder, configuration.root)
            sources.append(Source(transport, decoder, route, tap=recorder, on_failure=failed))
    try:
        for thread in sources:
            thread.start()
        with console.status("recording") as status:
            while not over.wait(0.5):
                status.update(f"recording: {counts['messages']} events, {recorder.bytes_written / 1e6:.1f} MB")
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        recorder.flush()
        for thread in sources:
            thread.stop()
        recorder.close(finished=True)
    if failures:
        raise SessionError(str(failures[0]))
    console.print(f"{Path(output)}: {recorder.bytes_written / 1e6:.1f} MB", highlight=False)
    return 0
