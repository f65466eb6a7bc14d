"""The quick look: its pictures against the sample, angle and descan against what was simulated, and what it leaves alone."""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import PATTERNS, PLACES, end, feed, make_run

from ptystream.assessment import looking
from ptystream.assessment.following import Following, lacking
from ptystream.assessment.looking import Looker
from ptystream.detectors.simulated.microscope import Microscope
from ptystream.detectors.simulated.stemscan import StemParameters
from ptystream.direct import quick
from ptystream.direct.quick import Kept, found
from ptystream.direct.raster import Raster
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.metrics import Metrics
from ptystream.model.geometry import Geometry
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.publish.measured import faults, told
from ptystream.publish.schema import decode, decode_display, encode
from ptystream.run import Run
from ptystream.scan.block import Block
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.telling import with_looks

SCAN: dict[str, Any] = {
    "shape": 32,
    "pixel": 0.3e-10,
    "steps": (32, 30),
    "step": 0.4e-10,
    "rotation": 14.0,
    "descan": (0.3, 1.0, -0.6, 0.2),
    "slices": 1,
    "potential": 120e-30,
    "electrons": 1e6,
    "lattice": 4.2e-10,
    "displacement": 0.4e-10,
    "vacancies": 0.2,
    "aberrations": [-50e-10],
    "snake": True,
    "flyback": 2,
}
RASTER = {"points": (32, 30), "step": 0.4e-10, "snake": True, "flyback": 2}
FRAMES = 32 * 30
KINDS = ("icom", "dpc", "tcbf", "wdd")


@pytest.fixture(autouse=True)
def at_every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INTERVAL_S", "RARELY"):
        monkeypatch.setattr(looking, name, 0.0)


@cache
def microscope() -> tuple[Microscope, np.ndarray]:
    one = Microscope(StemParameters.model_validate(SCAN), 0, "s")
    return one, np.array([np.minimum(one.frame(k), 65534) for k in range(len(one.positions_m))]).astype("u2")


def scanned(*, first: int = 0, stop: int | None = None, **data: Any) -> Run:
    """A run for which frames of the microscope came."""
    p = microscope()[0].p
    given = {"energy": None, "acc_voltage": 60.0, "distance": p.distance, "psize": p.psize, "raster": RASTER, **data}
    run = make_run(engines=[{"numiter": 2}], **given)
    run.scans["s"].model.stand(Geometry((32, 32), None, p.distance, (p.psize, p.psize), voltage_kv=60.0))
    more(run, first, stop or len(microscope()[1]))
    return run


def more(run: Run, first: int, stop: int) -> None:
    feed(run, first, stop, positions=False, patterns=microscope()[1])


def take(run: Run) -> None:
    """What came waits for the first iteration."""
    for scan in run.scans.values():
        while isinstance(block := scan.buffer.take(10_000, 1), Block):
            scan.waiting.append(block)


def looked(run: Run, kind: Any) -> Looker:
    """The run before its first iteration, with all that came looked at."""
    looker, deadline = Looker(run, kind), time.monotonic() + 60
    take(run)
    settle(looker, deadline)
    return looker


def settle(looker: Looker, deadline: float | None = None) -> None:
    """Until everything was looked at, and is in the picture."""
    deadline = deadline or time.monotonic() + 60
    while looker.work(idle=True) or looker._pending is not None:
        assert time.monotonic() < deadline


def picture(run: Run, kind: str) -> np.ndarray:
    wave = run.looks[f"quick look: {kind}"][0].data[0]
    return np.abs(wave) if kind in ("tcbf", "dpc") else np.angle(wave * np.exp(-1j * np.angle(wave.mean())))


def alike(kind: str, seen: np.ndarray) -> float:
    """Correlation with the sample's phase on the raster, without the edges."""
    one = microscope()[0]
    columns = np.arange(30)
    index = np.array([[r * 32 + (29 - c if r % 2 else c) for c in columns] for r in range(32)])
    at = np.rint(one.places[index]).astype(int) - one.offset
    truth = np.angle(one.object[0])[at[..., 0], at[..., 1]]
    inner = np.s_[4:-4, 4:-4]
    return abs(float(np.corrcoef(seen[inner].ravel(), truth[inner].ravel())[0, 1]))


