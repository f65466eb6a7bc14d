"""Frames for who looks: every one in the ledger, and one with its pattern, its model and its history."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_bragg_run as rocking
from launched import Launched
from problems import BEAM, PATTERNS, PLACES, end, feed, make_run

from ptystream.cli.ctl import ctl, told
from ptystream.engines.multislice.pypty import PyPty
from ptystream.events import Frames, Payload, ScanStarted
from ptystream.loop import Loop, LoopSettings
from ptystream.model.frame import UNTOLD
from ptystream.run import Run
from ptystream.scan.ptyscan import PtyScan
from ptystream.scan.records import record_of
from ptystream.steering import looking
from ptystream.steering.arrays import array_of, carried
from ptystream.steering.client import Steering
from ptystream.steering.desk import MAX_LATER, Desk, Later, Refused, action
from ptystream.steering.looking import Looked, ledger_of
from ptystream.steering.wire import Reply, Request
from ptystream.storage.ptyr import read
from ptystream.viewers.web.api import packed


def arrays(told: dict) -> dict[str, np.ndarray]:
    return {entry["name"]: array_of(entry) for entry in told["arrays"]}


@pytest.fixture
def run() -> Run:
    """After three iterations on all frames; the frames from 80 on have no position."""
    made = make_run(engines=[{"numiter": 3}])
    feed(made, 0, 80)
    feed(made, 80, BEAM.frames, positions=False)
    end(made)
    loop = Loop(made, LoopSettings(min_frames_for_recon=16))
    for _ in range(40):
        if made.iterations == 2:
            break
        loop.step()
    return made


def test_every_frame_is_in_the_ledger_with_its_state_and_its_place(run: Run) -> None:
    told = ledger_of(run, run.scans["s"], 0)
    found = arrays(told)
    assert told["records"] == BEAM.frames and told["unit"] == "m" and told["scans"] == ["s"]
    np.testing.assert_array_equal(np.sort(found["index"]), np.arange(BEAM.frames))
    order = np.argsort(found["index"])
    names = np.array(told["states"])[found["state"][order]]
    assert set(names[:80]) == {"used"}
    assert set(names[80:]) == {"position_missing"}
    np.testing.assert_allclose(np.stack([found["y"], found["x"]], 1)[order][:80], PLACES[:80], rtol=1e-6)
    assert np.isnan(found["y"][order][80:]).all()
    assert told["counts"] == {"used": 80, "position_missing": BEAM.frames - 80}


def test_a_long_ledger_is_told_in_parts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "MOST_RECORDS", 50)
    parts = [arrays(ledger_of(run, run.scans["s"], first))["index"] for first in (0, 50, 100)]
    assert [len(part) for part in parts] == [50, BEAM.frames - 50, 0]
    assert sorted(np.concatenate(parts)) == list(range(BEAM.frames))


@pytest.mark.slow
def test_the_ledger_of_a_hundred_thousand_frames_is_quickly_told() -> None:
    made = make_run()
    ledger = made.scans["s"].buffer.ledger
    ledger.records(np.arange(100_000), 200_000)
    ledger.position[:100_000] = np.random.default_rng(0).normal(size=(100_000, 2))
    began = time.perf_counter()
    told = ledger_of(made, made.scans["s"], 0)
    assert time.perf_counter() - began < 0.5
    assert sum(len(entry["data"]) for entry in told["arrays"]) == 17 * 100_000


def test_one_frame_with_its_model_and_its_history(run: Run) -> None:
    before = time.time_ns()
    told = Looked(run, run.scans["s"], 11).told()
    found, held = arrays(told), run.reconstruction
    assert held is not None
    np.testing.assert_array_equal(found["pattern"], PATTERNS[11])
    assert found["mask"].all()
    # What it should be, from nothing but where the frame was measured: DM with bilinear sub-pixel shifts.
    probe, seen = next(iter(held.probes.values())), next(iter(held.objects.values()))
    place = PLACES[11] / np.asarray(seen.pixel_size_m)
    whole = np.floor(place + 0.5)
    (dy, dx), (top, left) = place - whole, (whole - BEAM.side // 2 - seen.offset).astype(int)
    at = probe.data[0].astype(complex)
    for axis, d in ((0, dy), (1, dx)):
        at = (1 - abs(d)) * at + abs(d) * np.roll(at, int(np.sign(d)), axis)
    exit_wave = at * seen.data[0, top : top + BEAM.side, left : left + BEAM.side]
    expected = np.abs(np.fft.fftshift(np.fft.fft2(exit_wave, norm="ortho"))) ** 2
    np.testing.assert_allclose(found["model"], expected, rtol=1e-4, atol=1e-4 * expected.max())
    error = np.mean((np.sqrt(expected) - np.sqrt(found["pattern"])) ** 2)
    assert told["misfit"]["amplitude"] == pytest.approx(error, rel=1e-3)
    assert told["position_m"] == pytest.approx(PLACES[11].tolist())
    assert told["ledger"]["state"] == "used" and told["ledger"]["reason"] == ""
    history = {step["state"]: step["at_ns"] for step in told["ledger"]["history"]}
    assert list(history) == ["received", "prepared", "paired", "used"]
    assert history["received"] == 1000 and before - 600e9 < history["used"] <= before
    assert told["iteration"] == run.iterations == 2
    assert told["no_model"] is None and (told["probe"], told["object"]) == (next(iter(held.probes)), next(iter(held.objects)))


def test_a_frame_that_was_not_used_has_its_reason_and_no_model(run: Run) -> None:
    told = Looked(run, run.scans["s"], 85).told()
    assert set(arrays(told)) == {"pattern", "mask"}
    assert told["ledger"]["reason"] == told["ledger"]["history"][-1]["state"] == "position_missing"
    assert told["position_m"] is None and told["misfit"] is None
    assert told["no_model"] == "no probe and object see this frame now" and told["object"] is None
    with pytest.raises(Refused, match="nothing is known of a frame of this number"):
        Looked(run, run.scans["s"], 5000)


def test_floating_intensities_are_in_the_model(run: Run) -> None:
    plain = arrays(Looked(run, run.scans["s"], 3).told())["model"]
    assert run.engine_entry is not None
    run.intensities = np.full(80, 1.7)
    np.testing.assert_array_equal(arrays(Looked(run, run.scans["s"], 3).told())["model"], plain)  # the difference map fits none
    object.__setattr__(run.engine_entry, "parameters", _Floating(run.engine_entry.parameters))
    np.testing.assert_allclose(arrays(Looked(run, run.scans["s"], 3).told())["model"], 1.7 * plain, rtol=1e-6)


class _Floating:
    """Parameters of an engine that fits intensities."""

    floating_intensities = True

    def __init__(self, others: object) -> None:
        self._others = others

    def __getattr__(self, name: str) -> object:
        return getattr(self._others, name)


def to_some_iterations(made: Run, count: int = 2) -> Run:
    loop = Loop(made, LoopSettings(min_frames_for_recon=16))
    for _ in range(40):
        if made.iterations >= count:
            return made
        loop.step()
    pytest.fail("it does not begin")


def test_through_a_thick_sample_its_engine_says_what_a_frame_should_be() -> None:
    """With all that only the engine knows of: slices, tilts, a background, zeros around the frame, a factor."""
    pixel = BEAM.pixel_m * 1e10
    setup = {"pixel_size_x_A": pixel, "pixel_size_y_A": pixel, "num_slices": 2, "slice_distances": [2e6], "numiter": 9}
    more = {"static_background": 9.0 * 36**2, "tilts": [[0, 0, 1e-6, 0, 0, 0]], "data_multiplier": 0.5}
    wide = {"data_pad": 2, "pad_zeros": True, "damping_cutoff_multislice": 2.0}
    made = make_run(engine=PyPty, engines=[setup | more | wide])
    model = made.scans["s"].model
    made.scans["s"].model = type(model)("s", 0, model.p, replace(model.geometry, pad=2))
    feed(made, 0, BEAM.frames)
    end(made)
    told = Looked(to_some_iterations(made), made.scans["s"], 11).told()
    found, middle = arrays(told), slice(2, -2)
    np.testing.assert_allclose(found["pattern"][middle, middle], 0.5 * PATTERNS[11])
    assert found["mask"].all() and not found["pattern"][:2].any() and told["no_model"] is None
    assert (told["side"], found["pattern"].shape) == (BEAM.side + 4, (BEAM.side + 4,) * 2)
    (expected,) = (part[np.flatnonzero(numbers == 11)[0]] for numbers, part in made.engine.simulated() if 11 in numbers)
    np.testing.assert_allclose(found["model"], expected, rtol=1e-5, atol=1e-5 * expected.max())
    assert found["model"].min() >= 8.99  # the background: 9 in each pixel
    assert told["misfit"]["amplitude"] == pytest.approx(np.mean((np.sqrt(expected) - np.sqrt(found["pattern"])) ** 2), rel=1e-4)
    made.apply({"do": "revise", "scan": "s", "what": "withdrawn", "index": 11, "value": None})
    told = Looked(made, made.scans["s"], 11).told()
    assert "model" not in arrays(told) and told["no_model"] == "no probe and object see this frame now"
    made.engine = None
    told = Looked(made, made.scans["s"], 12).told()
    assert "model" not in arrays(told) and told["no_model"] == UNTOLD
    made.scans["s"].buffer.release()
    told = Looked(made, made.scans["s"], 12).told()
    assert not arrays(told) and told["no_model"] == UNTOLD


def test_a_frame_that_is_not_kept_any_more_says_so(run: Run) -> None:
    run.scans["s"].buffer.release()
    told = Looked(run, run.scans["s"], 11).told()
    assert not arrays(told) and told["no_model"] == "the frame is not kept any more" and told["object"] is not None


def test_signals_are_shown_in_their_order_beside_those_of_the_model() -> None:
    pixel, count = BEAM.pixel_m * 1e10, 5
    masks = np.random.default_rng(0).random((count, BEAM.side, BEAM.side))
    signals = np.einsum("kyx,myx->km", PATTERNS.astype(float), masks)[:, None].astype("<u4")
    made = make_run(
        engine=PyPty,
        engines=[
            {"pixel_size_x_A": pixel, "pixel_size_y_A": pixel, "masks": masks, "algorithm": "lsq_compressed", "epoch_max": 9}
        ],
        signals=count,
    )
    model = made.scans["s"].model
    made.scans["s"].model = type(model)("s", 0, model.p, replace(model.geometry, signals=count))
    feed(made, 0, BEAM.frames, patterns=signals)
    end(made)
    told = Looked(to_some_iterations(made), made.scans["s"], 3).told()
    found = arrays(told)
    np.testing.assert_allclose(found["pattern"], signals[3], rtol=1e-6)
    (expected,) = (part[np.flatnonzero(numbers == 3)[0]] for numbers, part in made.engine.simulated() if 3 in numbers)
    np.testing.assert_allclose(found["model"][0], np.einsum("yx,myx->m", expected, masks), rtol=1e-4)
    assert told["side"] == BEAM.side and told["bin"] == 1


def test_a_frame_of_a_rocking_curve_is_a_plane_of_its_model() -> None:
    run = rocking.make_run(numiter=12, subpix=None)
    run.scans["s"].buffer.feed("data", ScanStarted("a"), 0)
    rocking.feed(run, np.random.default_rng(1).permutation(len(rocking.FRAMES)))
    to_some_iterations(run, 12)
    assert run.engine is not None
    held = run.engine.snapshot()
    probe, sample = held.probes["SsG00"], held.objects["SsG00"]
    for index in (5, 123, 124):
        told = Looked(run, run.scans["s"], index).told()
        found = arrays(told)
        np.testing.assert_array_equal(found["pattern"], rocking.FRAMES[index])
        depth, corner, _ = run.scans["s"].model._views(rocking.PLACES[index][None, :2], np.zeros(1))
        low = np.array([depth[0], *corner[0]]) - sample.corner
        window = sample.data[tuple(slice(a, a + n) for a, n in zip(low, probe.data.shape, strict=True))]
        curve = np.fft.fftshift(np.abs(np.fft.fftn(probe.data * window, norm="ortho")) ** 2)
        angle = round((rocking.ROCKED[index] - rocking.THETA) / rocking.STEP) + rocking.ANGLES // 2
        upside = np.fft.fftshift(np.roll(np.fft.ifftshift(curve[angle])[::-1], 1, axis=0))
        np.testing.assert_allclose(found["model"], upside, rtol=1e-3, atol=1e-3 * upside.max())
        assert (told["side"], told["no_model"], told["object"]) == (rocking.SIDE, None, "SsG00")


def test_a_large_frame_is_summed_over_squares_and_masked_where_any_pixel_is(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(looking, "MOST_PIXELS", BEAM.side // 2)
    run.scans["s"].buffer.mask([[0, 0]])  # the middle of the detector
    told = Looked(run, run.scans["s"], 4).told()
    found, half = arrays(told), BEAM.side // 2
    assert told["bin"] == 2 and found["pattern"].shape == found["model"].shape == (half, half)
    hidden = np.argwhere(found["mask"] == 0).tolist()
    assert hidden == [[half // 2, half // 2]]
    whole = PATTERNS[4].astype(float).reshape(half, 2, half, 2).sum(axis=(1, 3))
    whole[half // 2, half // 2] = 0
    np.testing.assert_array_equal(found["pattern"], whole)


def test_a_frame_that_has_no_record_yet_or_was_given_back_shows_what_there_is(run: Run) -> None:
    buffer: PtyScan = run.scans["s"].buffer
    buffer.release()
    told = Looked(run, run.scans["s"], 4).told()
    assert told["arrays"] == [] and told["ledger"]["state"] == "used"
    fresh = make_run().scans["s"].buffer
    fresh.feed("data", ScanStarted("a"), 0)
    fresh.feed("data", Frames("a", np.array([5]), (Payload(PATTERNS[5].tobytes(), "raw", np.dtype("<u2"), (32, 32)),)), 9)
    record = fresh.record(5)
    assert record is not None and (record.state, record.prepared, record.arrival_ns) == ("received", False, 9)
    assert fresh.counts(record.slot) is None
    assert record_of(fresh.ledger, 6) is None


def test_arrays_come_back_as_they_went_and_what_is_none_is_refused() -> None:
    given = np.arange(6, dtype="<f4").reshape(2, 3)
    np.testing.assert_array_equal(array_of(carried("a", given)), given)
    assert array_of(carried("a", given > 2)).dtype == np.uint8
    with pytest.raises(ValueError, match="dtype"):
        carried("a", given.astype(complex))
    sound = carried("a", given)
    for wrong in ({"dtype": "|O"}, {"shape": [2, -3]}, {"shape": "x"}, {"shape": [2, 4]}, {"data": "text"}):
        with pytest.raises(ValueError, match="array"):
            array_of({**sound, **wrong})


class Slow:
    """Works until it is let go."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.threads: set[str] = set()

    @action("viewer")
    def look(self, fail: bool = False) -> Later:
        """Later."""

        def work() -> int:
            self.begun.set()
            assert self.go.wait(60)
            self.threads.add(threading.current_thread().name)
            if fail:
                raise ZeroDivisionError("bad luck")
            return 7

        return Later(work)


