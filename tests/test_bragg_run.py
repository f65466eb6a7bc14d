"""Rocking curves from frames to a reconstruction: complete, growing, repeated from the schedule; and what is told before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptystream.checkpoint import checkpoint_of
from ptystream.dumping import Dumping
from ptystream.engine import Context
from ptystream.engines.bragg import DMBragg3d
from ptystream.events import Frames, Payload, Samples, ScanEnded, ScanStarted
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.bragg_model import Bragg3d
from ptystream.model.bragg_parameters import Bragg3dParameters
from ptystream.model.geometry import Geometry
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.plan import make_plan, models_of
from ptystream.reconstruction import Volume
from ptystream.results import save
from ptystream.run import Run
from ptystream.run_state import EngineEntry, Scan
from ptystream.scan.parameters import ChannelsParameters, PositionsParameters, PtyScanParameters
from ptystream.scan.rocking import RockingScan
from ptystream.storage import ptyr
from ptystream.warming import warm_up

ANGLES, SIDE, STEP, THETA = 10, 24, 0.01, 22.32
OPTICS = {"energy": 8.5, "distance": 2.0, "psize": 200e-6}
ROCKING = {"theta_bragg": THETA, "n_rocking_positions": ANGLES, "rocking_step": STEP}
CHANNELS = {"angle": "rocking", "z": "z"}


def make_model() -> Bragg3d:
    beam = {"aperture": {"size": 0.6e-6, "edge": 3.0}}
    parameters = Bragg3dParameters(rocking=ROCKING, illumination=beam, sample={"fill": 0.1})
    return Bragg3d("s", 0, parameters, Geometry((SIDE, SIDE), 8.5, 2.0, (200e-6, 200e-6)))


def simulated() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(frames (frame, y, x) of whole rocking curves, [y, x, z] of each, angle of each, the sample): a layer."""
    made, r = make_model(), np.random.default_rng(3)
    g, probe = made.bragg, make_model().probe(4e5)
    steps = [(y * 1.2e-7, x * 1.2e-7) for y in range(-3, 4) for x in range(-3, 4)]
    frames, places, angles = [], [], []
    r3, r1 = (np.arange(-32, 32) * p for p in g.resolution_m[:2])
    phases = np.cumsum(r.normal(size=(64, 64)), axis=0) * 0.1 + np.cumsum(r.normal(size=(64, 64)), axis=1) * 0.1
    sample = np.exp(1j * phases)[:, None, :] * (np.abs(r1[None, :, None] + g.sin * r3[:, None, None]) < THICK / 2)
    for y, x in steps:
        depth, corner, _ = made._views(np.array([[y, x]]), np.zeros(1))
        window = tuple(slice(c + 32, c + 32 + n) for c, n in zip((depth[0], *corner[0]), g.shape, strict=True))
        wave = np.fft.fftshift(np.abs(np.fft.fftn(probe * sample[window], norm="ortho")) ** 2)
        counts = np.minimum(r.poisson(wave), 60000).astype("u2")
        for k in range(ANGLES):
            shown = np.fft.fftshift(np.roll(np.fft.ifftshift(counts[k])[::-1], 1, axis=0))  # rows run downwards
            frames.append(shown)
            places.append((y, x, 0.0))
            angles.append(THETA + STEP * (k - ANGLES // 2))
    return np.array(frames), np.array(places), np.array(angles), sample


THICK = 0.4e-6
FRAMES, PLACES, ROCKED, TRUTH = simulated()
ORDER = np.random.default_rng(5).permutation(len(FRAMES))


def make_run(**engine: Any) -> Run:
    data = PtyScanParameters(name="ZmqScan", shape=SIDE, **OPTICS)
    buffer = RockingScan(
        "s",
        data,
        PositionsParameters(channels=ChannelsParameters(**CHANNELS)),
        angles=ANGLES,
        step_deg=STEP,
        tolerance_m=1e-8,
        decide_after=4,
    )
    given = {"numiter": 40, "probe_update_start": 100, "alpha": 0.5, **engine}
    given.setdefault("sample_support", {"shrinkwrap": {"plot": True}})
    entry = EngineEntry("e", "DM_3dBragg", DMBragg3d.Parameters(**given), DMBragg3d)
    return Run("test", [Scan("s", 0, buffer, make_model())], [entry], Context())


def feed(run: Run, which: np.ndarray) -> None:
    buffer = run.scans["s"].buffer
    for index in which.tolist():
        payload = Payload(FRAMES[index].tobytes(), "raw", np.dtype("<u2"), FRAMES[index].shape)
        buffer.feed("data", Frames("a", np.array([index]), (payload,)), 1000 + index)
        y, x, z = PLACES[index]
        channels = {"y": y, "x": x, "z": z, "rocking": ROCKED[index]}
        buffer.feed("positions", Samples("a", index, {k: np.array([v]) for k, v in channels.items()}), 1000 + index)


def end(run: Run) -> None:
    for source in ("data", "positions"):
        run.scans["s"].buffer.feed(source, ScanEnded("a", len(FRAMES)), 0)


def to_the_end(loop: Loop) -> None:
    for _ in range(200):
        if loop.step() is Step.DONE:
            return
    pytest.fail("the run does not end")


def complete() -> Run:
    run = make_run()
    run.scans["s"].buffer.feed("data", ScanStarted("a"), 0)
    feed(run, np.arange(len(FRAMES)))
    end(run)
    to_the_end(Loop(run, LoopSettings(min_frames_for_recon=8)))
    return run


def agreement(run: Run) -> float:
    """Squared correlation of the object with the truth where it is lit."""
    made = run.reconstruction
    held, probe = made.objects["SsG00"], made.probes["SsG00"]
    lit = np.zeros(held.data.shape)
    for depth, corner in zip(made.pods.depth, made.pods.address[:, 0, 4:], strict=True):
        low = np.array([depth, *corner]) - held.corner
        lit[tuple(slice(k, k + n) for k, n in zip(low, probe.data.shape, strict=True))] += np.abs(probe.data) ** 2
    window = tuple(slice(c + 32, c + 32 + n) for c, n in zip(held.corner, held.data.shape, strict=True))
    mine, truth = (array[lit > 0.2 * lit.max()] for array in (held.data, TRUTH[window]))
    return float(np.abs(np.vdot(mine, truth)) ** 2 / (np.vdot(mine, mine).real * np.vdot(truth, truth).real))


@pytest.fixture(scope="module")
def whole() -> Run:
    return complete()


def test_the_misfit_falls_and_the_layer_is_found(whole: Run) -> None:
    _, misfit = whole.history()
    assert misfit[-1, 0] < 0.02 * misfit[0, 0]
    _, _, low, high = whole.iter_info[-1]["shrinkwrap"]
    assert high - low == pytest.approx(THICK, rel=0.1)
    held = whole.reconstruction.objects["SsG00"]
    assert isinstance(held, Volume)
    assert agreement(whole) > 0.95
    counts = whole.ledger()
    assert counts["used"] == len(FRAMES)
    assert whole.frames == len(FRAMES) // ANGLES


@pytest.mark.slow
@pytest.mark.parametrize("order", [np.arange(len(FRAMES)), ORDER], ids=["curve after curve", "any"])
def test_frames_that_come_while_it_runs_give_the_same_object(order: np.ndarray) -> None:
    """A layer at a known place: a shift along the beam could not be seen in the frames."""
    run = make_run(alpha=0.8, numiter=80, sample_support={"size": THICK, "shrinkwrap": None})
    loop = Loop(run, LoopSettings(min_frames_for_recon=8))
    seen = set()
    for part in np.array_split(order, 12):
        feed(run, part)
        loop.step()
        seen.add(run.frames)
        counts = run.ledger()
        assert counts["received"] == counts["used"] + counts["waiting"]
    end(run)
    to_the_end(loop)
    assert len(seen) > 3
    assert run.frames == len(FRAMES) // ANGLES
    assert agreement(run) > 0.95


def test_an_incomplete_curve_does_not_enter() -> None:
    run = make_run(numiter=2)
    feed(run, np.arange(len(FRAMES) - 3))
    end(run)
    to_the_end(Loop(run, LoopSettings(min_frames_for_recon=8)))
    assert run.frames == len(FRAMES) // ANGLES - 1
    counts = run.ledger()
    assert counts["rocking_incomplete"] == ANGLES - 3
    assert counts["received"] == counts["used"] + counts["rocking_incomplete"]


def test_a_schedule_repeats_the_run(whole: Run) -> None:
    again = make_run()
    feed(again, np.arange(len(FRAMES)))
    end(again)
    for entry in whole.schedule:
        again.apply(dict(entry))
    assert np.array_equal(again.reconstruction.objects["SsG00"].data, whole.reconstruction.objects["SsG00"].data)


def test_viewers_and_files_take_volumes(whole: Run, tmp_path: Any) -> None:
    snapshot = whole.snapshot({})
    assert snapshot.object["SsG00"].data.ndim == 3
    assert len(snapshot.positions) == whole.frames
    assert len(snapshot.ledger_map) == len(FRAMES)
    given = load({"scans": SCANS, "engines": {"a": {"name": "DM_3dBragg"}}, "io": {"home": str(tmp_path)}})
    path = save(whole, given, None)
    held, read = whole.reconstruction, ptyr.read(path)
    for mine, its in ((held.probes, read.probe), (held.objects, read.object)):
        one, other = mine["SsG00"], its["SsG00"]
        assert isinstance(other, Volume)
        assert (one.data == other.data).all()
        assert (one.corner, one.pixel_size_m, one.slice_m, one.bragg) == (
            other.corner,
            other.pixel_size_m,
            other.slice_m,
            other.bragg,
        )
    parameters = Bragg3dParameters(rocking=ROCKING, illumination=str(path))
    again = Bragg3d("s", 0, parameters, make_model().geometry).probe(1.0)
    kept = held.probes["SsG00"].data
    assert again == pytest.approx(kept / np.sqrt((np.abs(kept) ** 2).sum()), abs=1e-6)


def test_a_run_goes_on_from_its_dump(tmp_path: Any) -> None:
    def begun(count: int) -> tuple[Run, Loop]:
        run = make_run(numiter=4, sample_support=None)
        feed(run, np.arange(count))
        return run, Loop(run, LoopSettings(min_frames_for_recon=8))

    count = 20 * ANGLES + 3
    run, loop = begun(count)
    for _ in range(3):
        loop.step()
    given = load({"scans": SCANS, "engines": {"e": {"name": "DM_3dBragg"}}, "io": {"home": str(tmp_path)}})
    checkpoint = checkpoint_of(ptyr.read(Dumping(given, None).autosave._dump(run, loop)()))
    again, after = begun(count)
    after.resume(checkpoint)
    mine, its = (r.engine.snapshot().objects["SsG00"] for r in (run, again))
    assert (mine.data == its.data).all()
    assert mine.corner == its.corner
    assert again.reconstruction.pods.depth.tolist() == run.reconstruction.pods.depth.tolist()
    assert again.frames == 20
    feed(again, np.arange(count, len(FRAMES)))
    end(again)
    to_the_end(after)
    assert again.frames == len(FRAMES) // ANGLES


# ---------------------------------------------------------------------- configurations

SOURCE = {"name": "ZmqScan", "address": "tcp://127.0.0.1:5570", "shape": SIDE, **OPTICS}
POSITIONS = {"name": "ZmqScan", "address": "tcp://127.0.0.1:5571", "channels": CHANNELS}
SCANS = {"s": {"name": "Bragg3dModel", "rocking": ROCKING, "data": {**SOURCE, "positions": POSITIONS}}}


def configuration(scan: Any = None, data: Any = None, engine: str = "DM_3dBragg", positions: Any = POSITIONS) -> Any:
    given = {
        "name": "Bragg3dModel",
        "rocking": ROCKING,
        **(scan or {}),
        "data": {**SOURCE, "positions": positions, **(data or {})},
    }
    return load({"scans": {"s": given}, "engines": {"a": {"name": engine, "numiter": 3}}})


def test_a_configuration_becomes_a_model_that_an_engine_runs_on() -> None:
    made = configuration()
    (model,) = models_of(made).values()
    assert isinstance(model, Bragg3d)
    engines = [EngineEntry(e.label, e.name, e.parameters, e.engine) for e in made.engines]
    warm_up(models_of(made)["s"], engines, Context())


def test_the_plan_makes_a_buffer_of_rocking_curves() -> None:
    plan = make_plan(configuration({"rocking": {**ROCKING, "tolerance": 1e-6}}))
    buffer, model = plan.scans[0].make(None)
    assert isinstance(buffer, RockingScan)
    assert isinstance(model, Bragg3d)
    assert (buffer._group, buffer._step, buffer._tolerance) == (ANGLES, STEP, 1e-6)


@pytest.mark.parametrize(
    ("given", "path", "remedy"),
    [
        ({"engine": "DM"}, "engines.a.name: 'DM'", "DM_3dBragg"),
        ({"scan": {"name": "Full", "rocking": None}}, "engines.a.name", "Bragg3dModel"),
        ({"data": {"save": "append", "dfile": "a.ptyd"}}, "scans.s.data.save", "no rocking angles"),
        ({"data": {"energy": None}}, "scans.s.data.energy", "must be given"),
        ({"positions": {**POSITIONS, "channels": {}}}, "scans.s.data.positions.channels.angle", "rocking angle"),
        ({"positions": {**POSITIONS, "unit": "px"}}, "scans.s.data.positions.unit", "metres"),
        ({"scan": {"rocking": {**ROCKING, "theta_bragg": None}}}, "theta_bragg", "must be given"),
        ({"scan": {"resample": 2}}, "scans.s.resample", "must be 1"),
        ({"scan": {"propagation": "nearfield"}}, "scans.s.propagation", "farfield"),
        ({"scan": {"coherence": {"num_probe_modes": 2}}}, "scans.s.coherence", ""),
    ],
)
def test_what_cannot_be_is_told_before_anything_starts(given: dict[str, Any], path: str, remedy: str) -> None:
    if given.get("scan", {}).get("name") == "Full":
        given["scan"].pop("rocking")
        flat = {"name": "Full", "data": {**SOURCE, "positions": POSITIONS}}
        made = load({"scans": {"s": flat}, "engines": {"a": {"name": "DM_3dBragg"}}})
        with pytest.raises(ConfigurationError) as caught:
            models_of(made)
    else:
        with pytest.raises(ConfigurationError) as caught:
            models_of(configuration(**given))
    text = "\n".join(str(fault) for fault in caught.value.faults)
    assert path in text
    assert remedy in text