# ---------------------------------------------------------------------- pictures, and what they tell


@pytest.mark.parametrize(("kind", "least"), [("icom", 0.75), ("tcbf", 0.7), ("wdd", 0.85)])
def test_it_shows_the_sample_before_the_first_iteration(kind: str, least: float) -> None:
    run = scanned()
    looked(run, kind)
    assert run.iterations == 0 and run.reconstruction is None
    assert alike(kind, picture(run, kind)) > least
    image, known = run.looks[f"quick look: {kind}"]
    assert image.pixel_size_m == (0.4e-10, 0.4e-10) and image.offset == (-16, -15)
    assert known is not None and known.all()
    grey = np.abs(image.data[0])
    if kind != "tcbf":  # weak phases are to be seen in the amplitude
        assert alike(kind, grey) > least
        np.testing.assert_allclose(grey - grey.mean(), (p := picture(run, kind)) - p.mean(), atol=1e-3 * np.ptp(grey))


def test_deflections_are_shown_by_size_and_direction() -> None:
    run = scanned()
    looked(run, "dpc")
    wave, known = run.looks["quick look: dpc"]
    field = wave.data[0]
    phase = np.angle(microscope()[0].object[0])
    assert known is None and np.abs(field).std() > 0
    # the beam turns towards atoms, evenly from all sides
    assert abs(field.mean()) < 0.05 * np.abs(field).mean() and phase.max() > 0.1


def test_the_angle_of_the_scan_and_its_descan_are_those_that_were_simulated(caplog: pytest.LogCaptureFixture) -> None:
    run = scanned()
    with caplog.at_level(logging.WARNING):
        looked(run, "icom")
    figure = run.quality["quick_look"]
    assert faults(run.quality) == ""
    assert figure["rotation_deg"] == pytest.approx(14.0, abs=1.0)
    assert figure["curl"] < 0.1 and figure["mirrored"] == "no"
    np.testing.assert_allclose(figure["descan_px"], SCAN["descan"], atol=0.1)
    np.testing.assert_allclose(figure["center_px"], (0, 0), atol=0.1)
    assert "scan rotation" in caplog.text and "descan" in caplog.text
    assert sum("scan rotation" in record.message for record in caplog.records) == 1
    lines = told(run.quality, time.time_ns())
    assert {"scan rotation", "descan"} <= set(lines) and "scans.s.data.raster.rotation" in caplog.text


def test_patterns_that_are_mirrored_are_found_and_can_be_mirrored_back(caplog: pytest.LogCaptureFixture) -> None:
    run = scanned(orientation=(False, True, False))
    with caplog.at_level(logging.WARNING):
        looked(run, "icom")
    assert run.quality["quick_look"]["mirrored"] == "yes"
    offered = re.search(r"scans\.s\.data\.orientation: (\d)", caplog.text)
    assert offered is not None and "raster.rotation" not in caplog.text
    back = scanned(orientation=int(offered[1]))
    looked(back, "icom")
    assert back.quality["quick_look"]["mirrored"] == "no" and back.quality["quick_look"]["curl"] < 0.1


def test_of_two_angles_that_fit_the_one_near_the_configured_is_told() -> None:
    for configured in (0.0, 170.0):
        run = scanned(raster=RASTER | {"rotation": configured})
        looked(run, "icom")
        assert run.quality["quick_look"]["rotation_deg"] == pytest.approx(14.0 + (180.0 if configured else 0.0), abs=1.0)


def test_aberrations_are_found_on_the_way() -> None:
    run = scanned()
    looked(run, "tcbf")
    defocus, *astigmatism = run.quality["quick_look"]["aberrations_m"]
    assert defocus == pytest.approx(-50e-10, abs=4e-10)
    assert np.abs(astigmatism).max() < 4e-10
    assert "C10" in told(run.quality, time.time_ns())["aberrations"]


