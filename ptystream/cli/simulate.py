"""`ptystream simulate`: a simulated beamline, on the wires of a configuration or on two native ones."""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from ptystream.params.errors import ConfigurationError, faults_of
from ptystream.params.load import load, read
from ptystream.simulating import Simulation

FRAMES, RATE_HZ, SIDE = 400, 100.0, 128
STEM_FRAMES, STEM_SIDE = 1024, 64
FRAMES_ADDRESS, POSITIONS_ADDRESS = "tcp://127.0.0.1:5570", "tcp://127.0.0.1:5571"


def simulate(
    config: str | None,
    frames_address: str | None,
    positions_address: str | None,
    frames: int | None,
    rate: float,
    side: int | None,
    seed: int,
    wait: bool,
    scans: int,
    first: int,
    stem: bool = False,
    microscope: str | None = None,
) -> int:
    """Body of the command. Prints one line of JSON with addresses and, without a configuration, geometry before it begins."""
    if config is not None:
        for name, value in (
            ("frames-address", frames_address),
            ("positions-address", positions_address),
            ("side", side),
            ("stem", stem or None),
            ("microscope", microscope),
        ):
            if value is not None:
                raise RuntimeError(f"--{name} {value}: the configuration says that; leave one of them out")
        return _of(config, frames, rate, seed, wait, scans, first)
    if microscope is not None:
        given = (("positions-address", positions_address), ("frames", frames), ("side", side), ("stem", stem or None))
        for name, value in given:
            if value is not None:
                raise RuntimeError(f"--{name} {value}: {microscope} says that; leave one of them out")
        return _scanned(microscope, frames_address or FRAMES_ADDRESS, rate, seed, wait)
    simulator = next(iter(entry_points(group="ptystream.simulators", name="simulated"))).load()
    if stem:
        microscopes = next(iter(entry_points(group="ptystream.simulators", name="stem"))).load()
        beamline = microscopes.StemBeamline(frames or STEM_FRAMES, side or STEM_SIDE, rate, seed)
    else:
        beamline = simulator.Beamline(frames=frames or FRAMES, side=side or SIDE, rate_hz=rate, seed=seed)
    sender = simulator.Sender
    frames_address, positions_address = frames_address or FRAMES_ADDRESS, positions_address or POSITIONS_ADDRESS
    with sender(frames_address, timeout_s=600.0) as data, sender(positions_address, timeout_s=600.0) as positions:
        told = {"frames": data.address, "positions": positions.address, "samples_per_frame": beamline.samples_per_frame}
        told |= {"geometry": beamline.geometry(), "pixel_m": beamline.pixel_m}
        if stem:
            told["microscope"] = beamline.told()
        print(json.dumps(told), flush=True)
        if wait and not sys.stdin.readline():
            return 1
        simulator.run(beamline, data, positions)
    return 0


def _scanned(file: str, address: str, rate: float, seed: int, wait: bool) -> int:
    """A scan of the microscope that a file describes: frames alone, since its scan generator tells no positions."""
    given = read(Path(file))
    simulators = entry_points(group="ptystream.simulators")
    microscopes, simulator = (next(iter(simulators.select(name=name))).load() for name in ("stem", "simulated"))
    try:
        beamline = microscopes.StemBeamline(rate_hz=rate, seed=seed, given=given)
    except ValidationError as error:
        raise ConfigurationError(faults_of(error, microscopes.StemParameters, file)) from error
    except ValueError as error:
        raise RuntimeError(f"{file}: {error}") from error
    with simulator.Sender(address, timeout_s=600.0) as data:
        told = {"frames": data.address, "number": beamline.frames, "geometry": beamline.geometry()}
        print(json.dumps(told), flush=True)
        if wait and not sys.stdin.readline():
            return 1
        simulator.run(beamline, data)
    return 0


def _of(config: str, frames: int | None, rate: float, seed: int, wait: bool, scans: int, first: int) -> int:
    """The sources of a configuration."""
    configuration, console = load(config), Console(stderr=True)
    with Simulation(configuration, frames=frames, rate_hz=rate, seed=seed) as simulation:
        addresses = {channel: one.address for channel, one in simulation.simulators.items()}
        print(json.dumps({"addresses": addresses, "frames": simulation.frames}), flush=True)
        if wait and not sys.stdin.readline():
            return 1
        console.print(f"waiting for: ptystream live {config}", highlight=False, markup=False)
        try:
            simulation.run(scans, first, lambda number: console.print(f"scan {number}", highlight=False))
        except KeyboardInterrupt:
            simulation.stopped.set()
            return 130
    return 0
