"""Which way detector and positions lie to each other: found whichever way they lie, with ties told as ties."""

from __future__ import annotations

import bz2
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import PATTERNS, end, feed, make_run

from ptystream.assessment.convention import Convention, Tried, code_of, coupling, judged, matrix, turned
from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.engines.multislice.pypty import PyPty
from ptystream.events import Frames, Payload, Samples, ScanEnded, ScanStarted
from ptystream.loop import Loop, LoopSettings
from ptystream.model.geometry import Geometry
from ptystream.model.scan_model import Full
from ptystream.run import Run
from ptystream.run_state import EngineEntry, Scan
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.prepare import Preparation, decide
from ptystream.scan.ptyscan import PtyScan

STAR = Path(__file__).parents[3] / "shared" / "data" / "siemens-star-small.npz.bz2"


def checked(run: Run, present: int = 0, frames: int = 80) -> Convention:
    loop = Loop(run, LoopSettings())
    loop.step()
    convention = Convention(run, present, frames)
    assert convention.due
    while not convention.done:
        convention.step()
    return convention


def as_seen(orientation: int) -> np.ndarray:
    """The frames as a detector gives them that lies so that `orientation` makes them right."""
    return np.ascontiguousarray(np.stack([turned(pattern, matrix(orientation)) for pattern in PATTERNS]))


def names_of(figure: dict[str, Any], *orientations: int) -> set[str]:
    return {entry["name"] for entry in figure["ranking"] if entry["orientation"] in orientations}


@pytest.mark.parametrize("right", range(8))
def test_whichever_way_the_detector_lies_the_right_class_is_found_and_its_tie_named(right: int) -> None:
    run = make_run(engines=[{"numiter": 20, "subpix": None}])
    feed(run, 0, 92, patterns=as_seen(right))
    end(run)
    figure = checked(run).figure()
    assert {entry["orientation"] for entry in figure["ranking"]} == set(range(8))
    (tie,) = figure["ties"]
    assert set(tie) == names_of(figure, right, right ^ 3)  # 3: both axes inverted, the detector turned by 180°
    assert figure["lead"] > 1.5
    assert {figure["chosen"]} == names_of(figure, right)
    assert "negative phase" in figure["why"]
    misfits = [entry["misfit"] for entry in figure["ranking"]]
    assert misfits == sorted(misfits)


def test_a_thick_object_is_tried_as_one_stack_of_slices() -> None:
    thick = {
        "num_slices": 2,
        "slice_distances": [2e6],
        "default_dtype": "single",
        "damping_cutoff_multislice": 2.0,
        "print_flag": 0,
    }
    run = make_run(engine=PyPty, engines=[{**thick, "numiter": 20}])
    feed(run, 0, 92, patterns=as_seen(5))
    end(run)
    figure = checked(run).figure()
    assert names_of(figure, 5) <= {entry["name"] for entry in figure["ranking"][:2]}
    assert figure["lead"] > 1.5


@pytest.mark.parametrize("present", [0, 3, 5, 6])
def test_what_is_told_is_what_to_write_whatever_is_written_now(present: int) -> None:
    """Frames that come prepared with one orientation, of a detector that needs 6."""
    right = 6
    prepared = [turned(turned(p, matrix(right)), matrix(present).T) for p in PATTERNS]
    run = make_run(engines=[{"numiter": 20, "subpix": None}])
    feed(run, 0, 92, patterns=np.ascontiguousarray(np.stack(prepared)))
    end(run)
    figure = checked(run, present).figure()
    assert {figure["chosen"]} == names_of(figure, right)
    assert [e["orientation"] for e in figure["ranking"] if e["name"] == "as it is"] == [present]


def test_the_matrix_of_an_orientation_is_what_preparing_a_frame_does() -> None:
    raw = np.random.default_rng(0).integers(0, 1000, (33, 33)).astype("u2")  # odd: the middle stays the middle
    for orientation in range(8):
        given = PtyScanParameters(name="ZmqScan", shape=33, center=(16, 16), auto_center=False, orientation=orientation)
        assert code_of(given.operations()) == orientation
        slot = np.zeros((33, 33), "u2")
        Preparation(given, decide(given, [raw])).into(raw, slot)
        prepared = np.fft.fftshift(slot)
        y, x = np.einsum("ij,jyx->iyx", matrix(orientation), np.indices((33, 33)) - 16) + 16
        np.testing.assert_array_equal(prepared, raw[y, x])