def test_what_takes_long_is_worked_out_beside_the_engine_and_bounded() -> None:
    actor, replies, came = Slow(), [], threading.Semaphore(0)
    desk = Desk(actor)

    def answer(reply: Reply) -> None:
        replies.append(reply)
        came.release()

    for number in range(MAX_LATER + 2):
        desk.ask(Request(number, "look", {"fail": number == 1}), answer)
    assert desk.serve()  # does not wait for any of them
    for _ in range(2):
        assert came.acquire(timeout=60)
    assert [reply.fault.remedy[:14] for reply in replies] == [f"{MAX_LATER} answers are"[:14]] * 2
    actor.go.set()
    for _ in range(MAX_LATER):
        assert came.acquire(timeout=60)
    done = {reply.id: reply for reply in replies}
    assert done[0].value == 7 and "ZeroDivisionError" in done[1].fault.remedy
    assert all(name.startswith("answering") for name in actor.threads)


def test_what_is_not_worked_out_at_the_end_is_refused() -> None:
    actor, replies, came = Slow(), [], threading.Semaphore(0)
    desk = Desk(actor)

    def answer(reply: Reply) -> None:
        replies.append(reply)
        came.release()

    for number in range(3):
        desk.ask(Request(number, "look"), answer)
    desk.serve()
    assert actor.begun.wait(60)
    desk.close("it is over")
    actor.go.set()
    for _ in range(3):
        assert came.acquire(timeout=60)
    assert sorted((r.id, r.fault is None) for r in replies) == [(0, True), (1, False), (2, False)]
    assert replies[0].fault.remedy == "it is over"


