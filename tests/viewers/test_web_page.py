"""What the web page shows and does, in a real headless Chromium: each part once, against numbers worked out here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from ptystream.publish.display import display, with_ramps
from ptystream.publish.heartbeat import RunBeat
from ptystream.publish.publisher import Publisher
from ptystream.publish.snapshot import Image, Snapshot
from ptystream.steering.arrays import carried
from ptystream.steering.desk import Desk, Refused, action
from ptystream.steering.server import Server
from ptystream.viewers.web.access import Access
from ptystream.viewers.web.application import application
from ptystream.viewers.web.bridge import Bridge
from ptystream.viewers.web.feed import Feed
from ptystream.viewers.web.serving import configured

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
LIMIT_MS = 60_000
OPERATE = "steer-token"
PIXEL = 1e-8
SIDE = 64
PIXELS = """id => { const c = document.getElementById(id);
    return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data); }"""


def wave(number: int, height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (1 + 0.01 * x) * np.exp(1j * (0.5 * np.sin(0.1 * y + 0.3 * number) + 0.2 * np.cos(0.07 * x)))


def snapshot(number: int, run: str = "test", offset: tuple[int, int] = (-20, 30), **more: Any) -> Snapshot:
    seen = np.ones((60, 80), np.float32)
    seen[:10] = 0.01
    power = np.array([3.0, 1.0, 0.5])[:, None, None]
    given: dict[str, Any] = {
        "run": run,
        "number": number,
        "created_ns": time.time_ns(),
        "engine": "DM",
        "iteration": 10 * number,
        "state": "running",
        "probe": {"p": Image((power * wave(9)[None, :32, :32]).astype("c8"), (PIXEL, PIXEL), (0, 0))},
        "object": {"o": Image(wave(number)[None].astype("c8"), (PIXEL, PIXEL), offset)},
        "coverage": {"o": seen},
        "positions": np.zeros((4, 2), "f4"),
        "errors": np.ones((5, 3)) * np.arange(5, 0, -1)[:, None],
        "misfit": np.ones((5, 3)) * np.arange(5, 0, -1)[:, None],
        "ledger": {"received": 4, "used": 3, "expected": 9},
        "ledger_map": PLACES,
        "newest_frame_ns": time.time_ns(),
        "rates": {"frames_per_second": 12.0},
    }
    return Snapshot(**given | more)


PLACES = np.array([[0, 40, 2], [10, 60, 2], [20, 50, 3], [30, 90, 0]], "f4")
"""[y, x, state] of frames 10, 11, 12 and 13, pixels."""


class Asked:
    """A session as far as the page asks one."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.scans = ["s"]
        """A second one, 't', has the same frames 100 pixels further down."""
        self.model = True
        self.answers = threading.Event()
        self.answers.set()

    @action("viewer", at_once=True, changes=False)
    def ledger(self, run: str = "", scan: str = "", first: int = 0) -> dict[str, Any]:
        """Four frames, in metres."""
        assert self.answers.wait(60)
        lower = 100 * PIXEL if scan == "t" else 0.0
        arrays = [carried("index", np.array([12.0, 10.0, 13.0, 11.0]))]
        order = [2, 0, 3, 1]
        arrays += [carried("state", np.array([3, 0, 2, 0], np.uint8))]
        arrays += [carried(name, (PLACES[order, k] * PIXEL + lower * (k == 0)).astype("f4")) for k, name in enumerate("yx")]
        names = ["used", "received", "paired", "beam_off"]
        told = {
            "run": run,
            "scan": scan or "s",
            "scans": self.scans,
            "states": names,
            "unit": "m",
            "pixel_size_m": [PIXEL, PIXEL],
        }
        return told | {"arrays": [*arrays]}

    @action("viewer", at_once=True, changes=False)
    def frame(self, frame: int, run: str = "", scan: str = "") -> dict[str, Any]:
        """One of them; others are not known."""
        self.done.append(("frame", frame))
        if not 10 <= frame <= 13:
            raise Refused("frame", frame, "nothing is known of it")
        pattern = np.zeros((SIDE, SIDE), "f4")
        pattern[frame, 2] = 1000
        mask = np.ones((SIDE, SIDE), np.uint8)
        mask[0, 0] = 0
        arrays = [carried("pattern", pattern), carried("mask", mask)]
        arrays += [carried("model", pattern * 0.81)] if self.model else []
        y, x = PLACES[frame - 10, :2] * PIXEL
        history = [{"state": "received", "at_ns": 10**18}, {"state": "prepared", "at_ns": None}]
        history += [{"state": "used", "at_ns": 10**18 + 1_500_000_000}]
        return {
            "run": run,
            "scan": scan or "s",
            "frame": frame,
            "no_model": None if self.model else "not worked out for rocking curves",
            "probe": "p" if scan != "t" else "second",
            "object": "o",
            "ledger": {"state": "used", "reason": "", "history": history, "dose": 0.5},
            "position_m": [float(y), float(x)],
            "unit": "m",
            "pixel_size_m": [PIXEL, PIXEL],
            "iteration": 7,
            "bin": 1,
            "side": len(pattern),
            "misfit": {"amplitude": 0.25, "photon": 0.5},
            "arrays": arrays,
        }

    @action("viewer", changes=False, at_once=True)
    def steerable(self, described: bool = False) -> list[dict[str, Any]]:
        """Four parameters."""
        plain = {"lower": None, "upper": None, "choices": None, "doc": "What it does\n\nMore."}
        return [
            {"path": "engines.e.alpha", "value": 0.5, **plain, "types": ["float"], "lower": 0.0, "upper": 1.0},
            {"path": "live.latency", "value": None, **plain, "types": ["float", "NoneType"]},
            {"path": "engines.e.subpix", "value": "linear", **plain, "types": ["str"], "choices": ["linear", "fourier"]},
            {"path": "scans.s.data.center", "value": "fftshift", **plain, "doc": "Where the\nbeam is.\n\nMore."}
            | {"types": ["str", "tuple", "NoneType"], "choices": ["fftshift", "fft"]},
        ]

    @action(at_once=True)
    def set(self, path: str, value: Any) -> dict[str, Any]:
        """Change one of them."""
        if path == "engines.e.alpha" and not 0 <= value <= 1:
            raise Refused(path, value, "must be at most 1")
        self.done.append(("set", path, value))
        return {"path": path, "before": 0.5, "value": value}

    @action(at_once=True)
    def pause(self) -> None:
        """Pause."""
        self.done.append(("pause",))

    @action(at_once=True)
    def stop(self) -> None:
        """Stop."""
        self.done.append(("stop",))