def test_a_probe_that_is_held_makes_no_tie_of_the_conjugate() -> None:
    tried = [Tried(k, matrix(0).T @ matrix(k), misfit) for k, misfit in enumerate((0.1, 0.4, 0.41, 0.3, 0.5, 0.5, 0.5, 0.5))]
    free, held = (judged(tried, 0, free=free) for free in (True, False))
    assert held["ties"] == [] and held["chosen"] == "as it is" and held["lead"] == pytest.approx(3.0)
    assert free["ties"] == [["as it is", "turned by 180°"]] and free["lead"] == pytest.approx(4.0)
    assert free["chosen"] == "as it is" and "starting probe" in free["why"]


def test_a_tie_that_nothing_breaks_is_left_and_the_present_orientation_named() -> None:
    tried = [Tried(k, matrix(k), misfit, 0.02) for k, misfit in enumerate((0.1, 0.4, 0.41, 0.101, 0.5, 0.5, 0.5, 0.5))]
    left = judged(tried, 3, free=True)
    assert left["chosen"] is None and "equally well" in left["why"] and "present orientation" in left["why"]
    assert "present" not in judged(tried, 1, free=True)["why"]
    close = judged([Tried(k, matrix(k), 0.1 + 0.02 * k) for k in range(8)], 0, free=False)
    assert close["chosen"] is None and "1.20" in close["why"]
    diverged = judged([Tried(k, matrix(k), np.inf if k else 0.1) for k in range(8)], 0, free=False)
    assert diverged["chosen"] == "as it is" and all(np.isfinite(entry["misfit"]) for entry in diverged["ranking"])


def test_matter_couples_absorption_to_negative_phase() -> None:
    thickness = np.random.default_rng(3).random((64, 64))
    matter = np.exp((-0.2 - 1.5j) * thickness) * np.exp(0.1j * np.arange(64))
    assert coupling(matter, np.ones((64, 64))) > 0.9
    assert coupling(matter.conj(), np.ones((64, 64))) < -0.9
    assert coupling(np.ones((64, 64)), np.ones((64, 64))) == 0.0


def star(frames: int) -> Run:
    """The measured scan with its own probe, all frames there."""
    with np.load(io.BytesIO(bz2.decompress(STAR.read_bytes()))) as archive:
        counts, places, probe = archive["data"][0][:frames], archive["scan"][0][:frames], archive["probe"][0, 0, 0, 0]
    counts = np.fft.fftshift(counts.astype("u2"), axes=(1, 2))
    mask = np.ones((128, 128), np.uint8)
    mask[124:] = 0
    mask[0, 1] = 0
    given = PtyScanParameters(name="ZmqScan", shape=128, center=(64, 64), auto_center=False, mask=np.fft.fftshift(mask))
    buffer = PtyScan("s", given, PositionsParameters(unit="px"))
    model = Full("s", 0, Full.Parameters(illumination={"model": probe}), Geometry((128, 128)))
    run = Run("star", [Scan("s", 0, buffer, model)], [EngineEntry("e", "DM", DM.Parameters(subpix=None), DM)], Context(threads=2))
    buffer.feed("data", ScanStarted("a"), 0)
    payloads = tuple(Payload(p.tobytes(), "raw", np.dtype("<u2"), p.shape) for p in counts)
    buffer.feed("data", Frames("a", np.arange(frames), payloads), 1)
    buffer.feed("positions", Samples("a", 0, {"y": places[:, 0], "x": places[:, 1]}), 1)
    for source in ("data", "positions"):
        buffer.feed(source, ScanEnded("a", frames), 0)
    return run


@pytest.mark.slow
@pytest.mark.skipif(not STAR.exists(), reason=f"{STAR.name} is not here")
def test_on_the_measured_star_the_right_class_leads() -> None:
    figure = checked(star(100), frames=100).figure()
    assert figure["ranking"][0]["orientation"] == 0
    assert set(figure["ties"][0]) == names_of(figure, 0, 3)
    assert figure["lead"] >= 1.5
    assert figure["chosen"] == "as it is" and "starting probe" in figure["why"]


def test_frames_that_are_not_square_are_not_transposed() -> None:
    run = make_run(engines=[{"numiter": 20}])
    feed(run, 0, 40)
    Loop(run, LoopSettings()).step()
    run.starting = {name: type(s)(s.data[..., :-2], s.pixel_size_m) for name, s in run.starting.items()}
    convention = Convention(run, 0, 40)
    convention._begin()
    assert [tried.orientation for tried in convention._waiting] == [0, 1, 2, 3]


def test_it_waits_for_its_frames_and_takes_the_first_of_them() -> None:
    run = make_run(engines=[{"numiter": 20}])
    loop = Loop(run, LoopSettings())
    convention = Convention(run, 0, 50)
    feed(run, 0, 40)
    loop.step()
    assert not convention.due
    feed(run, 40, 92)
    loop.step()
    assert convention.due
    convention.step()
    assert convention.count == 50
    convention.close()
