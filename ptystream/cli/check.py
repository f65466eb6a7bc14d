"""`ptystream check`: is the configuration right, and is there somebody to talk to?"""

from __future__ import annotations

import socket
from urllib.parse import urlparse

from ptystream.params.load import load
from ptystream.plan import geometry_of


def check(config: str) -> int:
    """Body of the command: one line per finding; exit status 1 where a source does not answer."""
    configuration = load(config)
    print(f"{config}: {len(configuration.scans)} scan(s), {len(configuration.engines)} engine(s): the parameters are right")
    bad = 0
    for scan in configuration.scans:
        pixel = geometry_of(scan).pixel_size_m
        print(f"scans.{scan.label}: object pixel {'unknown (object pixels)' if pixel is None else f'{pixel[0] * 1e9:.4g} nm'}")
        for kind, source in (("data", scan.data), ("data.positions", scan.positions)):
            address = getattr(getattr(source, "parameters", None), "address", None)
            if source is None or address is None:
                continue
            if source.parameters.bind:
                print(f"scans.{scan.label}.{kind}.address: {address}: will listen; senders connect")
                continue
            where = urlparse(address)
            try:
                socket.create_connection((where.hostname or "", where.port or 0), timeout=2.0).close()
                print(f"scans.{scan.label}.{kind}.address: {address}: answers")
            except OSError as error:
                bad += 1
                print(f"scans.{scan.label}.{kind}.address: {address}: {error}; start the sender, or correct the address")
    return 1 if bad else 0
