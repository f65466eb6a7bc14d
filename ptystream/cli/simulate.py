"""`ptystream simulate`: a simulated beamline that speaks the native wire."""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points


def simulate(frames_address: str, positions_address: str, frames: int, rate: float, side: int, seed: int, wait: bool) -> int:
    """Body of the command. Prints one line of JSON with the addresses and the geometry before it begins."""
    simulator = next(iter(entry_points(group="ptystream.simulators", name="simulated"))).load()
    beamline = simulator.Beamline(frames=frames, side=side, rate_hz=rate, seed=seed)
    sender = simulator.Sender
    with sender(frames_address, timeout_s=600.0) as data, sender(positions_address, timeout_s=600.0) as positions:
        told = {"frames": data.address, "positions": positions.address, "samples_per_frame": beamline.samples_per_frame}
        told |= {"geometry": beamline.geometry(), "pixel_m": beamline.pixel_m}
        print(json.dumps(told), flush=True)
        if wait and not sys.stdin.readline():
            return 1
        simulator.run(beamline, data, positions)
    return 0
