"""A plan that ends a scan when the live reconstruction is good enough: real RunEngine, real sockets, a whole session."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import numpy as np
import pytest
from bluesky import RunEngine
from problems import BEAM, GEOMETRY

from ptystream.detectors.ophyd import classic
from ptystream.detectors.ophyd.plans import until_converged
from ptystream.detectors.zmq.sender import Sender
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.publish.publisher import Publisher
from ptystream.session import Session


@pytest.fixture
def engine() -> Iterator[RunEngine]:
    made = RunEngine(call_returns_result=True)
    yield made
    made.loop.call_soon_threadsafe(made.loop.stop)
    made._th.join(60)
    made.loop.close()


@pytest.mark.slow
def test_a_session_is_stopped_by_a_plan_when_it_is_good_enough(tmp_path: Path, engine: RunEngine) -> None:
    """A detector that sends what it sees at the places where the motors are; the plan has points without an end."""
    from ophyd.sim import SynAxis

    y, x = SynAxis(name="y"), SynAxis(name="x")
    truth = (BEAM.probe(), BEAM.object())
    experiment, random = BEAM.experiment(truth), np.random.default_rng(0)
    with Sender("tcp://127.0.0.1:*") as frames, Sender("tcp://127.0.0.1:*") as places:
        source = {"name": "ZmqScan", "address": frames.address}
        data = {**source, "shape": BEAM.side, **GEOMETRY, "positions": {"name": "ZmqScan", "address": places.address}}
        given = {
            "run": "t",
            "min_frames_for_recon": 16,
            "io": {"home": str(tmp_path), "rfile": "%(run)s.ptyr"},
            "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
            "engines": {"e": {"name": "DM", "numiter": 20}},
        }
        publisher = Publisher()
        session = Session(make_plan(load(given)), metrics=Metrics(), publisher=publisher)
        thread = threading.Thread(target=session.run, daemon=True)
        thread.start()
        live, sent = classic.Reconstruction(publisher.endpoint, name="live"), []

        def expose() -> None:
            place = np.array([[y.position, x.position]])
            seen = replace(experiment, places=place / BEAM.pixel_m).intensity(0)
            number = len(sent)
            frames.frames(number, random.poisson(seen)[None].astype("u2"))
            places.samples(number, y=place[:, 0], x=place[:, 1])
            sent.append(number)

        counter = classic.Frames(publisher.endpoint, name="frames", expose=expose)

        def point(place: np.ndarray) -> Any:
            yield from bps.mv(y, place[0], x, place[1])
            yield from bps.trigger(counter, wait=True)

        def plan() -> Any:
            yield from bps.stage_all(live, counter)
            frames.start("a")
            places.start("a")
            count = yield from until_converged(cycle(BEAM.positions_m()), point, live, error=40.0, least=20, steady=1)
            frames.end(count)
            places.end(count)
            yield from bps.unstage_all(live, counter)
            return count

        count = engine(plan()).plan_result
        thread.join(60.0)
        publisher.close()
    assert not thread.is_alive()
    assert count >= 20
    assert len(session.results) == 1
    assert session.results[0].exists()