@dataclass
class Site:
    address: str
    publisher: Publisher
    session: Asked

    def publish(self, page: Any, shown: Snapshot) -> None:
        """Offered, and drawn by a page that follows."""
        self.publisher.offer(shown)
        page.wait_for_function(
            "([run, n]) => (h => h && h.run === run && h.number === n)(window.ptystream.header)",
            arg=[shown.run, shown.number],
        )


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        publisher, session = Publisher(), Asked()
        stack.callback(publisher.close)
        steering = Server(Desk(session))
        stack.callback(steering.close)
        bridge = Bridge.to(steering.endpoint)
        stack.callback(bridge.close)
        feed = Feed(publisher.endpoint)
        stack.callback(feed.close)
        server = uvicorn.Server(configured(application(feed, Access(None, OPERATE), bridge)))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        stack.callback(thread.join, 60)
        stack.callback(setattr, server, "should_exit", True)
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Site(f"http://127.0.0.1:{port}/", publisher, session)


@pytest.fixture(scope="module")
def chrome(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=FLAGS, timeout=LIMIT_MS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chrome: Any, site: Site) -> Iterator[Callable[..., Any]]:
    """Opens the page where the first snapshot is shown; whatever goes wrong in it fails the test."""
    faults: list[str] = []
    pages = []

    def open_page(*, operator: bool = False, after: str = "", **options: Any) -> Any:
        # What waits in the page is evaluated there, which the page's policy forbids; another test looks at that.
        context = chrome.new_context(**{"viewport": {"width": 1280, "height": 860}, "bypass_csp": True, **options})
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(LIMIT_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{site.address}{f'?token={OPERATE}' if operator else ''}{after}")
        page.wait_for_function("window.ptystream && window.ptystream.header && window.ptystream.me")
        return page

    yield open_page
    for page in pages:
        faults += page.evaluate("window.ptystream.errors")
        page.context.close()
    assert faults == []


def drawn(page: Any, name: str, height: int = 60, width: int = 80) -> np.ndarray:
    return np.array(page.evaluate(PIXELS, name)).reshape(height, width, 4)


def pressed(page: Any) -> list[str]:
    return list(page.eval_on_selector_all("nav [aria-pressed=true], nav [aria-expanded=true]", "a => a.map(e => e.textContent)"))


def on_screen(page: Any, view: str, y: float, x: float) -> tuple[float, float]:
    """Where a lattice point is on the screen."""
    found = page.evaluate(
        """([view, y, x]) => { const b = document.querySelector(view), r = b.getBoundingClientRect();
        const [py, px] = window.ptystream.viewport.to(b, y, x); return [r.left + px, r.top + py]; }""",
        [view, y, x],
    )
    return found[0], found[1]


def drag(page: Any, view: str, first: tuple[float, float], last: tuple[float, float]) -> None:
    page.mouse.move(*on_screen(page, view, *first))
    page.mouse.down()
    page.mouse.move(*on_screen(page, view, *last), steps=4)
    page.mouse.up()


def shown_of(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(amplitude, phase, seen) as the bytes that are sent say them."""
    picture = display(with_ramps(snapshot(number))).object["o"]
    low, high = picture.limits[0]
    amplitude = low + (high - low) * picture.amplitude[0] / 255
    phase = picture.phase[0] * (2 * np.pi / 256) - np.pi
    return amplitude, phase, np.arange(60)[:, None].repeat(80, 1) >= 10


def test_a_line_is_drawn_or_typed_and_its_profile_is_that_of_the_image(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(1))
    page = opened()
    amplitude, phase, _ = shown_of(1)
    page.click("#tool-profile")
    # From pixel [30, 10] to [30, 50] of the array, whose first pixel lies at [-20, 30] of the lattice.
    drag(page, "#left .view", (10, 40), (10, 80))
    found = page.evaluate("window.ptystream.measured.profile")
    drawn_length = float(re.search(r"length ([\d.]+) nm", page.inner_text("#profile-says"))[1])  # type: ignore[index]
    assert drawn_length == pytest.approx(400, abs=6)  # to the pixel of the screen
    assert found["unit"] == "nm" and len(found["amplitude"]) == pytest.approx(41, abs=1)
    for name, value in (("y0", 0.1), ("x0", 0.4), ("y1", 0.1), ("x1", 0.8)):
        page.fill(f"#measure-{name}", str(value))
    found = page.evaluate("window.ptystream.measured.profile")
    assert found["length"] == pytest.approx(4e-7)
    np.testing.assert_allclose(found["x"], 10 * np.arange(41), atol=1e-6)
    np.testing.assert_allclose(found["amplitude"], amplitude[30, 10:51], rtol=1e-6)
    np.testing.assert_allclose(found["phase"], phase[30, 10:51], atol=1e-6)
    page.fill("#measure-y1", "0.105")  # between pixels: as far as is right
    found = page.evaluate("window.ptystream.measured.profile")
    half = found["amplitude"][-1]
    assert half == pytest.approx((amplitude[30, 50] + amplitude[31, 50]) / 2, rel=1e-5)
    chart = np.array(page.evaluate(PIXELS, "profile-chart")).reshape(-1, 4)
    assert len({tuple(pixel) for pixel in chart.tolist()}) > 20
    page.fill("#measure-y0", "-0.15")  # what is not covered is left out
    assert page.evaluate("window.ptystream.measured.profile.amplitude.map(Number.isNaN)")[0]
    page.keyboard.press("Escape")
    assert page.is_hidden("#side") and pressed(page) == ["Move"]


def test_a_region_has_the_figures_of_its_pixels_and_sets_the_contrast(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(1))
    page = opened()
    amplitude, phase, seen = shown_of(1)
    page.keyboard.press("r")
    for name, value in (("y0", -0.15), ("x0", 0.38), ("y1", 0.12), ("x1", 0.62)):
        page.fill(f"#measure-{name}", str(value))
    part = np.s_[5:33, 8:33]  # rows below 10 are not covered
    inside = seen[part]
    found = page.evaluate("window.ptystream.measured.figures")
    assert found["pixels"] == inside.sum() == 23 * 25
    for name, values in (("amplitude", amplitude[part][inside]), ("phase", phase[part][inside])):
        expected = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        expected["median"] = float(np.median(values))
        assert found[name] == pytest.approx(expected, abs=1e-6)
    assert f"({23 * 25} pixels)" in page.inner_text("#roi-says") and "0.0575 µm²" in page.inner_text("#roi-says")
    page.click("#roi-contrast")
    low, high = amplitude[part][inside].min(), amplitude[part][inside].max()
    grey = np.clip(np.rint(255 * (amplitude - low) / (high - low)), 0, 255)
    assert np.abs(drawn(page, "object-amplitude")[10:, :, 0] - grey[10:]).max() <= 1
    low, high = phase[part][inside].min(), phase[part][inside].max()
    grey = np.clip(np.rint(255 * (phase - low) / (high - low)), 0, 255)
    assert np.abs(drawn(page, "object-phase")[10:, :, 1] - grey[10:]).max() <= 1
    page.click("#contrast-reset")
    codes = display(with_ramps(snapshot(1))).object["o"].amplitude[0]
    assert (drawn(page, "object-amplitude")[10:, :, 0] == codes[10:]).all()
    drag(page, "#right .view", (-0.3, 39.7), (10.3, 60.3))
    assert page.evaluate("window.ptystream.measured.figures.pixels") == 11 * 21
    page.click("#measure-clear")
    assert page.evaluate("window.ptystream.measured.figures") is None


def test_what_lies_under_the_pointer_is_read_and_zoom_and_move_are_shared(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(1))
    page = opened()
    amplitude, phase, _ = shown_of(1)
    page.mouse.move(*on_screen(page, "#right .view", 5, 70))
    read = page.inner_text("#readout")
    assert f"phase {phase[25, 40]:.3f} rad" in read and f"amplitude {amplitude[25, 40]:.3f}" in read and "coverage 100 %" in read
    where = [float(v) for v in re.findall(r"[yx] (-?[\d.]+) µm", read)]
    np.testing.assert_allclose(where, [0.05, 0.7], atol=0.006)
    transforms = "['object-phase', 'object-amplitude'].map(id => document.getElementById(id).style.transform)"
    fitted = page.evaluate("window.ptystream.viewport.zoom")
    page.mouse.wheel(0, -400)
    page.wait_for_function("zoom => window.ptystream.viewport.zoom > 2 * zoom", arg=fitted)
    first, second = page.evaluate(transforms)
    assert first == second
    x, y = on_screen(page, "#right .view", 5, 70)  # stays under the pointer
    assert page.inner_text("#readout") == read
    page.mouse.down()
    page.mouse.move(x + 50, y, steps=3)
    page.mouse.up()
    assert len(set(page.evaluate(transforms))) == 1 and page.evaluate(transforms)[0] != first
    page.focus("#left .view")
    before = page.evaluate("window.ptystream.viewport.x")
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate("window.ptystream.viewport.x") > before
    page.keyboard.press("-")
    assert page.evaluate("window.ptystream.viewport.zoom") < 3 * fitted
    page.click("#reset")
    assert page.evaluate("window.ptystream.viewport.zoom") == pytest.approx(fitted)
    bar = page.eval_on_selector("#left .scale", "e => [e.textContent, e.getBoundingClientRect().width]")
    assert bar[1] == pytest.approx(float(bar[0].split()[0]) * 1e-9 / PIXEL * fitted, rel=0.01)
    page.uncheck("#ramp")
    assert "as the engine holds it" in page.inner_text("#left .title")
    a, b, c = with_ramps(snapshot(1)).object["o"].ramp
    raw = np.angle(np.exp(1j * (phase[25, 40] + a + b * 25 + c * 40)))
    page.mouse.move(*on_screen(page, "#right .view", 5, 70))
    assert f"phase {raw:.3f} rad" in page.inner_text("#readout")


def test_two_snapshots_are_compared_pixel_by_pixel_of_the_lattice(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(0))
    page = opened()
    # The canvas has grown by 5 rows and 7 columns: what was at [y, x] of the array is at [y + 5, x + 7] now.
    grown = snapshot(1, offset=(-25, 23))
    wide = np.pad(wave(1)[:55, :73], ((5, 0), (7, 0)), constant_values=1)
    site.publish(page, replace(grown, object={"o": Image(wide[None].astype("c8"), (PIXEL, PIXEL), (-25, 23))}))
    page.click("[data-panel=compare]")
    page.fill("#pin-number", "99")
    page.click("#pin-form button")
    page.wait_for_function("window.ptystream.state.pinned && window.ptystream.state.pinned.header.number === 1")
    assert page.inner_text("#pin-fault") == "snapshot 99 is not kept, 0 to 1 are: 1 is pinned"
    page.fill("#pin-number", "0")
    page.click("#pin-form button")
    page.wait_for_function("window.ptystream.state.pinned && window.ptystream.state.pinned.header.number === 0")
    assert "pinned: test, snapshot 0" in page.inner_text("#pinned-says")
    pictures = [display(with_ramps(s)).object["o"] for s in (snapshot(0), _shown(grown, wide))]
    colours = np.array(page.evaluate("Array.from(window.ptystream.cyclic)")).reshape(256, 3)
    for name, picture in zip(("object-phase", "object-amplitude"), pictures, strict=True):  # side by side, both phases
        assert (drawn(page, name)[10:, :, :3] == colours[picture.phase[0][10:]]).all()
    places = page.evaluate(
        "['object-phase', 'object-amplitude'].map(id => new DOMMatrix(document.getElementById(id).style.transform))"
        ".map(m => [m.f, m.e, m.a])"
    )
    zoom = places[0][2]
    np.testing.assert_allclose(np.subtract(places[0], places[1]), [5 * zoom, 7 * zoom, 0], atol=1e-3)
    page.click("[data-compare=difference]")
    found = page.evaluate("Array.from(window.ptystream.objects.difference.phase, v => Number.isNaN(v) ? null : v)")
    values = np.array([np.nan if v is None else v for v in found]).reshape(60, 80)
    turns = 2 * np.pi / 256
    expected = np.angle(np.exp(1j * turns * (pictures[1].phase[0][15:, 7:].astype(float) - pictures[0].phase[0][10:55, :73])))
    np.testing.assert_allclose(values[15:, 7:], expected, atol=1e-5)
    assert np.isnan(values[:15]).all() and np.isnan(values[:, :7]).all()
    image = drawn(page, "object-phase")
    assert (image[:15, :, 3] == 0).all() and (image[15:, 7:, 3] == 255).all()
    clear = np.abs(expected) > 0.5 * np.abs(expected).max()
    redder = image[15:, 7:, 0].astype(int) > image[15:, 7:, 2]
    assert (redder[clear] == (expected[clear] > 0)).all()
    low, high = zip(*(p.limits[0] for p in pictures), strict=True)
    both = [lo + (hi - lo) * p.amplitude[0] / 255 for lo, hi, p in zip(low, high, pictures, strict=True)]
    found = page.evaluate("Array.from(window.ptystream.objects.difference.amplitude, v => Number.isNaN(v) ? null : v)")
    values = np.array([np.nan if v is None else v for v in found]).reshape(60, 80)
    np.testing.assert_allclose(values[15:, 7:], both[1][15:, 7:] - both[0][10:55, :73], atol=1e-5)
    page.click("[data-compare=blink]")
    titles = set()
    for turn in (True, False):
        page.wait_for_function("turn => window.ptystream.state.turn === turn", arg=turn)
        titles.add("pinned" in page.inner_text("#left .title"))
    assert titles == {True, False}
    coarse = Image(wide[None].astype("c8"), (2 * PIXEL, PIXEL), (-25, 23))
    site.publish(page, replace(snapshot(2), object={"o": coarse}))
    page.click("[data-compare=difference]")
    assert "their pixels differ in size" in page.inner_text("#left .title")
    page.click("#unpin")
    assert page.evaluate("window.ptystream.state.compare") == "off"


def _shown(shown: Snapshot, data: np.ndarray) -> Snapshot:
    return replace(shown, object={"o": Image(data[None].astype("c8"), (PIXEL, PIXEL), shown.object["o"].offset)})


def test_a_dot_of_the_map_leads_to_its_frame(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(1))
    page = opened()
    assert [item.split() for item in page.eval_on_selector_all("#map-legend li", "a => a.map(e => e.textContent)")] == [
        ["used", "2"],
        ["waiting", "1"],
        ["excluded", "1"],
    ]
    page.keyboard.press("m")
    page.wait_for_function("document.getElementById('map-legend').textContent.includes('beam off')")
    box = page.locator("#map").bounding_box()
    low, high = PLACES[:, :2].min(axis=0), PLACES[:, :2].max(axis=0)
    pad = 0.04 * np.max(high - low)
    low, high = low - pad, high + 1 + pad
    zoom = 0.95 * min(box["width"] / (high[1] - low[1]), box["height"] / (high[0] - low[0]))
    y, x = ((PLACES[1, :2] - (low + high - 1) / 2) * zoom).tolist()
    page.mouse.click(box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 + y)
    page.wait_for_selector("#frame-pictures:not([hidden])")
    assert site.session.done[-1] == ("frame", 11)
    assert "frame 11 · used · model at iteration 7" in page.inner_text("#frame-says")
    pattern, model = (drawn(page, f"frame-{name}", SIDE, SIDE) for name in ("pattern", "model"))
    bright = pattern[..., 1].astype(int)
    assert np.unravel_index(bright.argmax(), bright.shape) == (11, 2) and bright[11, 2] > 200
    assert (pattern[0, 0, :3] == [90, 20, 30]).all()  # masked
    assert 150 < model[11, 2, 1] < bright[11, 2]  # a logarithmic scale, the same for both
    residual = drawn(page, "frame-residual", SIDE, SIDE)
    assert residual[11, 2, 2] > residual[11, 2, 0] and residual[0, 0, 3] == 0  # the model has less: blue
    table = page.inner_text("#frame-table")
    assert "y 0.100 µm, x 0.600 µm" in table and "0.25" in table
    history = page.eval_on_selector_all("#frame-history li", "a => a.map(e => e.textContent)")
    assert [line.split()[0] for line in history] == ["received", "prepared", "used"]
    assert "1.500 s after received" in history[2]
    page.focus("#map")
    page.keyboard.press("ArrowRight")  # without a mouse
    page.wait_for_function("document.getElementById('frame-says').textContent.startsWith('frame 12 ·')")
    assert site.session.done[-1] == ("frame", 12)
    page.fill("#frame-number", "99")
    page.press("#frame-number", "Enter")
    page.wait_for_function("document.getElementById('frame-says').textContent.includes('nothing is known of it')")
    assert page.is_hidden("#frame-pictures")


def test_modes_and_layers_are_chosen_with_their_share_of_the_power(site: Site, opened: Callable[..., Any]) -> None:
    first = snapshot(1)
    layers = Image(np.stack([wave(1), 0.5 * wave(2)]).astype("c8"), (PIXEL, PIXEL), (-20, 30))
    two = {"o": first.object["o"], "second": layers}
    both = replace(first, object=two, coverage={**first.coverage, "second": first.coverage["o"]})
    site.publisher.offer(both)
    page = opened()
    buttons = page.eval_on_selector_all("#modes button", "a => a.map(e => e.textContent)")
    assert buttons == ["all", "1: 88 %", "2: 9.8 %", "3: 2.4 %"]
    sizes = "(c => [c.height, c.width])(document.getElementById('probe'))"
    assert sorted(page.evaluate(sizes)) in ([32, 96], [64, 64])
    page.keyboard.press("2")
    assert page.evaluate(sizes) == [32, 32] and page.inner_text("#probes .title") == "probe mode 2"
    one = drawn(page, "probe", 32, 32)[..., :3].max(axis=-1)
    page.keyboard.press("1")
    assert drawn(page, "probe", 32, 32)[..., :3].max(axis=-1).mean() == pytest.approx(3 * one.mean(), rel=0.1)
    page.click("#modes button >> nth=0")
    assert page.evaluate("window.ptystream.state.mode") is None
    page.select_option("#object-name", "second")
    assert page.eval_on_selector("#object-layer", "e => Array.from(e.options).map(o => o.text)")[0].startswith("layer 1: ")
    page.select_option("#object-layer", index=1)
    codes = display(with_ramps(both)).object["second"].phase[1]
    colours = np.array(page.evaluate("Array.from(window.ptystream.cyclic)")).reshape(256, 3)
    assert (drawn(page, "object-phase")[10:, :, :3] == colours[codes[10:]]).all()
    assert page.is_hidden("#left .cover")
    page.keyboard.press("o")
    cover = np.array(page.eval_on_selector("#left .cover", "c => Array.from(c.getContext('2d').getImageData(0, 0, 80, 60).data)"))
    cover = cover.reshape(60, 80, 4)
    assert (cover[20, 20] != cover[5, 20]).any() and (cover[20, 20] == cover[50, 60]).all()


def test_what_was_measured_of_the_quality_is_shown_with_its_age_and_nothing_else(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(1))
    page = opened()
    page.keyboard.press("q")
    assert page.is_visible("#quality-none") and page.is_hidden("#frc") and page.is_hidden("#resolution-stat")
    when = {"measured_ns": time.time_ns() - 90 * 10**9, "iteration": 12}
    frequency = np.linspace(0, 5e7, 40)
    frc = {
        "frequency_per_m": frequency.tolist(),
        "correlation": (1 - frequency / 6e7).tolist(),
        "threshold": np.full(40, 0.4).tolist(),
        "resolution_m": 2.5e-8,
        "frames": 60,
        "iterations": 8,
        "share": 0.1,
    }
    ranking = [{"name": "as it is", "orientation": 0, "misfit": 0.19}, {"name": "transposed", "orientation": 1, "misfit": 0.4}]
    quality = {
        "frc": frc | when,
        "drift": {"probe_m": [3e-9, 4e-9]} | when,  # no positions are refined
        "convergence": {"state": "falling", "per_iteration": -0.01} | when,
        "convention": {"ranking": ranking, "ties": [["a", "b"]], "lead": 2.1, "chosen": None, "why": "two fit"} | when,
    }
    site.publish(page, snapshot(2, quality=quality))
    assert page.is_hidden("#quality-none") and page.inner_text("#resolution") == "25 nm"
    table = page.inner_text("#frc-table")
    assert "25 nm (half the period)" in table and "60 frames, 8 iterations of each half, 10.0 % of the time" in table
    assert re.search(r"measured (8|9|10)\d s ago, iteration 12", page.inner_text("#frc-age"))
    figures = page.eval_on_selector_all("#quality-figures section", "a => a.map(e => [e.dataset.figure, e.innerText])")
    told = dict(figures)
    assert set(told) == {"drift", "convergence", "convention"}  # no coverage was measured
    page.wait_for_function("/, [\\d.]+ s ago · iteration 20$/.test(document.getElementById('when').textContent)")  # nothing came
    assert "5 nm (y 3 nm, x 4 nm)" in told["drift"] and "rms" not in told["drift"] and "falling" in told["convergence"]
    assert all(text in told["convention"] for text in ("none: a tie", "a = b", "1. as it is", "misfit 0.19", "2.1 ×"))
    assert all("iteration 12" in text for text in told.values())
    assert page.get_attribute("#misfit", "aria-label").startswith("photon 1, Poisson 1")
    site.publish(page, snapshot(3))
    assert page.is_visible("#quality-none") and page.is_hidden("#frc")


def test_operators_steer_and_others_do_not_see_how(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(1))
    viewer = opened()
    assert viewer.is_hidden("[data-panel=steer]")
    viewer.keyboard.press("s")
    assert viewer.is_hidden("#side")
    page = opened(operator=True)
    page.keyboard.press("s")
    page.wait_for_selector("[data-path='engines.e.alpha']")
    alpha = "[data-path='engines.e.alpha']"
    assert "float, ≥ 0, ≤ 1" in page.inner_text(alpha) and "What it does" in page.inner_text(alpha)
    assert page.input_value(f"{alpha} input") == "0.5"
    page.fill(f"{alpha} input", "1.5")
    page.press(f"{alpha} input", "Enter")
    page.wait_for_function("document.querySelector('.parameter output').textContent.includes('must be at most 1')")
    page.fill(f"{alpha} input", "0.75")
    page.click(f"{alpha} button")
    page.wait_for_function("document.querySelector('.parameter output').textContent === 'was 0.5, is 0.75'")
    page.fill("[data-path='live.latency'] input", "2")
    page.click("[data-path='live.latency'] button")
    page.wait_for_function("document.querySelectorAll('.parameter output')[1].textContent !== ''")
    page.fill("[data-path='live.latency'] input", "")
    page.click("[data-path='live.latency'] button")
    page.wait_for_function("document.querySelectorAll('.parameter output')[1].textContent.endsWith('is None')")
    page.select_option("[data-path='engines.e.subpix'] select", label="fourier")
    page.click("[data-path='engines.e.subpix'] button")
    page.wait_for_function("document.querySelectorAll('.parameter output')[2].textContent.endsWith('is fourier')")
    centre = "[data-path='scans.s.data.center']"  # words are proposed; numbers may be typed
    assert "Where the beam is. str or tuple or None" in page.inner_text(centre)
    assert page.eval_on_selector_all(f"{centre} datalist option", "a => a.map(e => e.value)") == ["fftshift", "fft"]
    for text, told in (("[66, 61]", "is [66,61]"), ("fft", "is fft")):
        page.fill(f"{centre} input", text)
        page.click(f"{centre} button")
        page.wait_for_function("t => document.querySelectorAll('.parameter output')[3].textContent.endsWith(t)", arg=told)
    assert site.session.done == [
        ("set", "engines.e.alpha", 0.75),
        ("set", "live.latency", 2),
        ("set", "live.latency", None),
        ("set", "engines.e.subpix", "fourier"),
        ("set", "scans.s.data.center", [66, 61]),
        ("set", "scans.s.data.center", "fft"),
    ]
    site.session.done.clear()
    page.click("[data-action=pause]")
    page.wait_for_function("document.getElementById('steer-says').textContent === 'pause: done'")
    page.click("[data-action=stop]")
    assert page.inner_text("#confirm-question") == "Stop the whole session?"
    page.keyboard.press("Enter")  # what has the focus is Cancel
    page.wait_for_function("!document.getElementById('confirm').open")
    assert site.session.done == [("pause",)]
    page.click("[data-action=stop]")
    page.click("#confirm-yes")
    page.wait_for_function("document.getElementById('steer-says').textContent === 'stop: done'")
    assert site.session.done == [("pause",), ("stop",)]


WIDEST = """Array.from(document.querySelectorAll('body *')).filter(e => e.getBoundingClientRect().right > screen.width + 1)
    .map(e => `${e.tagName} ${e.id}`)"""


@pytest.mark.parametrize(("width", "height"), [(390, 844), (844, 390), (320, 568)])
def test_a_phone_needs_no_scrolling_sideways(site: Site, opened: Callable[..., Any], width: int, height: int) -> None:
    site.publisher.offer(snapshot(1, run="a_run_of_a_rather_long_name_0001"))
    page = opened(operator=True, viewport={"width": width, "height": height}, has_touch=True, is_mobile=True)
    wide = "[document.documentElement.scrollWidth, window.innerWidth]"
    for panel in ("", "compare", "frame", "quality", "steer", "export", "help"):
        if panel:
            page.tap(f"[data-panel={panel}]")
            assert page.is_visible(f"#panel-{panel}")
        scrolls, there = page.evaluate(wide)
        assert scrolls <= there == width, (panel, page.evaluate(WIDEST))
    page.tap("#side-close")
    page.tap("#tool-profile")
    assert page.evaluate(wide)[0] <= width
    columns = page.eval_on_selector_all("#pictures figure", "a => new Set(a.map(e => e.getBoundingClientRect().left)).size")
    assert columns == (1 if width < 800 else 4)


def test_two_fingers_zoom(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(1))
    page = opened(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    before = page.evaluate("window.ptystream.viewport.zoom")
    client = page.context.new_cdp_session(page)
    x, y = on_screen(page, "#left .view", 10, 70)

    def touch(kind: str, *apart: float) -> None:
        points = [{"x": x + sign * reach, "y": y, "id": k} for reach in apart for k, sign in enumerate((-1, 1))]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 20)
    for reach in (25, 30, 35, 40):
        touch("touchMove", reach)
    touch("touchEnd")
    page.wait_for_function("zoom => window.ptystream.viewport.zoom > 1.5 * zoom", arg=before)
    assert page.evaluate("window.ptystream.viewport.zoom") == pytest.approx(2 * before, rel=0.2)


def test_everything_is_reached_by_keys_and_the_help_says_which(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(0))
    page = opened()
    for number in (1, 2):
        site.publish(page, snapshot(number))
    page.keyboard.press(" ")
    assert page.inner_text("#live") == "held"
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("window.ptystream.header.number === 1")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("window.ptystream.header.number === 0")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("window.ptystream.header.number === 1")
    page.keyboard.press(" ")
    page.wait_for_function("window.ptystream.header.number === 2")
    page.keyboard.press("a")
    assert page.is_hidden("#left") and page.is_visible("#right")
    page.keyboard.press("p")
    assert page.is_visible("#left") and page.is_hidden("#right")
    page.keyboard.press("p")
    for key, panel in (("q", "quality"), ("e", "export"), ("l", "measure"), ("c", "measure"), ("?", "help")):
        page.keyboard.press(key)
        assert page.is_visible(f"#panel-{panel}"), key
    assert page.evaluate("window.ptystream.state.compare") == "side"
    listed = page.eval_on_selector_all("#keys kbd", "a => a.map(e => e.textContent)")
    assert {"space", "←", "→", "+", "−", "f", "a", "p", "1 … 9", "c", "l", "r", "m", "o", "q", "s", "?", "Esc"} <= set(listed)
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    seen = set()
    for _ in range(40):
        found = page.evaluate(
            "(e => [e.id, e.matches(':focus-visible'), getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        seen.add(found[0])
        assert found[1:] == [True, "solid"] or found[0] == ""  # the focus has left for the browser's own controls
        page.keyboard.press("Tab")
    assert {"tool-profile", "map", "history", "live", "coverage"} <= seen
    unnamed = page.evaluate(
        """Array.from(document.querySelectorAll('button, select, input, canvas[role], [tabindex]')).filter(e =>
        !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length) || !e.getClientRects().length))
        .map(e => e.outerHTML)"""
    )
    assert unnamed == []


def test_exports_and_the_link_are_of_what_is_shown_and_let_nobody_steer(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(0, run="a&b"))
    page = opened(operator=True)
    site.publish(page, snapshot(1, run="a&b"))
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("window.ptystream.header.number === 0")
    page.keyboard.press("e")
    for name, begins in (("phase", b"\x89PNG"), ("probe-amplitude", b"\x89PNG"), ("h5", b"\x89HDF")):
        address = page.get_attribute(f"#export-{name}", "href")
        assert "run=a%26b&number=0" in address
        answer = page.request.get(address)
        assert answer.status == 200 and answer.body().startswith(begins)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.address.rstrip("/"))
    page.click("#copy-link")
    page.wait_for_function("document.getElementById('copied').textContent === 'copied'")
    link = page.evaluate("navigator.clipboard.readText()")
    assert OPERATE not in link and link.startswith(site.address)
    other = opened(after=link.removeprefix(site.address))
    other.wait_for_function("window.ptystream.header.number === 0")
    assert other.evaluate("window.ptystream.me.role") == "view" and other.inner_text("#live") == "held"


def test_it_is_light_or_dark_as_the_user_has_it(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(1))
    luminance = []
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
        back, text = (np.mean([int(v) for v in re.findall(r"\d+", colour)[:3]]) for colour in colours)
        assert abs(back - text) > 120
        luminance.append(back)
        curve = np.array(page.evaluate(PIXELS, "misfit")).reshape(-1, 4)
        assert (curve[:, 3] > 0).any()
    assert luminance[0] > 200 > 60 > luminance[1]


def test_the_page_and_all_its_parts_keep_to_a_strict_policy(site: Site, chrome: Any) -> None:
    """No inline script or style, nothing from elsewhere, and no word in the console."""
    site.publisher.offer(snapshot(1))
    page, said = chrome.new_page(), []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    answer = page.goto(site.address)
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    deadline = time.monotonic() + 60
    while not page.evaluate("Boolean(window.ptystream && window.ptystream.header)") and time.monotonic() < deadline:
        pass
    for key in ("c", "q", "l", "m", "e", "?", "Escape"):
        page.keyboard.press(key)
    assert said == [] and page.evaluate("window.ptystream.errors") == []
    host = site.address.split("//")[1]
    assert all(url.split("//")[1].startswith(host) for url in asked if not url.startswith("data:")), json.dumps(asked)
    page.close()


SESSION = """
import sys
from test_web_page import snapshot
from ptystream.publish.heartbeat import RunBeat
from ptystream.publish.publisher import Publisher
publisher = Publisher(sys.argv[1])
publisher.offer(snapshot(1))
publisher.runs = lambda: [RunBeat("test", "running", 77)]
sys.stdin.read()
publisher.close()
"""


def test_a_session_that_is_killed_is_told_from_a_slow_one_and_from_one_that_ended(site: Site, opened: Callable[..., Any]) -> None:
    site.publisher.offer(snapshot(1))
    page = opened()
    page.wait_for_timeout(6000)  # longer than a session may be silent
    assert page.inner_text("#state") == "running" and page.inner_text("#silent") == ""
    site.publisher.runs = lambda: [RunBeat("test", "running", 33)]
    page.wait_for_function("document.getElementById('iteration').textContent === '33'")  # though no picture tells it yet
    assert page.inner_text("#when").endswith("iteration 10")
    site.publisher.close()
    page.wait_for_function("document.getElementById('state').textContent === 'session ended'")
    command = [sys.executable, "-c", SESSION, site.publisher.endpoint]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path(__file__).parent)
    page.wait_for_function("document.getElementById('iteration').textContent === '77'")
    assert page.inner_text("#state") == "running"
    began = time.monotonic()
    child.kill()
    child.wait(60)
    page.wait_for_function("document.getElementById('state').textContent === 'session not answering'")
    assert time.monotonic() - began < 10
    assert re.fullmatch(r"for \d+ s", page.inner_text("#silent"))
    assert child.stdin is not None
    child.stdin.close()


def on_map(page: Any, y: float, x: float) -> tuple[float, float]:
    found = page.evaluate(
        """([y, x]) => { const b = document.getElementById("map"), r = b.getBoundingClientRect();
        const [py, px] = window.ptystream.map.viewport.to(b, y, x); return [r.left + px, r.top + py]; }""",
        [y, x],
    )
    return found[0], found[1]


def test_a_frame_of_either_of_two_scans_is_found_on_their_map(site: Site, opened: Callable[..., Any]) -> None:
    site.session.scans = ["s", "t"]
    probes = {name: Image((wave(9)[None, :32, :32]).astype("c8"), (PIXEL, PIXEL), (0, 0)) for name in ("p", "second")}
    both = np.concatenate([PLACES, PLACES + np.array([100, 0, 0], "f4")])
    site.publisher.offer(snapshot(1, ledger_map=both, scans=("s", "t")))  # they share probe and object so far
    page = opened(operator=True)
    page.wait_for_selector("#map-scan:not([hidden])")
    site.publish(page, snapshot(2, probe=probes, ledger_map=both, scans=("s", "t")))
    assert page.eval_on_selector_all("#map-scan option", "a => a.map(o => o.text)") == ["all scans", "s", "t"]
    assert page.eval_on_selector_all("#probe-name option", "a => a.map(o => o.text)") == ["probe p", "probe second"]
    site.session.answers.clear()  # the session takes its time
    page.wait_for_timeout(2100)  # what it answered is no longer fresh
    site.publish(page, snapshot(3, probe=probes, ledger_map=both, scans=("s", "t"), ledger={"received": 5}))
    page.mouse.click(*on_map(page, 110, 60))
    assert page.inner_text("#map-note") == "asking the session…"
    site.session.answers.set()
    page.wait_for_selector("#frame-pictures:not([hidden])")
    assert page.inner_text("#frame-says").startswith("frame 11 of t · used")
    assert page.input_value("#frame-scan") == "t" and page.input_value("#probe-name") == "second"
    page.mouse.click(*on_map(page, 0, 40))
    page.wait_for_function("document.getElementById('frame-says').textContent.startsWith('frame 10 of s')")
    page.focus("#map")
    page.keyboard.press("ArrowLeft")  # from the first of one scan to the last of the other
    page.wait_for_function("document.getElementById('frame-says').textContent.startsWith('frame 13 of t')")
    page.keyboard.press("m")
    page.wait_for_function("document.getElementById('map-scans').textContent.includes('·')")
    assert page.inner_text("#map-scans") == "s: 2 used, 1 waiting, 1 beam off · t: 2 used, 1 waiting, 1 beam off"
    assert page.inner_text("#map-large") == "smaller"
    page.select_option("#map-scan", "t")
    page.wait_for_function("window.ptystream.map.points.y.length === 4 && window.ptystream.map.points.y[0] >= 100")


def test_a_frame_without_a_model_says_so_and_escape_ends_comparing(site: Site, opened: Callable[..., Any]) -> None:
    site.session.model = False
    site.publisher.offer(snapshot(1))
    page = opened(operator=True)
    page.click("[data-panel=frame]")
    page.fill("#frame-number", "11")
    page.keyboard.press("Enter")
    page.wait_for_selector("#frame-pictures:not([hidden])")
    assert page.is_visible("#frame-pattern") and page.is_hidden("#frame-model") and page.is_hidden("#frame-residual")
    assert page.locator("#frame-pictures figure:visible").count() == 1
    assert "none: not worked out for rocking curves" in page.inner_text("#frame-table")
    assert "model at" not in page.inner_text("#frame-says")
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    assert page.evaluate("window.ptystream.state.compare") == "side"
    page.click("#side-close")  # only the panel
    assert page.evaluate("window.ptystream.state.compare") == "side" and "on" in page.get_attribute(
        "[data-panel=compare]", "class"
    )
    page.keyboard.press("Escape")
    assert page.evaluate("window.ptystream.state.compare") == "off" and page.get_attribute("[data-panel=compare]", "class") == ""


def test_slices_of_a_thick_object_are_shown_together_or_one_by_one(site: Site, opened: Callable[..., Any]) -> None:
    y, x = np.mgrid[:60, :80]
    phases = np.stack([0.1 * np.sin(0.3 * x), 0.7 * np.cos(0.2 * y), -0.05 * np.sin(0.3 * x)])
    slices = ((1 + 0.002 * x) * np.exp(1j * phases)).astype("c8")
    angstrom = (2e-11, 2e-11)
    thick = Image(slices, angstrom, (0, 0), depths_m=(0.0, 5e-10, 2e-9))
    site.publisher.offer(snapshot(1, object={"o": thick}))
    page = opened(operator=True)
    told = ["all slices together", "slice 1 of 3, 0 nm deep", "slice 2 of 3, 5 Å deep", "slice 3 of 3, 2 nm deep"]
    assert page.eval_on_selector_all("#object-layer option", "a => a.map(o => o.text)") == told
    assert page.inner_text("#left .title").startswith("object phases of all slices, added")
    assert page.inner_text("#left .scale") == "2 Å"
    codes = np.array(page.evaluate("Array.from(window.ptystream.objects.now.phase)")).reshape(60, 80)
    a, b, c = page.evaluate("window.ptystream.objects.now.ramp")
    assert abs(b) > 1e-4  # one was fitted and removed
    held = codes * (2 * np.pi / 256) - np.pi + a + b * y + c * x
    seen = np.s_[10:]
    assert np.abs(np.angle(np.exp(1j * (held - phases.sum(0)))))[seen].max() < 0.06  # a step is 0.025
    values = page.evaluate(
        "(i => Array.from(i.amplitude, v => i.low + (i.high - i.low) * v / 255))(window.ptystream.objects.now)"
    )
    product = ((1 + 0.002 * np.arange(80)) / (1 + 0.002 * 39.5)) ** 3
    np.testing.assert_allclose(np.array(values).reshape(60, 80)[20, 5:75], product[5:75], atol=0.02)
    page.select_option("#object-layer", "2")
    assert page.inner_text("#left .title").startswith("object phase · slice 3 of 3, 2 nm deep")
    grey = drawn(page, "object-phase")[..., :3]
    assert (grey[..., 0] == grey[..., 1]).all() and np.ptp(grey[seen]) > 150  # a phase that hardly turns has all greys
    page.select_option("#object-layer", "1")
    colour = drawn(page, "object-phase")[..., :3]
    assert (colour[..., 0] != colour[..., 2]).any()  # one that does has the wheel
    page.hover("#left .view")
    assert re.search(r"y -?[\d.]+ Å, x", page.inner_text("#readout"))
    page.mouse.click(*on_map(page, 0, 40))
    page.wait_for_selector("#frame-pictures:not([hidden])")
    assert page.inner_text("#frame-model-says") == "model, through all slices"