def test_free_positions_are_put_on_a_grid() -> None:
    """An X-ray scan on a spiral: the integrated centre of mass is the phase of the flower, as far as the beam blurs it."""
    run = make_run()
    feed(run, 0, 92)
    looked(run, "icom")
    image, known = run.looks["quick look: icom"]
    assert known is not None and known.mean() > 0.6
    reach = np.array(image.data.shape[1:]) * image.pixel_size_m
    np.testing.assert_allclose(reach, np.ptp(PLACES, axis=0), rtol=0.3)
    rows, columns = np.nonzero(known)
    low = (np.array(image.offset) - 1) * image.pixel_size_m
    assert (PLACES.min(axis=0) >= low).all() and len(rows) == len(columns)


@pytest.mark.parametrize("side", [12, 14, 24])
def test_noise_tells_no_angle_and_is_not_mirrored(side: int) -> None:
    """Of 12 x 12 points every sixth field of noise has as little curl as a gradient of which much is noise."""
    raster = Raster((side, side), (1e-10, 1e-10))
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=(side**2, 2)) * 1e8
        said = quick.told(Kept(raster.places_m(), noise, raster, np.arange(side**2)))
        assert said is not None and not said.believed and not said.mirrored


def test_aberrations_that_were_not_found_are_not_told() -> None:
    run = scanned(stop=320)  # ten rows, and they are looked for in twelve
    looked(run, "tcbf")
    assert run.quality["quick_look"]["kind"] == "tcbf" and "aberrations_m" not in run.quality["quick_look"]


# ---------------------------------------------------------------------- while frames come


def test_it_grows_with_the_frames_whatever_their_order() -> None:
    run = scanned(stop=320)
    looker = looked(run, "icom")
    known = run.looks["quick look: icom"][1]
    assert known is not None and known.sum() == 10 * 30 and run.quality["quick_look"]["frames"] == 300
    more(run, 800, len(microscope()[1]))
    more(run, 320, 800)
    take(run)
    while looker.work(idle=True) or looker._pending is not None:
        pass
    assert run.looks["quick look: icom"][1].all()
    at_once = scanned()
    looked(at_once, "icom")
    np.testing.assert_array_equal(picture(run, "icom"), picture(at_once, "icom"))


@pytest.mark.parametrize("kind", ["icom", "wdd"])
def test_a_frame_costs_the_same_however_many_came_before(kind: Any) -> None:
    run = scanned()
    take(run)
    following = Following(run, run.scans["s"], kind)
    touched: list[int] = []
    following._frames, frames = (lambda slots: (touched.append(len(slots)), frames(slots))[1]), following._frames
    while following.frames < FRAMES:
        following.look(0.001)
    assert sum(touched) == FRAMES and max(touched) <= 16
    following.look(1.0)
    assert sum(touched) == FRAMES


def test_withdrawn_frames_leave_the_picture_and_moved_ones_move() -> None:
    run = make_run(engines=[{"numiter": 50}])
    feed(run, 0, 92)
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    loop.step()
    following = Following(run, run.scans["s"], "icom")
    following.look(5.0)
    assert len(following.kept().places_m) == 92
    run.apply({"do": "revise", "scan": "s", "index": 7, "what": "withdrawn", "value": None})
    run.apply({"do": "revise", "scan": "s", "index": 9, "what": "position", "value": [1e-7, 2e-7]})
    places = following.kept().places_m
    assert len(places) == 91 and not (places == PLACES[7]).all(axis=1).any()
    assert (places == [1e-7, 2e-7]).all(axis=1).any()


def test_frames_that_are_cut_another_way_are_looked_at_again(caplog: pytest.LogCaptureFixture) -> None:
    run = scanned()
    looker = looked(run, "icom")
    run.cuts += 1
    with caplog.at_level(logging.INFO):
        looker.work(idle=True)
    assert "begins anew" in caplog.text
    assert looker._following["s"]._cuts == run.cuts


