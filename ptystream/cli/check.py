"""`ptystream check`: is the configuration right, and is there somebody to talk to?"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import zmq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ptystream.assessment.offline import try_conventions
from ptystream.params.load import Configuration, SourceConfiguration, load
from ptystream.plan import geometry_of, told_later
from ptystream.recording import Recording
from ptystream.security import handshake
from ptystream.storage import tiled_entry


def check(config: str, listen: float = 0.0, convention: str | None = None, frames: int = 200) -> int:
    """Body of the command: one line per finding; exit status 1 where a source, or a Tiled server, does not answer.

    `listen`: seconds for which sources that describe what they send are listened to. `convention`: a recording instead of the
    sources: which orientation of the detector fits its first `frames`; status 1 where the configured one does not.
    """
    configuration = load(config)
    if convention is not None:
        return _convention(configuration, convention, frames)
    print(f"{config}: {len(configuration.scans)} scan(s), {len(configuration.engines)} engine(s): the parameters are right")
    bad = 0
    for scan in configuration.scans:
        pixel, later = geometry_of(scan).pixel_size_m, told_later(scan)
        if later:
            print(f"scans.{scan.label}: {', '.join(later)}: to be told by the source's header")
        known = "unknown (object pixels)" if pixel is None else f"{pixel[0] * 1e9:.4g} nm"
        print(f"scans.{scan.label}: object pixel {'not known yet' if later else known}")
        for channel, source in scan.sources.items():
            kind = "data" if channel == "data" else f"data.{channel}"
            if source is None:
                continue
            via = getattr(source.parameters, "via", "zmq")
            address = getattr(source.parameters, "address", None) if via == "zmq" else None
            if hasattr(source.plugin, "found"):
                bad += _found(source, f"{scan.label}/{channel}", f"scans.{scan.label}.{kind}", listen)
            if address is None:
                continue
            for one in dict.fromkeys(getattr(source.parameters, "addresses", (address,))):
                if getattr(source.parameters, "bind", False):
                    print(f"scans.{scan.label}.{kind}.address: {one}: will listen; senders connect")
                    continue
                wrong = _wrong(one, source.parameters)
                bad += wrong is not None
                print(f"scans.{scan.label}.{kind}.address: {one}: {wrong or 'answers'}")
    return 1 if bad + _tiled(configuration) else 0


def _tiled(configuration: Configuration) -> int:
    """Whether results could go into the Tiled server that is asked for; 1 where not."""
    io = configuration.root.io
    if io.tiled.uri is None:
        return 0
    try:
        if not tiled_entry.is_installed():
            raise tiled_entry.TiledError("the client of Tiled is not installed: pip install 'ptystream[tiled]'")
        key = tiled_entry.key_of(None if io.tiled.api_key_file is None else Path(io.home) / io.tiled.api_key_file)
        wrong = tiled_entry.wrong(io.tiled.uri, key)
    except tiled_entry.TiledError as error:
        wrong = str(error)
    print(f"io.tiled: {io.tiled.uri}: {wrong or 'answers, and lets the key in'}")
    return int(wrong is not None)


def _convention(configuration: Configuration, path: str, frames: int) -> int:
    """Print the ranking, and what to write in the configuration."""
    console = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("trying the orientations", total=None)
        found = try_conventions(
            configuration, Recording(path), frames, lambda done, total: progress.update(task, completed=done, total=total)
        )
    for line in found.lines():
        print(line)
    return 0 if found.fits else 1


def _wrong(address: str, parameters: Any) -> str | None:
    """What keeps an address of a source from being reached, and what to do; None where it can be.

    A PUSH socket would deal frames to whoever asks, so of one only the port is tried, and not the keys.
    """
    where = urlparse(address)
    if where.scheme == "tcp":
        try:
            socket.create_connection((where.hostname or "", where.port or 0), timeout=2.0).close()
        except OSError as error:
            return f"{error}; start the sender, or correct the address"
    kind = {"acknowledged": zmq.DEALER, "pub": zmq.SUB}.get(getattr(parameters, "link", ""))
    return None if kind is None else handshake(address, kind, parameters.keys, parameters.peer_keys)


def _found(source: SourceConfiguration, channel: str, path: str, listen: float) -> int:
    """What a source itself finds out, and of its stream within `listen` seconds (0: nothing is listened to): the lines of
    `plugin.found(parameters, transport, decoder, listen)`; 1 where it raises `OSError`."""
    decoder = source.plugin.decoder(source.parameters, channel)
    transport = source.plugin.transport(source.parameters, channel, decoder)
    try:
        for line in source.plugin.found(source.parameters, transport, decoder, listen):
            print(f"{path}: {line}")
    except OSError as error:
        print(f"{path}: {error}")
        return 1
    return 0
