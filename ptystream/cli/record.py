"""`ptystream record` and `ptystream replay`: keep what arrives, give it back as it came."""

from __future__ import annotations

import threading
from pathlib import Path

from rich.console import Console

from ptystream.events import Event, ScanEnded
from ptystream.ingest import Source
from ptystream.params.load import load, plugins
from ptystream.plan import transport_of
from ptystream.recording import Recorder, Recording
from ptystream.replay import Replay
from ptystream.session import SessionError
from ptystream.transport import Message, TransportClosed


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

    recorder = Recorder(output, {"configuration": str(configuration.given)})
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


def replay(file: str, speed: float, to: list[str]) -> int:
    """Body of the command. Channels without an address get free ports, which are printed."""
    recording = Recording(file)
    messages = sum(1 for _ in recording)
    channels = sorted(set(recording.channels.values()))
    addresses = dict(item.split("=", 1) for item in to if "=" in item)
    unknown = set(addresses) - set(channels)
    if unknown or len(addresses) != len(to):
        raise RuntimeError(f"--to {to}: must be CHANNEL=ADDRESS with a channel of {', '.join(channels)}")
    sender = plugins("detectors")["ZmqScan"].Sender
    pace = Replay(recording, channels, speed)
    console = Console(stderr=True)
    console.print(f"{file}: {messages} messages" + (f", {recording.torn} bytes torn at the end" if recording.torn else ""))

    def give(channel: str) -> None:
        transport = pace.transport(channel)
        with sender(addresses.get(channel, "tcp://127.0.0.1:*"), timeout_s=600.0) as out:
            console.print(f"{channel} on {out.address}", highlight=False)
            transport.open()
            try:
                while True:
                    message = transport.receive(1.0)
                    if message is not None:
                        out.again(message.parts)
            except TransportClosed:
                out.flush(600.0)

    threads = [threading.Thread(target=give, args=(channel,), name=channel) for channel in channels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0
