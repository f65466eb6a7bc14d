"""`ptystream check`: is the configuration right, and is there somebody to talk to?"""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlparse

import zmq

from ptystream.params.load import load
from ptystream.plan import geometry_of, told_later
from ptystream.security import handshake


def check(config: str) -> int:
    """Body of the command: one line per finding; exit status 1 where a source does not answer."""
    configuration = load(config)
    print(f"{config}: {len(configuration.scans)} scan(s), {len(configuration.engines)} engine(s): the parameters are right")
    bad = 0
    for scan in configuration.scans:
        pixel, later = geometry_of(scan).pixel_size_m, told_later(scan)
        if later:
            print(f"scans.{scan.label}: {', '.join(later)}: to be told by the source's header")
        known = "unknown (object pixels)" if pixel is None else f"{pixel[0] * 1e9:.4g} nm"
        print(f"scans.{scan.label}: object pixel {'not known yet' if later else known}")
        for kind, source in (("data", scan.data), ("data.positions", scan.positions)):
            address = getattr(getattr(source, "parameters", None), "address", None)
            if source is None or address is None:
                continue
            if getattr(source.parameters, "bind", False):
                print(f"scans.{scan.label}.{kind}.address: {address}: will listen; senders connect")
                continue
            for one in (address,) if isinstance(address, str) else address:
                wrong = _wrong(one, source.parameters)
                bad += wrong is not None
                print(f"scans.{scan.label}.{kind}.address: {one}: {wrong or 'answers'}")
    return 1 if bad else 0


def _wrong(address: str, parameters: Any) -> str | None:
    """What keeps a source from being reached, and what to do; None where it can be.

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