def test_a_picture_of_frames_as_they_were_cut_before_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is being made when frames are cut another way, of just as many."""
    made: list[int] = []
    go = threading.Event()

    def slow(kept: Kept, kind: Any) -> Any:
        assert go.wait(60)
        made.append(len(kept.places_m))
        return found(kept, kind)

    monkeypatch.setattr(looking, "found", slow)
    monkeypatch.setattr(looking, "IDLE_S", 60.0)
    run = scanned()
    take(run)
    looker = Looker(run, "icom")
    looker.work(idle=True)
    assert looker._pending is not None
    run.cuts += 1
    looker.work(idle=True)
    go.set()
    settle(looker)
    assert made == [FRAMES, FRAMES] and run.quality["quick_look"]["frames"] == FRAMES


def test_frames_that_are_withdrawn_at_the_end_leave_the_picture_too() -> None:
    run = make_run(engines=[{"numiter": 50}])
    feed(run, 0, 92)
    Loop(run, LoopSettings(min_frames_for_recon=16)).step()
    looker = Looker(run, "icom")
    settle(looker)
    assert run.quality["quick_look"]["frames"] == 92
    for index in (7, 60):
        run.apply({"do": "revise", "scan": "s", "index": index, "what": "withdrawn", "value": None})
    settle(looker)
    assert run.quality["quick_look"]["frames"] == 90


def test_the_engine_pays_its_share_and_not_for_the_time_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(Following, "look", lambda self, seconds: (given.append(seconds), time.sleep(0.02)))
    run = make_run()
    feed(run, 0, 92)
    take(run)
    looker = Looker(run, "icom")
    for _ in range(20):
        looker.work(idle=True)
    looker.work()
    assert given[-1] > 0  # it had waited, and owes nothing
    for _ in range(3):
        looker.work()
    assert given[-1] < -0.02  # passes were held up, and that is to be made up for first


def test_the_end_waits_so_long_and_no_longer_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(looking, "found", lambda *_: go.wait(60))
    monkeypatch.setattr(looking, "LAST_S", 1.0)
    run = scanned()
    take(run)
    looker, began = Looker(run, "icom"), time.monotonic()
    looker.finish()
    took = time.monotonic() - began
    at_work = [thread for thread in threading.enumerate() if thread.name == "quick look"]
    go.set()
    assert 0.9 < took < 1.8 and not run.looks
    assert at_work and all(thread.daemon for thread in at_work)  # a process does not wait for them


def test_masked_and_saturated_pixels_do_not_count() -> None:
    run = make_run()
    hot = PATTERNS.copy()
    hot[:, 3, 4] = 65535  # saturated in each frame: no data
    feed(run, 0, 92, patterns=hot)
    take(run)
    following = Following(run, run.scans["s"], "icom")
    following.look(5.0)
    plain = make_run()
    feed(plain, 0, 92)
    take(plain)
    other = Following(plain, plain.scans["s"], "icom")
    other.look(5.0)
    np.testing.assert_allclose(following.kept().mass, other.kept().mass, atol=0.02 * np.abs(other.kept().mass).max())


def test_what_goes_wrong_ends_the_look_and_not_the_run(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    run = scanned()
    monkeypatch.setattr(looking, "found", lambda *_: 1 / 0)
    looker, loop = Looker(run, "icom"), Loop(run, LoopSettings(min_frames_for_recon=16))
    with caplog.at_level(logging.WARNING):
        deadline = time.monotonic() + 60
        while not looker._over or not run.iterations:
            assert time.monotonic() < deadline
            loop.step()
            looker.work(idle=True)
    assert "given up: ZeroDivisionError" in caplog.text and not run.looks and run.iterations


def test_too_little_is_waited_for() -> None:
    with pytest.raises(ValueError, match="line"):
        found(Kept(np.stack([np.arange(9.0), np.zeros(9)], axis=1), np.ones((9, 2))), "icom")


# ---------------------------------------------------------------------- in a session


def configuration(folder: Path, kind: str, least: int = 16, **more: Any) -> dict[str, Any]:
    quiet = {part: {"active": False} for part in ("publish", "metrics", "steering", "autosave", "autoplot", "interaction")}
    scan = {k: v for k, v in SCAN.items() if k not in ("flyback", "snake")} | {"steps": (12, 12), "name": "StemScan"}
    return {
        "run": "t",
        "threads": 1,
        "min_frames_for_recon": least,
        "live": {"quick_look": kind},
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr", "recording": {"active": False}, **quiet},
        "scans": {"s": {"name": "Full", "data": scan}},
        "engines": {"e": {"name": "DM", "numiter": 3}},
        **more,
    }


def session(folder: Path, kind: str, least: int = 16) -> tuple[Run, ptyr.Result]:
    made = Session(replace(make_plan(load(configuration(folder, kind, least))), warm_up=lambda: None), metrics=Metrics())
    (path,) = made.run()
    assert made.current is not None
    return made.current, ptyr.read(path)


def test_a_session_shows_it_and_reconstructs_the_same(tmp_path: Path) -> None:
    looked_at, result = session(tmp_path / "a", "icom", 144)
    bare, same = session(tmp_path / "b", "none", 144)
    assert set(looked_at.looks) == {"quick look: icom"} and not bare.looks
    assert looked_at.quality["quick_look"]["frames"] == 144
    for name, held in same.object.items():
        np.testing.assert_array_equal(result.object[name].data, held.data)


def test_viewers_get_it_behind_the_objects_and_alone_before_there_are_any() -> None:
    run = scanned()
    looked(run, "icom")
    name = "quick look: icom"
    early = decode(encode(with_looks(run.snapshot({}), run.looks)))
    assert list(early.object) == [name] and early.coverage[name].all()
    assert early.quality["quick_look"]["kind"] == "icom"
    shown = decode_display(encode(with_looks(run.snapshot({}), run.looks), "uint8"))
    assert shown.object[name].phase.shape == (1, 32, 30)
    loop = Loop(run, LoopSettings(min_frames_for_recon=16))
    while loop.step() is Step.IDLE:
        pass
    assert [*decode(encode(with_looks(run.snapshot({}), run.looks))).object][-1] == name
    assert name not in run.snapshot({}).object  # plots, results and ptypy's clients are without it


@pytest.mark.parametrize(
    ("kind", "scan", "path"),
    [
        ("tcbf", {"data": {"name": "ZmqScan", "shape": 32, "energy": 7.0}}, "scans.s.data.raster"),
        ("icom", {"propagation": "nearfield", "data": {"name": "ZmqScan", "shape": 32, "psize": 1e-6}}, "scans.s.propagation"),
        ("wdd", {"data": {"name": "ZmqScan", "shape": 32, "psize": None, "raster": {"points": [4, 4]}}}, "scans.s.data.psize"),
    ],
)
def test_what_has_no_such_picture_is_refused_at_load(kind: str, scan: dict[str, Any], path: str, tmp_path: Path) -> None:
    given = configuration(tmp_path, kind)
    given["scans"] = {"s": {"name": "Full", **scan}}
    with pytest.raises(ConfigurationError) as raised:
        make_plan(load(given))
    told_ = [fault for fault in raised.value.faults if fault.path == path]
    assert told_ and "live.quick_look" in told_[0].remedy


def test_signals_have_no_picture() -> None:
    run = make_run()
    geometry = replace(run.scans["s"].model.geometry, signals=5)

    class Entry:
        name, model = "Full", type(run.scans["s"].model)

    assert lacking("icom", Entry, geometry)[0] == "data.signals"  # type: ignore[index]


def test_an_end_without_a_picture_is_no_harm() -> None:
    run = make_run()
    looker = Looker(run, "icom")
    end(run, 0)
    looker.finish()
    looker.close()
    assert not run.looks
