"""A RunEngine and a live reconstruction in one process: simulated motors move, a simulated detector sees diffraction there.

`python examples/bluesky_demo.py [FOLDER] [--plan grid|spiral|fermat|fly]`
"""

from __future__ import annotations

import argparse
import threading
from typing import Any

import bluesky.plans as bp
from bluesky import RunEngine

from ptystream.detectors.bluesky import Documents
from ptystream.detectors.bluesky.simulator import Camera, FlyingDetector, Stage, fly_plan, motors
from ptystream.detectors.simulated.simulator import Beamline
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.session import Session

PLANS = ("grid", "spiral", "fermat", "fly")


def plan_of(kind: str, stage: Stage, folder: str) -> Any:
    """A plan of bluesky over a field of 2 by 2 micrometres."""
    y, x = motors()
    camera = Camera(stage, (y, x))
    if kind == "fly":
        return fly_plan(FlyingDetector(stage, folder, rate_hz=100.0, samples_per_frame=4))
    if kind == "grid":
        return bp.grid_scan([camera], y, -1.0, 1.0, 14, x, -1.03, 1.03, 14, snake_axes=True)
    if kind == "spiral":
        return bp.spiral([camera], x, y, 0.0, 0.0, 2.2, 2.2, 0.15, 12)
    return bp.spiral_fermat([camera], x, y, 0.0, 0.0, 2.2, 2.2, 0.08, 1.0)


def main(folder: str = "results/bluesky", kind: str = "fermat", iterations: int = 60) -> Session:
    """Scan and reconstruct; the result is a `.ptyr` file in `folder`."""
    stage = Stage(Beamline(frames=200, side=64, photons=1e6, step_px=4.5))
    key = ("fly-y", "fly-x") if kind == "fly" else ("stage_y", "stage_x")
    documents = Documents("demo")
    data = {
        "name": "BlueskyScan",
        "via": "process",
        "feed": "demo",
        "shape": 64,
        **stage.beamline.geometry(),
        "find": {"y": f"event:{key[0]}; sign=-1", "x": f"event:{key[1]}; sign=-1"},
    }
    configuration = load(
        {
            "run": kind,
            "io": {"home": folder, "rfile": "%(run)s.ptyr"},
            "scans": {"flower": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 8e-7}}}},
            "engines": {"dm": {"name": "DM", "numiter": iterations}},
        }
    )
    ready = threading.Event()
    session = Session(make_plan(configuration), metrics=Metrics(), on_ready=ready.set)
    reconstruction = threading.Thread(target=session.run)
    reconstruction.start()
    while not ready.wait(0.5) and reconstruction.is_alive():
        pass
    engine: Any = RunEngine({})
    engine.subscribe(documents)
    engine.subscribe(lambda name, document: print(name, session.status()["used"], "frames used") if name == "stop" else None)
    engine(plan_of(kind, stage, folder))
    reconstruction.join()
    print(session.results[0], {key: session.status()[key] for key in ("used", "iteration", "misfit")})
    return session


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="results/bluesky")
    parser.add_argument("--plan", choices=PLANS, default="fermat")
    given = parser.parse_args()
    main(given.folder, given.plan)
