"""A ptypy script as it is written for ptystream: a simulated detector sends, the script reconstructs, plots and looks.

usage: from_a_script.py [FOLDER]
"""

from __future__ import annotations

import sys
import threading

from ptystream import Param, Ptycho
from ptystream.detectors.simulated.simulator import Beamline, run
from ptystream.detectors.zmq import Sender


def parameters(folder: str, beam: Beamline, frames: str, positions: str) -> Param:
    """As a ptypy script has them."""
    p = Param()
    p.run = "flower"
    p.verbose_level = "interactive"
    p.min_frames_for_recon = 32

    p.io.home = folder
    p.io.rfile = "recons/%(run)s_%(engine)s_%(iterations)04d.ptyr"
    p.io.autoplot = Param(dump=True, interval=10, make_movie=True)
    p.io.benchmark = "all"

    p.scans.flower = Param()
    p.scans.flower.name = "BlockFull"
    p.scans.flower.coherence.num_probe_modes = 2
    p.scans.flower.illumination.aperture.size = 0.42 * beam.side * beam.pixel_m
    p.scans.flower.data = Param(name="ZmqScan", address=frames, shape=beam.side, **beam.geometry())
    p.scans.flower.data.positions = Param(name="ZmqScan", address=positions, samples_per_frame=beam.samples_per_frame)

    p.engines.engine00 = Param()
    p.engines.engine00.name = "DM_pycuda"  # ptypy's accelerated names mean the same engine here
    p.engines.engine00.numiter = 60
    p.engines.engine00.numiter_contiguous = 1
    p.engines.engine00.average_last = 10  # ours: DM's iterates wander, their mean does not
    return p


def main(folder: str = "results/script", frames_in_all: int = 300) -> Ptycho:
    """Simulate and reconstruct."""
    beam = Beamline(frames=frames_in_all, side=64, rate_hz=100.0)
    with Sender(timeout_s=120) as frames, Sender(timeout_s=120) as positions:
        detector = threading.Thread(target=run, args=(beam, frames, positions))
        detector.start()
        P = Ptycho(parameters(folder, beam, frames.address, positions.address)).run()
        detector.join()
    print(P.probe, P.obj)
    print("fourier error of the last iteration:", P.runtime.iter_info[-1].error[0])
    print("photon misfit and what noise alone would give:", *P.misfit[-1, 1:])
    return P


if __name__ == "__main__":
    main(*sys.argv[1:])
