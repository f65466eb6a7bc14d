"""The figure of a result: what its colours say, and that it draws every kind of result."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import result
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.image import imread
from snapshots import snapshot

from ptystream.publish.snapshot import LEDGER_CODES, Image, Snapshot
from ptystream.reconstruction import Storage
from ptystream.storage.ptyr import Result
from ptystream.viewers.figure import LEDGER_COLOURS, Figure, draw, hue_image, scan_map, seen_in
from ptystream.viewers.layouts import LAYOUTS
from ptystream.viewers.panels import MAX_OBJECTS, OF_ALL, PANELS, Seen


def test_hue_is_phase_and_brightness_is_amplitude() -> None:
    angle = np.random.default_rng(1).uniform(-np.pi, np.pi, (7, 5))
    size = np.random.default_rng(2).uniform(0.1, 3.0, (7, 5))
    back = rgb_to_hsv(hue_image(size * np.exp(1j * angle)))
    np.testing.assert_allclose(back[..., 2], size / size.max())
    np.testing.assert_allclose(np.exp(2j * np.pi * back[..., 0]), np.exp(1j * angle), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "drawn",
    [
        result(),
        result(pixel=None),
        result(iterations=0),
        result(coverage={}),
        result(coverage={"S": np.zeros((80, 90), "f4")}),
        result(misfit=np.full((12, 3), np.nan)),
        result(ledger_frames=np.zeros((0, 3), "f4")),
    ],
    ids=["metres", "pixels", "no iteration", "coverage unknown", "nothing covered", "misfit unknown", "no frame placed"],
)
def test_every_kind_of_result_is_drawn(drawn: Result, tmp_path: Path) -> None:
    path = Figure.save_png(drawn, tmp_path / "new" / "a.png")
    shown = imread(path)
    assert shown.shape[0] > 500
    assert shown[..., :3].std() > 0.05


@pytest.mark.slow
def test_the_constant_phase_and_the_ramp_do_not_show(tmp_path: Path) -> None:
    plain = result()
    y, x = np.mgrid[:80, :90]
    turned = plain.object["S"].data * np.exp(1j * (0.9 + 0.07 * y - 0.04 * x)).astype("c8")
    other = result(object={"S": Storage(turned, (3e-8, 3e-8), (-40, -45), 1.0, None)})
    first, second = (imread(Figure.save_png(r, tmp_path / f"{k}.png")) for k, r in enumerate((plain, other)))
    assert np.abs(first - second).mean() < 5e-3
    changed = result(object={"S": Storage(plain.object["S"].data ** 2, (3e-8, 3e-8), (-40, -45), 1.0, None)})
    third = imread(Figure.save_png(changed, tmp_path / "2.png"))
    assert np.abs(first - third).mean() > np.abs(first - second).mean() * 3


@pytest.mark.slow
@pytest.mark.parametrize("pixel", [None, (2e-8, 4e-8)])
def test_the_scan_map_shows_what_became_of_each_frame(pixel: tuple[float, float] | None, tmp_path: Path) -> None:
    frames = np.array([[10 * (k // 5), 7 * (k % 5), k % len(LEDGER_CODES)] for k in range(20)], "f4")
    frames[3:9, 2] = LEDGER_CODES.index("used")
    shown = imread(Figure.save_png(result(pixel, ledger_frames=frames), tmp_path / "a.png"))[..., :3]
    lower_right = shown[shown.shape[0] // 2 :, 2 * shown.shape[1] // 3 :]
    seen = [np.count_nonzero(np.abs(lower_right - to_rgb(colour)).max(-1) < 0.02) for colour in LEDGER_COLOURS]
    for code, colour in enumerate(LEDGER_COLOURS):
        some = frames[frames[:, 2] != code]
        without = imread(Figure.save_png(result(pixel, ledger_frames=some), tmp_path / f"{code}.png"))[..., :3]
        assert seen[code] > 20, colour
        assert (np.abs(without - to_rgb(colour)).max(-1) < 0.02).sum() < seen[code] / 4
    assert seen[LEDGER_CODES.index("used")] > 1.5 * max(s for c, s in enumerate(seen) if LEDGER_CODES[c] != "used")


@pytest.mark.parametrize(("pixel_m", "unit"), [((1e-8, 3e-8), "nm"), ((1e-7, 3e-7), "µm")])
def test_the_scan_map_has_the_axes_of_the_object(pixel_m: tuple[float, float], unit: str) -> None:
    axis = Canvas().subplots()
    scan_map(axis, np.array([[10.0, 20.0, 2.0], [-30.0, 5.0, 3.0]]), pixel_m)
    drawn = {str(line.get_label()): line.get_xydata().tolist() for line in axis.get_lines()}
    dy, dx = np.multiply(pixel_m, 1e9 if unit == "nm" else 1e6)
    assert drawn["used 1"] == [pytest.approx([20 * dx, 10 * dy])]
    assert drawn["excluded 1"] == [pytest.approx([5 * dx, -30 * dy])]
    assert axis.yaxis_inverted()
    assert unit in axis.get_xlabel()


def test_small_phases_are_drawn_on_a_scale_with_two_ends() -> None:
    for reach, name in ((0.1, "viridis"), (1.0, "twilight")):
        phase = np.linspace(-reach, reach, 32 * 32).reshape(32, 32)
        axis = Canvas().subplots()
        one = replace(snapshot(1), object={"S": Image(np.exp(1j * phase**3 / reach**2)[None], None, (0, 0))}, coverage={})
        PANELS["phase"](axis, Seen(one, LAYOUTS["default"]))
        assert axis.images[0].get_cmap().name == name


def several(count: int, probes: int) -> Snapshot:
    """As many objects, each with a phase of its own, and probes of the same names."""
    r = np.random.default_rng(0)

    def wave(side: int) -> np.ndarray:
        return np.exp(1j * r.normal(size=(1, side, side)))

    return replace(
        snapshot(1),
        object={f"S{k}G00": Image(wave(30), (1e-8, 1e-8), (0, 0)) for k in range(count)},
        probe={f"S{k}G00": Image(wave(16 + k), (1e-8, 1e-8), (0, 0)) for k in range(probes)},
        coverage={},
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("probes", [2, 1])
def test_every_object_is_drawn_with_its_probe(layout: str, probes: int) -> None:
    one, two = draw(several(1, 1), layout), draw(several(2, probes), layout)
    pictures = [name for names in LAYOUTS[layout].panels for name in names if name not in OF_ALL]
    titles = [axis.get_title() for axis in two.axes]
    assert sum("S0G00, 1 of 2" in title for title in titles) == sum("S1G00, 2 of 2" in title for title in titles) > 0
    assert sum(title == "engine's error" for title in titles) == 1
    assert sum(len(axis.get_images()) for axis in two.axes) == 2 * sum(len(axis.get_images()) for axis in one.axes)
    assert two.get_size_inches()[1] > one.get_size_inches()[1]
    shown = [axis.get_images()[0].get_array() for axis in two.axes if axis.get_images() and axis.get_title().startswith("probe")]
    if "probe" in pictures:
        first, second = (np.asarray(image).shape[0] for image in shown)
        assert (first, second) == ((16, 17) if probes == 2 else (16, 16))
        assert any("S1G00" in title for title in titles if title.startswith("probe")) == (probes == 2)


def test_of_very_many_objects_some_are_drawn_and_the_title_says_how_many_there_are() -> None:
    titles = [axis.get_title() for axis in draw(several(9, 1), "minimal").axes]
    assert sum("of 9" in title for title in titles) == MAX_OBJECTS


def test_with_one_object_no_title_names_it() -> None:
    assert not any("of 1" in axis.get_title() or "S0G00" in axis.get_title() for axis in draw(several(1, 1)).axes)


def test_error_and_cost_of_two_engines_have_a_scale_each_and_the_misfit_is_one_curve() -> None:
    errors = np.zeros((12, 3))
    errors[:7, 0], errors[7:, 1] = np.geomspace(50, 30, 7), np.geomspace(0.5, 0.1, 5)
    axes = draw(seen_in(result(errors=errors))).axes
    (photons,) = [axis for axis in axes if axis.get_title() == "engine's error"]
    (costs,) = [axis for axis in axes if axis.get_ylabel() == "cost per pixel"]
    first, second = photons.lines[0].get_ydata(), costs.lines[0].get_ydata()
    np.testing.assert_allclose(first[:7], errors[:7, 0])
    np.testing.assert_allclose(second[7:], errors[7:, 1])
    assert np.isnan(first[7:]).all() and np.isnan(second[:7]).all(), "no line from one to the other"
    assert photons.get_ylabel() == "photons" and photons.get_shared_x_axes().joined(photons, costs)
    (misfit,) = [axis for axis in axes if axis.get_title().startswith("data misfit")]
    assert len(misfit.lines[0].get_ydata()) == 12
    only = {axis.get_ylabel() for axis in draw(seen_in(result(errors=errors[7:], misfit=np.ones((5, 3))))).axes}
    assert "cost per pixel" in only and "photons" not in only
