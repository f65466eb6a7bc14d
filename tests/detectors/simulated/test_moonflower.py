"""MoonFlowerScan and QuickScan: their frames and positions against plain formulas, and whole sessions on them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scans import agreement, configured, drain, parameters, reconstruct, sent, transport
from scipy.ndimage import gaussian_filter

from ptystream.cli.live import live
from ptystream.cli.record import record
from ptystream.codecs import decode
from ptystream.detectors.simulated.moonflower import MoonFlowerSimulation, pattern
from ptystream.detectors.zmq.protocol import NativeDecoder
from ptystream.events import Frames
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.plan import make_plan, recorder_of
from ptystream.recording import Recorder, Recording
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Surroundings, TransportClosed

SMALL: dict[str, Any] = {"shape": 32, "num_frames": 12, "photons": 1e5}


def made(**given: Any) -> MoonFlowerSimulation:
    return MoonFlowerSimulation(parameters("MoonFlowerScan", **{**SMALL, **given}), 0, "s/data")


@pytest.mark.parametrize(("asked", "left"), [(100, 92), (165, 153)])
def test_the_square_takes_part_of_the_outermost_shell(asked: int, left: int) -> None:
    assert len(pattern("round", (1.0, 1.0), asked)) == left


@pytest.mark.parametrize("name", ["MoonFlowerScan", "QuickScan"])
def test_density_is_the_spacing_in_frame_widths(name: str) -> None:
    for density in (0.1, 0.25):
        _, places = sent(name, shape=32, num_frames=30, density=density)
        width = 1.23984193e-9 / 7.2 * 7.19 / 0.000172  # of the frame on the sample: λ z / psize
        radius = np.hypot(*places.T)
        assert radius[1:6] == pytest.approx(density * width, rel=1e-9)
        assert radius[6:16] == pytest.approx(2 * density * width, rel=1e-9)


def test_patterns_have_their_shape_and_no_more_than_the_frames_asked_for() -> None:
    _, raster = sent("MoonFlowerScan", **{**SMALL, "model": "raster", "num_frames": 15})
    assert len(raster) == 15
    step = raster[1, 1]
    np.testing.assert_allclose(raster, [[k // 4 * step, k % 4 * step] for k in range(15)], atol=1e-15)
    _, spiral = sent("MoonFlowerScan", **{**SMALL, "model": "spiral", "num_frames": 40})
    theta = np.sqrt(4 * np.pi * np.arange(len(spiral)))
    np.testing.assert_allclose(spiral, (step * theta / (2 * np.pi) * [np.sin(theta), np.cos(theta)]).T, atol=1e-15)
    assert 30 < len(spiral) <= 40


def test_positions_theory_stands_in_for_the_pattern() -> None:
    places = np.array([[1e-6, 2e-6], [3e-6, -1e-6], [0.0, 0.0]])
    frames, told = sent("MoonFlowerScan", **SMALL, positions_theory=places)
    np.testing.assert_array_equal(told, places)
    assert len(frames) == 3


def test_counts_without_noise_are_the_expected_photons_of_a_plain_fourier_sum() -> None:
    frames, _ = sent("MoonFlowerScan", **SMALL, add_poisson_noise=False)
    simulation = made()
    truth, n = simulation.experiment, 32
    place = simulation.positions_m[7] / simulation.pixel_m
    corner = np.round(place).astype(int)
    moved = np.fft.fft2(truth.probe[0])
    for axis, part in enumerate(place - corner):
        moved = moved * np.exp(-2j * np.pi * part * np.fft.fftfreq(n)).reshape((-1, 1) if axis == 0 else (1, -1))
    top, left = corner - n // 2 - truth.offset
    wave = np.fft.ifft2(moved) * truth.object[0, top : top + n, left : left + n]
    kernel = np.exp(-2j * np.pi * np.outer(np.arange(n) - n // 2, np.arange(n)) / n)
    mean = np.abs(kernel @ wave @ kernel.T) ** 2 / n**2
    np.testing.assert_allclose(frames[7], np.floor(mean), atol=1)
    assert mean.sum() > 0.2 * SMALL["photons"]


def test_photons_are_those_of_the_probe_and_noise_is_that_of_poisson() -> None:
    simulation = made(photons=3e6)
    assert (np.abs(simulation.experiment.probe) ** 2).sum() == pytest.approx(3e6)
    mean = np.stack([simulation.intensity(k) for k in range(len(simulation.positions_m))])
    frames, _ = sent("MoonFlowerScan", **{**SMALL, "photons": 3e6})
    bright = mean > 5
    assert bright.sum() > 1000
    assert ((frames - mean)[bright] ** 2 / mean[bright]).mean() == pytest.approx(1, abs=6 * np.sqrt(2 / bright.sum()))
    brighter, _ = sent("MoonFlowerScan", **{**SMALL, "photons": 6e6})
    assert brighter.sum() / frames.sum() == pytest.approx(2, rel=0.01)


def test_psf_is_the_standard_deviation_of_a_gaussian_and_keeps_the_photons() -> None:
    sharp, blurred = made().intensity(3), made(psf=1.3).intensity(3)
    np.testing.assert_allclose(blurred, gaussian_filter(sharp, 1.3), rtol=1e-9)
    assert blurred.sum() == pytest.approx(sharp.sum())
    assert blurred.max() < 0.9 * sharp.max()


def test_the_seed_repeats_everything_and_another_changes_it() -> None:
    first, _ = sent("MoonFlowerScan", **SMALL)
    np.testing.assert_array_equal(first, sent("MoonFlowerScan", **SMALL)[0])
    root, _ = sent("MoonFlowerScan", **SMALL, around=Surroundings(seed=5))
    own, _ = sent("MoonFlowerScan", **SMALL, seed=5)
    assert (first != root).any()
    np.testing.assert_array_equal(root, own)


def test_a_wait_comes_behind_so_many_blocks_and_no_frame_is_lost() -> None:
    given = {**SMALL, "around": Surroundings(frames_per_block=3), "block_wait_s": 0.02}
    for count, wanted in ((0, "3333"), (1, "3w3w3w3"), (2, "33w33")):
        events = drain(transport("MoonFlowerScan", **given, block_wait_count=count))
        assert "".join("w" if e is None else str(len(e.payloads)) for e in events if e is None or isinstance(e, Frames)) == wanted
    started = time.monotonic()
    drain(transport("MoonFlowerScan", **{**given, "block_wait_s": 0.2}, block_wait_count=1))
    assert time.monotonic() - started >= 0.6
    events = drain(transport("MoonFlowerScan", **given, min_frames=5))
    assert [len(e.payloads) for e in events if isinstance(e, Frames)] == [5, 5, 2]


def test_a_wait_lets_go_of_the_thread_in_time() -> None:
    source = transport("MoonFlowerScan", **SMALL, around=Surroundings(frames_per_block=3), block_wait_count=1, block_wait_s=30.0)
    drain(source, messages=2)
    started = time.monotonic()
    assert source.receive(0.05) is None
    assert time.monotonic() - started < 20.0  # of thirty


def test_frames_are_made_when_asked_for_in_messages_of_bounded_size() -> None:
    source = transport("QuickScan", shape=512, num_frames=100000, density=1e-4)
    events = drain(source, messages=4)
    sizes = [sum(len(bytes(p.buffer)) for p in e.payloads) for e in events if isinstance(e, Frames)]
    assert sizes == [4 << 20] * 3


@pytest.mark.parametrize("heard", [0, 1, 2, 5, 6])
def test_a_transport_goes_on_where_an_interrupted_session_stopped(heard: int) -> None:
    given = {**SMALL, "around": Surroundings(frames_per_block=3)}
    whole, _ = sent("MoonFlowerScan", **given)
    decoder = NativeDecoder()
    before = drain(transport("MoonFlowerScan", **given), decoder, messages=heard)
    after = drain(transport("MoonFlowerScan", decoder, **given), decoder)
    payloads = [decode(p) for e in (*before, *after) if isinstance(e, Frames) for p in e.payloads]
    np.testing.assert_array_equal(np.stack(payloads), whole)


def test_a_quick_frame_is_one_bright_pixel_in_the_middle() -> None:
    frames, _ = sent("QuickScan", num_frames=30)
    assert frames.shape[1:] == (64, 64)
    assert (frames[:, 32, 32] == 1e7).all()
    assert frames.sum() == 1e7 * len(frames)
    noisy, _ = sent("QuickScan", num_frames=200, add_poisson_noise=True)
    assert noisy[:, 32, 32].std() == pytest.approx(np.sqrt(1e7), rel=0.3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"density": 0.0}, "data.density: 0.0: must be above 0"),
        ({"photons": -1.0}, "data.photons"),
        ({"psf": -1.0}, "data.psf"),
        ({"model": "star"}, "data.model"),
        ({"block_wait_count": -1}, "data.block_wait_count"),
        ({"positions": {"name": "MoonFlowerScan"}}, "data.positions.name: 'MoonFlowerScan': gives frames"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_its_path(wrong: dict[str, Any], said: str) -> None:
    given = {"scans": {"s": {"name": "Full", "data": {"name": "MoonFlowerScan", **wrong}}}, "engines": {"e": {"name": "DM"}}}
    with pytest.raises(ConfigurationError) as caught:
        load(given)
    assert said in str(caught.value)


def test_a_geometry_that_is_not_known_ends_with_what_to_give() -> None:
    with pytest.raises(OSError, match=r"s/data: a simulation needs data\.energy"):
        transport("MoonFlowerScan", **SMALL, energy=None)


@pytest.mark.slow
def test_a_moonflower_is_reconstructed_while_it_comes(tmp_path: Path) -> None:
    data = {"name": "MoonFlowerScan", "shape": 32, "num_frames": 120, "density": 0.12, "block_wait_count": 1}
    data |= {"block_wait_s": 0.3, "photons": 1e7}
    given = {"s": {"data": data, "illumination": {"aperture": {"size": 3e-6}}}}
    result = reconstruct(tmp_path, given, 80, frames_per_block=30)
    assert result.ledger["used"] == result.ledger["received"] == 116
    takes = [entry for entry in result.schedule if entry["do"] == "take"]
    assert len(takes) > 1
    assert result.misfit[-1, 0] < 0.05 * result.misfit[0, 0]
    truth = made(**{k: v for k, v in data.items() if k != "name"}).experiment
    (found,) = result.object.values()
    assert agreement(found, truth, result.coverage["SsG00"]) < 0.1


def test_two_simulated_scans_make_one_run_and_a_quick_one_comes_to_its_end(tmp_path: Path) -> None:
    moon = {"data": {"name": "MoonFlowerScan", **SMALL}}
    result = reconstruct(tmp_path, {"a": moon, "b": moon, "q": {"data": {"name": "QuickScan", "shape": 32}}}, 3)
    assert set(result.object) == {"SaG00", "SbG00", "SqG00"}
    assert result.ledger["used"] == 12 + 12 + 92
    assert {label: told["num_frames"] for label, told in result.scans.items()} == {"a": 12, "b": 12, "q": 92}


def test_a_result_tells_what_the_scan_was_called(tmp_path: Path) -> None:
    data = {"name": "MoonFlowerScan", **SMALL, "label": "left wing", "experimentID": "mx-1234", "version": 0.2, "rebin": 2}
    reconstruct(tmp_path, {"s": {"data": data}}, 1)
    told = ptyr.read(tmp_path / "t.ptyr").scans["s"]
    assert (told["label"], told["experimentID"], told["version"], told["shape"]) == ("left wing", "mx-1234", 0.2, [16, 16])
    reconstruct(tmp_path, {"s": {"data": {"name": "MoonFlowerScan", **SMALL}}}, 1)
    told = ptyr.read(tmp_path / "t.ptyr").scans["s"]
    assert (told["label"], told["experimentID"], told["version"]) == ("s", None, 0.1)


def test_a_transport_that_gave_everything_says_so() -> None:
    source = transport("MoonFlowerScan", **SMALL)
    drain(source)
    with pytest.raises(TransportClosed, match="all 12"):
        source.receive(0.1)


def test_a_session_that_was_killed_goes_on_from_its_record(tmp_path: Path) -> None:
    data = {"name": "MoonFlowerScan", **SMALL}
    given = {"s": {"data": data}}
    around = Surroundings(frames_per_block=4)
    recorder = Recorder(tmp_path / "recordings" / "t.ptyrec")
    source = transport("MoonFlowerScan", **SMALL, around=around)
    for _ in range(3):  # the start, and two blocks of frames
        recorder.write(source.receive(60))
    recorder.close(finished=False)
    configuration = load(configured(tmp_path, given, 2, frames_per_block=4, min_frames_for_recon=100))
    recorder_again, interrupted = recorder_of(configuration)
    assert interrupted is not None and recorder_again is not None
    session = Session(make_plan(configuration), metrics=Metrics(), tap=recorder_again, recorded=Recording(interrupted))
    (path,) = session.run()
    recorder_again.close(finished=True)
    result = ptyr.read(path)
    assert result.ledger["received"] == result.ledger["used"] == 12
    whole, decoder = sent("MoonFlowerScan", **SMALL)[0], NativeDecoder()
    again = [e for message in Recording(interrupted) for e in decoder.feed(message)]
    np.testing.assert_array_equal(np.stack([decode(p) for e in again if isinstance(e, Frames) for p in e.payloads]), whole)


@pytest.mark.slow
def test_a_simulated_scan_can_be_recorded_and_replayed(tmp_path: Path) -> None:
    given = configured(tmp_path, {"s": {"data": {"name": "MoonFlowerScan", **SMALL}}}, 2, seed=3, min_frames_for_recon=100)
    given["io"]["recording"] = {"active": False}
    (tmp_path / "c.json").write_text(json.dumps(given))
    assert record(str(tmp_path / "c.json"), str(tmp_path / "kept.ptyrec")) == 0
    live(str(tmp_path / "c.json"), None, "cpu")
    direct = ptyr.read(tmp_path / "t.ptyr")
    live(str(tmp_path / "c.json"), str(tmp_path / "kept.ptyrec"), "cpu")
    again = ptyr.read(tmp_path / "t.ptyr")
    assert again.started != direct.started
    np.testing.assert_array_equal(again.object["SsG00"].data, direct.object["SsG00"].data)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("MoonFlowerScan", {"psf": 1e6, "shape": 32}, "scans.s.data.psf: 1000000.0: is wider than the frame of 32 pixels"),
        ("MoonFlowerScan", {"num_frames": 10**9}, "num_frames: 1000000000: that many positions take 16000000000 bytes"),
        ("QuickScan", {"num_frames": 10**9}, "num_frames: 1000000000: that many positions take 16000000000 bytes"),
        ("MoonFlowerScan", {"num_frames": 10**7, "shape": 512}, "num_frames: 10000000: with density 0.2: drawing an object of"),
        ("MoonFlowerScan", {"density": 1e4, "num_frames": 100}, "num_frames: 100: with density 10000: drawing an object of"),
        (
            "SimScan",
            {"psf": np.ones((100, 3)), "shape": 32, "xy": {"model": "round"}},
            "at most 64 pixels",
        ),
    ],
)
def test_what_would_not_fit_into_memory_is_refused_at_load_time(name: str, given: dict[str, Any], said: str) -> None:
    scan = {"name": "Full", "data": {"name": name, **given}}
    with pytest.raises(ConfigurationError) as caught:
        load({"scans": {"s": scan}, "engines": {"e": {"name": "DM"}}})
    assert said in str(caught.value)


def test_positions_that_need_too_large_an_object_are_refused_when_the_scan_opens() -> None:
    with pytest.raises(OSError, match=r"positions_theory: drawing an object of .* takes .* bytes"):
        transport("MoonFlowerScan", **SMALL, positions_theory=[[0.0, 0.0], [1.0, 1.0]]).open()


def test_a_probe_that_would_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.plan.allowed_bytes", lambda: 10**6)
    given = configured(tmp_path, {"s": {"data": {"name": "QuickScan", "shape": 128}}}, 1)
    with pytest.raises(
        ConfigurationError, match=r"data\.shape: 128: beginning a probe of \(128, 128\) pixels takes 1.97e\+06 bytes"
    ):
        make_plan(load(given))
