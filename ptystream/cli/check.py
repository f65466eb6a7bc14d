"""`ptystream check`: is the configuration right, and is there somebody to talk to?"""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlparse

import zmq

from ptystream.params.load import load
from ptystream.plan import geometry_of
from ptystream.security import handshake


def check(config: str) -> int:
    """Body of the command: one line per finding; exit status 1 where a source does not answer."""
    configuration = load(config)
    print(f"{config}: {len(configuration.scans)} scan(s), {len(configuration.engines)} engine(s): the parameters are right")
    bad = 0
    for scan in configuration.scans:
        pixel = geometry_of(scan).pixel_size_m
        print(f"scans.{scan.label}: object pixel {'unknown (object pixels)' if pixel is None else f'{pixel[0] * 1e9:.4g} nm'}")
        for channel, source in scan.sources.items():
            kind = "data" if channel == "data" else f"data.{channel}"
            address = getattr(getattr(source, "parameters", None), "address", None)
            if address is None:
                continue
            if source.parameters.bind:
                print(f"scans.{scan.label}.{kind}.address: {address}: will listen; senders connect")
                continue
            wrong = _wrong(source.parameters)
            bad += wrong is not None
            print(f"scans.{scan.label}.{kind}.address: {address}: {wrong or 'answers'}")
    return 1 if bad else 0


def _wrong(parameters: Any) -> str | None:
    """What keeps a source from being reached, and what to do; None where it can be.

    A PUSH socket would deal frames to whoever asks, so of one only the port is tried, and not the keys.
    """
    where = urlparse(parameters.address)
    if where.scheme == "tcp":
        try:
            socket.create_connection((where.hostname or "", where.port or 0), timeout=2.0).close()
        except OSError as error:
            return f"{error}; start the sender, or correct the address"
    kind = {"acknowledged": zmq.DEALER, "pub": zmq.SUB}.get(getattr(parameters, "link", ""))
    return None if kind is None else handshake(parameters.address, kind, parameters.keys, parameters.peer_keys)
