"""Small scans for tests of the loop and the session: no sockets, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ptystream.detectors.simulated.simulator import Beamline
from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.events import Frames, Payload, Samples, ScanEnded, ScanStarted
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.geometry import Geometry
from ptystream.model.scan_model import Full, ScanModel
from ptystream.run import Run
from ptystream.run_state import EngineEntry, Scan
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan

BEAM = Beamline(frames=92, side=32, photons=2e5, step_px=3.0, samples_per_frame=1)
_TRUTH = (BEAM.probe(), BEAM.object())
PATTERNS = np.stack([BEAM.pattern(k, _TRUTH) for k in range(BEAM.frames)])
PLACES = BEAM.positions_m()
GEOMETRY = BEAM.geometry()


def make_scan(
    label: str,
    number: int,
    *,
    decide_after: int = 16,
    decisions: dict | None = None,
    also: tuple[PositionsParameters, ...] = (),
    model: type[ScanModel] = Full,
    **data: object,
) -> Scan:
    """A scan of the small beamline."""
    given = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, **data}
    buffer = PtyScan(
        label, PtyScanParameters(**given), PositionsParameters(), decide_after=decide_after, decisions=decisions, also=also
    )
    geometry = Geometry((BEAM.side,) * 2, GEOMETRY["energy"], GEOMETRY["distance"], (GEOMETRY["psize"],) * 2)
    illumination = {"aperture": {"size": 0.42 * BEAM.side * BEAM.pixel_m}}
    return Scan(label, number, buffer, model(label, number, model.Parameters(illumination=illumination), geometry))


def make_run(
    *,
    engines: list[dict] | None = None,
    engine: Any = DM,
    threads: int = 1,
    labels: tuple[str, ...] = ("s",),
    **settings: object,
) -> Run:
    """A run of a scan for each label, with an engine per dict of parameters; `settings` as of `make_scan`."""
    given = engines or [{"numiter": 3}]
    name = engine.__name__
    entries = [EngineEntry(f"e{k}", name, engine.Parameters(**parameters), engine) for k, parameters in enumerate(given)]
    scans = [make_scan(label, k, **settings) for k, label in enumerate(labels)]
    return Run("test", scans, entries, Context(threads=threads))


def feed(run: Run, first: int, stop: int, *, positions: bool = True, patterns: np.ndarray = PATTERNS, label: str = "s") -> None:
    """Frames [first, stop) and their positions arrive."""
    buffer = run.scans[label].buffer
    if first == 0:
        buffer.feed("data", ScanStarted("a"), 0)
    payloads = tuple(Payload(p.tobytes(), "raw", p.dtype, p.shape) for p in patterns[first:stop])
    buffer.feed("data", Frames("a", np.arange(first, stop), payloads), 1000 + first)
    if positions:
        part = PLACES[first:stop]
        buffer.feed("positions", Samples("a", first, {"y": part[:, 0], "x": part[:, 1]}), 1000 + first)


def end(run: Run, count: int = BEAM.frames, label: str = "s") -> None:
    """Both sources say that it is over."""
    for source in ("data", "positions"):
        run.scans[label].buffer.feed(source, ScanEnded("a", count), 0)


def eventful(run: Run, visited: Sequence[int]) -> Run:
    """Frames come in portions of which one has a single frame; one moves, one is withdrawn, one gets another dose.

    `visited`: rows of a pass over some of them, midway; none where there are none.
    """
    loop = Loop(run, LoopSettings(min_frames_for_recon=20, ranks=1))
    for first, stop in ((0, 40), (40, 41), (41, 78), (78, BEAM.frames)):
        feed(run, first, stop)
        assert loop.step() is Step.WORKED
        if stop == 41:
            place = [float(v) for v in PLACES[7] + 1.5e-8]
            run.apply({"do": "revise", "scan": "s", "what": "position", "index": 7, "value": place})
            run.apply({"do": "revise", "scan": "s", "what": "withdrawn", "index": 12, "value": None})
            run.apply({"do": "revise", "scan": "s", "what": "dose", "index": 20, "value": [1.1]})
            run.apply({"do": "revise", "scan": "s", "what": "mask", "value": [[3, 4], [9, 11]]})
            run.snapshot({})
            if visited:
                run.apply({"do": "iterate", "iterations": 1, "rows": [[row, 1] for row in visited]})
    end(run)
    run.apply({"do": "average"})
    for _ in range(60):
        if loop.step() is Step.DONE:
            return run
    pytest.fail("the run does not end")


def same_storages(one: Run, other: Run, tolerance: float) -> None:
    """Probes and objects of two runs lie alike and differ by no more than that part of their largest value."""
    assert one.reconstruction is not None and other.reconstruction is not None
    for kind in ("probes", "objects"):
        for name, storage in getattr(one.reconstruction, kind).items():
            theirs = getattr(other.reconstruction, kind)[name]
            assert theirs.offset == storage.offset
            np.testing.assert_allclose(theirs.data, storage.data, rtol=0, atol=tolerance * np.abs(storage.data).max())