def test_a_running_session_tells_frames_over_its_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = Launched(tmp_path, {})
    try:
        with Steering(running.endpoint) as steering:
            deadline = time.monotonic() + 60
            while steering.ask("status")["iteration"] < 3 and time.monotonic() < deadline:
                pass
            while (told := steering.ask("frame", frame=20))["misfit"] is None and time.monotonic() < deadline:
                pass
            path = steering.ask("save")
            for wrong in ({"run": "none"}, {"scan": "none"}):
                for name, more in (("ledger", {}), ("frame", {"frame": 1})):
                    with pytest.raises(Refused, match=r"no run of this name|has the scans s"):
                        steering.ask(name, **wrong, **more)
            counts = steering.ask("ledger", scan="s")["counts"]
        result = read(path)
        assert told["misfit"] is not None and told["iteration"] >= 3
        assert counts["used"] >= result.ledger["used"] > 0  # more may have come
        found = arrays(told)
        assert found["pattern"].sum() > 0.9 * PATTERNS[20].sum()  # the centre is found from the frames that came first
        assert found["model"].shape == (BEAM.side,) * 2 and found["model"].min() >= 0 < found["model"].max()
        for line in (["ledger"], ["frame", "frame=20"]):
            assert ctl(running.endpoint, line[0], line[1:], None, None, 30.0, False) == 0
        said = capsys.readouterr().out
        assert "counts: used" in said and "pattern (32 × 32) from 0 to" in said
        with Steering(running.endpoint) as steering:
            found = arrays(steering.ask("frame", frame=20))
        ctl(running.endpoint, "frame", ["frame=20"], None, None, 30.0, True)
        said = json.loads(capsys.readouterr().out)
        assert said["arrays"]["pattern"] == found["pattern"].tolist()
        with Steering(running.endpoint) as steering:  # what the web viewer's page is given
            passed_on = packed(steering.ask("frame", frame=20))
        length = int.from_bytes(passed_on[:4], "little")
        header, raw = json.loads(passed_on[4 : 4 + length]), passed_on[4 + length :]
        assert [entry["name"] for entry in header["arrays"]] == ["pattern", "mask", "model"]
        pattern = np.frombuffer(raw, header["arrays"][0]["dtype"], BEAM.side**2).reshape(BEAM.side, BEAM.side)
        np.testing.assert_array_equal(pattern, found["pattern"])
    finally:
        running.end()


def test_a_frames_way_is_told_for_people_a_line_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    steps = [{"state": "received", "at_ns": 1_700_000_000_125_000_000}, {"state": "prepared", "at_ns": None}]
    ledger = {"state": "off_canvas", "reason": "off_canvas", "history": steps, "dose": None}
    printed = told("frame", {"frame": 17, "ledger": ledger, "misfit": {"amplitude": 0.25, "photon": 1.5}, "arrays": []})
    assert printed.splitlines() == [
        "frame: 17",
        "ledger: ",
        "  state: off_canvas",
        "  reason: off_canvas",
        "  dose: -",
        "  received: 2023-11-14 22:13:20.125+00:00",
        "  prepared: at a time that is not kept",
        "misfit: ",
        "  amplitude: 0.25",
        "  photon: 1.5",
        "arrays: -",
    ]
    monkeypatch.undo()
    time.tzset()
