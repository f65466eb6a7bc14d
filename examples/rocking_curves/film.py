"""Rocking curves of a crystalline film, simulated, streamed over the native wire and reconstructed by DM_3dBragg.

usage: film.py [FOLDER]

The film lies across the z axis, 0.4 µm thick, with a round hole; its planes are displaced, which is a phase that changes in it.
The result is written to FOLDER (default: the present one), with its picture in the layout 'bragg3d'.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ptystream
from ptystream.detectors.zmq import Sender
from ptystream.model.bragg_model import Bragg3d
from ptystream.model.bragg_parameters import Bragg3dParameters
from ptystream.model.geometry import Geometry

THICK_M, HOLE_M = 0.4e-6, 0.25e-6
ANGLES, SIDE, PHOTONS = 16, 32, 1e7
STEPS, STEP_M = 11, 0.15e-6
OPTICS: dict[str, Any] = {"energy": 8.5, "distance": 2.0, "psize": 150e-6}
ROCKING: dict[str, Any] = {"theta_bragg": 22.32, "n_rocking_positions": ANGLES, "rocking_step": 0.0075}
BEAM: dict[str, Any] = {"aperture": {"size": 0.7e-6, "edge": 3.0}}


def film(x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.complex128]:
    """How strongly, and with which phase, the crystal reflects at (x, y, z), metres."""
    inside = (np.abs(z) < THICK_M / 2) & (np.hypot(x - 0.3e-6, y + 0.2e-6) > HOLE_M)
    displaced = 1.2 * np.sin(2 * np.pi * x / 1.3e-6) * np.cos(2 * np.pi * y / 1.7e-6) + 0.8 * np.tanh((x + y) / 0.15e-6)
    return np.asarray(inside * np.exp(1j * displaced))


def simulate(seed: int = 0) -> tuple[NDArray[np.uint16], NDArray[np.float64], NDArray[np.float64]]:
    """(frames (frame, y, x), positions (frame, [y, x]) in metres, rocking angles (frame,) in degrees)."""
    psize = OPTICS["psize"]
    optics = Geometry((SIDE, SIDE), OPTICS["energy"], OPTICS["distance"], (psize, psize))
    model = Bragg3d("film", 0, Bragg3dParameters(rocking=ROCKING, illumination=BEAM), optics)
    lattice, probe, random = model.bragg, model.probe(PHOTONS), np.random.default_rng(seed)
    voxels = np.stack(np.indices(lattice.shape), axis=-1) - np.array(lattice.shape) // 2
    frames, places, angles = [], [], []
    for row in range(STEPS):
        for column in range(STEPS):
            y, x = (row - STEPS // 2) * STEP_M, (column - STEPS // 2) * STEP_M
            r3, r1, r2 = np.moveaxis((voxels + lattice.lattice(np.array([[x, 0.0, y]]))[0]) * lattice.resolution_m, -1, 0)
            wave = probe * film(r3 * lattice.cos, r2, r1 + r3 * lattice.sin)
            counts = random.poisson(np.abs(np.fft.fftn(wave, norm="ortho")) ** 2)
            for k, turned in enumerate(np.fft.fftshift(counts, axes=0)):  # q3 from its lowest
                upright = np.roll(turned[::-1], 1, axis=0)  # q1 runs up the detector, whose rows are counted downwards
                frames.append(np.minimum(np.fft.fftshift(upright), 65534).astype(np.uint16))
                places.append((y, x))
                angles.append(ROCKING["theta_bragg"] + ROCKING["rocking_step"] * (k - ANGLES // 2))
    return np.array(frames), np.array(places), np.array(angles)


def send(frames: Sender, positions: Sender) -> None:
    """The beamline: one stream of frames, one of positions with the rocking angle."""
    images, places, angles = simulate()
    frames.start("film", num_frames=len(images))
    positions.start("film")
    for first in range(0, len(images), ANGLES):
        curve = slice(first, first + ANGLES)
        frames.frames(first, images[curve])
        positions.samples(first, y=places[curve, 0], x=places[curve, 1], angle=angles[curve])
    frames.end(len(images))
    positions.end(len(images))
    frames.flush(600)
    positions.flush(600)


def main(home: str = ".", numiter: int = 80) -> ptystream.Ptycho:
    """Reconstruct, and leave result and picture in a folder."""
    with Sender() as frames, Sender() as positions:
        p = ptystream.Param(run="film", io={"home": home, "rfile": "%(run)s.ptyr"}, min_frames_for_recon=STEPS**2)
        p.io.update({"recording": {"active": False}, "autosave": {"active": False}})
        where = {"name": "ZmqScan", "address": positions.address, "channels": {"angle": "angle"}}
        data = {"name": "ZmqScan", "address": frames.address, "shape": SIDE, **OPTICS, "positions": where}
        p.scans = {"film": {"name": "Bragg3dModel", "rocking": ROCKING, "illumination": BEAM, "data": data}}
        p.engines = {"engine": {"name": "DM_3dBragg", "numiter": numiter, "alpha": 0.5, "average_last": 10}}
        beamline = threading.Thread(target=send, args=(frames, positions))
        beamline.start()
        P = ptystream.Ptycho(p).run()
        beamline.join()
    P.plot_overview(str(Path(home) / "film.png"), "bragg3d")
    return P


if __name__ == "__main__":
    main(*sys.argv[1:])
