"""The layouts: what is in each, and what its pictures are coloured with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import result
from matplotlib.image import imread

from ptystream.publish.snapshot import Image, Snapshot
from ptystream.viewers.figure import Figure, draw, seen_in
from ptystream.viewers.layouts import LAYOUTS
from ptystream.viewers.panels import Seen


def seen(**changed: Any) -> Snapshot:
    return seen_in(result(**changed))


def titles(layout: str) -> list[str]:
    return [axis.get_title() for axis in draw(seen(), layout).axes if axis.get_title()]


MAP = "scan map: 30 frames"
CURVES = ["engine's error", "data misfit of probe × object", MAP]
EXPECTED = {
    "default": ["object amplitude", "object phase", "probe (hue: phase)", *CURVES],
    "black_and_white": ["object amplitude", "object phase", "probe amplitude", *CURVES],
    "nearfield": ["object amplitude", "object phase", "engine's error", "probe amplitude", "probe phase", MAP],
    "nf_black_and_white": ["object amplitude", "object phase", "engine's error", "probe amplitude", "probe phase", MAP],
    "minimal": ["object phase", "engine's error"],
    "weak": ["object amplitude", "object phase", "probe (hue: phase)", *CURVES],
    "jupyter": ["object phase", "probe (hue: phase)", "engine's error"],
    "bragg3d": [
        *(f"{what}, middle of {axis}" for what in ("amplitude", "phase") for axis in ("depth", "y", "x")),
        *CURVES,
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_shows_its_panels(layout: str, tmp_path: Path) -> None:
    assert titles(layout) == EXPECTED[layout]
    shown = imread(Figure.save(seen(), tmp_path / "a.png", layout))
    assert shown[..., :3].std() > 0.05
    grey = np.ptp(shown[..., :3], axis=-1).max() < 0.02
    assert grey == ("black_and_white" in layout)
    assert [f.name for f in tmp_path.iterdir()] == ["a.png"]  # no part of it is left over


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_before_the_first_frames_there_is_nothing_but_a_picture(layout: str) -> None:
    empty = replace(seen(iterations=0), probe={}, object={}, coverage={}, ledger_map=np.zeros((0, 3), np.float32), ledger={})
    figure = draw(empty, layout)
    said = " ".join(axis.get_title() for axis in figure.axes)
    assert "no frame yet" in said
    figure.canvas.draw()


def test_weak_contrast_is_seen_in_the_layout_for_it() -> None:
    y, x = np.mgrid[-40:40, -45:45]
    image = np.exp(-1e-3j * (np.hypot(y, x) < 25))[None] * (1 + 1e-3 * (y[None] > 0))
    faint = replace(seen(), object={"S": Image(image.astype("c8"), (3e-8, 3e-8), (-40, -45))})
    phases, amplitudes = {}, {}
    for layout in ("default", "weak"):
        held = Seen(faint, LAYOUTS[layout])
        amplitude, phase = held.flat
        phases[layout], amplitudes[layout] = held.spread(phase), np.subtract(*held.limits(amplitude)[::-1])
    assert phases["weak"] < 2e-3 < 0.04 < phases["default"]
    assert amplitudes["weak"] < 3e-3 < 0.05 < amplitudes["default"]


def test_all_modes_of_a_probe_are_drawn_with_their_power() -> None:
    mode = np.exp(-np.add.outer(np.arange(-10, 10) ** 2, np.arange(-8, 8) ** 2) / 20.0)
    probe = np.stack([3 * mode, 1j * mode, mode, mode]).astype("c8")  # powers 9 : 1 : 1 : 1
    figure = draw(replace(seen(), probe={"S": Image(probe, None, (0, 0))}))
    (axis,) = [a for a in figure.axes if a.get_title().startswith("probe")]
    assert [t.get_text() for t in axis.texts if "%" in t.get_text()] == ["75.0 %", "8.3 %", "8.3 %", "8.3 %"]
    sheet = axis.images[0].get_array()
    assert sheet.shape == (40, 32, 3)
    peaks = [sheet[r : r + 20, c : c + 16].max() for r in (0, 20) for c in (0, 16)]
    np.testing.assert_allclose(peaks, [1, 1 / 3, 1 / 3, 1 / 3], rtol=1e-3)


def test_of_several_objects_it_says_which_one_is_drawn() -> None:
    one = seen()
    two = replace(one, object={**one.object, "T": one.object["S"]})
    said = [axis.get_title() for axis in draw(two, "minimal").axes]
    assert "object phase: S, 1 of 2" in said


@pytest.mark.parametrize("nested", [False, True])
def test_the_sections_through_a_volume_are_its_middles(nested: bool) -> None:
    r = np.random.default_rng(0)
    volume = (r.uniform(0.5, 1, (6, 8, 10)) * np.exp(1j * r.uniform(-3, 3, (6, 8, 10)))).astype("c8")
    volume[:, 4, 2] = 0.001j  # too faint for a phase
    given = replace(seen(), object={"S": Image(volume[None] if nested else volume, None, (0, 0))}, coverage={})
    figure = draw(given, "bragg3d")
    shown = {a.get_title(): a.images[0].get_array() for a in figure.axes if a.images and a.get_title()}
    np.testing.assert_allclose(shown["amplitude, middle of depth"], np.abs(volume[3]))
    np.testing.assert_allclose(shown["amplitude, middle of y"], np.abs(volume[:, 4]))
    np.testing.assert_allclose(shown["amplitude, middle of x"], np.abs(volume[:, :, 5]))
    phase = np.angle(volume[:, 4])
    phase[:, 2] = np.nan
    np.testing.assert_allclose(np.ma.filled(shown["phase, middle of y"], np.nan), phase, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "jpg", "pdf", "svg", "tif"])
def test_a_picture_has_the_format_of_its_ending(ending: str, tmp_path: Path) -> None:
    path = Figure.save(seen(), tmp_path / f"a.{ending}", "minimal")
    magic = {"png": b"\x89PNG", "jpg": b"\xff\xd8", "pdf": b"%PDF", "svg": b"<?xml", "tif": b"II*\0"}
    assert path.read_bytes().startswith(magic[ending])
