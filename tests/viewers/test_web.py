"""The web viewer in a real headless Chromium: what is drawn is what was published."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect

from ptystream.publish.display import display, with_ramps
from ptystream.publish.publisher import Publisher
from ptystream.publish.snapshot import Image, Snapshot
from ptystream.viewers.web.application import application
from ptystream.viewers.web.feed import Feed
from ptystream.viewers.web.history import Histories
from ptystream.viewers.web.picture import Picture
from ptystream.viewers.web.serving import configured

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
LIMIT_MS = 120_000
"""How long a browser on a machine that is busy may take."""
PIXELS = "(() => { const c = document.getElementById('%s'); return Array.from(c.getContext('2d')"
PIXELS += ".getImageData(0, 0, c.width, c.height).data); })()"


def snapshot(number: int, state: str = "running", run: str = "test") -> Snapshot:
    random = np.random.default_rng([number, *run.encode()])
    wave = np.exp(1j * random.uniform(-3, 3, (1, 60, 70))) * random.uniform(0.5, 1.5, (1, 60, 70))
    seen = np.ones((60, 70), np.float32)
    seen[:10] = 0.01
    return Snapshot(
        run=run,
        number=number,
        created_ns=time.time_ns(),
        engine="DM",
        iteration=10 * number,
        state=state,
        probe={"p": Image(wave[:, :32, :32].astype("c8"), (1e-8, 1e-8), (0, 0))},
        object={"o": Image(wave.astype("c8"), (1e-8, 1e-8), (0, 0), (0.3, 0.01, -0.02))},
        coverage={"o": seen},
        positions=np.zeros((4, 2), "f4"),
        errors=np.ones((5, 3)),
        misfit=np.ones((5, 3)),
        ledger={"received": 4, "used": 4, "expected": 9},
        ledger_map=np.array([[0, 0, 2], [3, 4, 2], [1, 5, 1], [2, 2, 0]], "f4"),
        newest_frame_ns=time.time_ns(),
        rates={"frames_per_second": 12.0},
    )


@pytest.fixture
def site() -> Iterator[tuple[str, Publisher]]:
    publisher = Publisher()
    feed = Feed(publisher.endpoint)
    server = uvicorn.Server(configured(application(feed)))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/", publisher
    server.should_exit = True
    thread.join(60)
    feed.close()
    publisher.close()


def picture(run: str, content: bytes) -> Picture:
    return Picture(run, {}, {"content": np.frombuffer(content, np.uint8)})


def content_of(held: Picture) -> bytes:
    return held.arrays["content"].tobytes()


def histories_of(*kept: tuple[str, bytes]) -> Histories:
    histories = Histories()
    for run, content in kept:
        histories.keep(picture(run, content))
    return histories


def test_the_newest_picture_of_the_run_that_began_last_is_found_and_any_other_by_run_and_number() -> None:
    histories = histories_of(("a", b"a0"), ("a", b"a1"), ("b", b"b0"), ("a", b"a2"))

    def found(*what: Any) -> tuple[str, int, bytes]:
        got = histories.get(*what)
        assert got is not None
        assert got.runs == ("a", "b")
        return got.run, got.number, content_of(got.picture)

    assert found() == ("b", 0, b"b0")
    assert found("a") == ("a", 2, b"a2")
    assert found("a", 1) == ("a", 1, b"a1")
    assert found("a", -5) == ("a", 0, b"a0")
    assert found("a", 99) == ("a", 2, b"a2")
    assert found("unknown", 0) == ("b", 0, b"b0")
    assert histories_of().get() is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_history_is_bounded_and_every_run_keeps_its_last_picture_while_there_is_room(kept: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HISTORY", 5), ("HISTORY_BYTES", 100), ("RUNS", 4)):
            patch.setattr(f"ptystream.viewers.web.history.{name}", value)
        histories = histories_of()
        last: dict[str, int] = {}
        for k, (run, size) in enumerate(kept):
            histories.keep(picture(run, k.to_bytes(1, "little") * size))
            last[run] = k
            newest = histories.get(run)
            assert newest is not None
            assert content_of(newest.picture)[0] == k
        held = [found for run in last if (found := histories.get(run)) is not None and found.run == run]
        assert len(held) <= 4
        total = 0
        for one in held:
            assert one.newest - one.oldest < 5
            assert content_of(one.picture)[0] == last[one.run]
            frames = [histories.get(one.run, k) for k in range(one.oldest, one.newest + 1)]
            assert [f.number for f in frames if f] == list(range(one.oldest, one.newest + 1))
            total += sum(f.picture.nbytes for f in frames if f)
        assert total <= 100
        assert histories._bytes == total


def test_what_a_browser_asks_for_while_it_draws_is_shown_next_and_stays(site: tuple[str, Publisher]) -> None:
    address, publisher = site
    with connect(address.replace("http", "ws") + "stream") as browser:

        def said() -> tuple[str, int]:
            while not isinstance(word := browser.recv(60), bytes):
                about = json.loads(word)
            return about["run"], about["number"]

        publisher.offer(snapshot(0))
        assert said() == ("test", 0)
        browser.send('{"drawn": 0}')
        publisher.offer(snapshot(1))
        assert said() == ("test", 1)
        browser.send('{"show": 0, "run": "test"}')
        for nonsense in ("[", "[1]", '{"show": "x", "run": 7', '{"other": 1}'):
            browser.send(nonsense)
        with pytest.raises(TimeoutError):
            browser.recv(0.3)
        browser.send('{"drawn": 1}')
        assert said() == ("test", 0)
        browser.send('{"drawn": 0}')
        publisher.offer(snapshot(2))
        word = browser.recv(60)
        assert not isinstance(word, bytes)
        assert json.loads(word) == {"run": "test", "number": 0, "oldest": 0, "newest": 2, "runs": ["test"]}
        with pytest.raises(TimeoutError):
            browser.recv(0.3)
        browser.send('{"show": null, "run": null}')
        assert said() == ("test", 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_one_of_several_runs_can_be_chosen_and_the_newest_is_shown_otherwise(site: tuple[str, Publisher], chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    address, publisher = site
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=FLAGS, timeout=LIMIT_MS)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, bypass_csp=True)  # what waits here is evaluated
        page.set_default_timeout(LIMIT_MS)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)

        def publish(number: int, run: str, state: str = "running") -> None:
            publisher.offer(snapshot(number, state, run))
            page.wait_for_function(
                "([run, number]) => window.ptystream.runs.includes(run) && window.ptystream.header && "
                "(window.ptystream.header.run !== run || window.ptystream.header.number === number)",
                arg=[run, number],
            )

        def shows(run: str, number: int) -> None:
            page.wait_for_function(
                "([run, number]) => window.ptystream.header.run === run && window.ptystream.header.number === number",
                arg=[run, number],
            )
            drawn = np.array(page.evaluate(PIXELS % "object-phase")).reshape(60, 70, 4)
            colours = np.array(page.evaluate("Array.from(window.ptystream.cyclic)")).reshape(256, 3)
            phase = display(with_ramps(snapshot(number, run=run))).object["o"].phase[0]
            assert (drawn[10:, :, :3] == colours[phase[10:]]).all()

        publish(0, "scan")
        publish(1, "scan", "finished")
        assert page.is_hidden("#runs")
        assert page.inner_text("#run") == "scan"
        publish(0, "scan_0002")
        shows("scan_0002", 0)
        assert page.is_visible("#runs")
        assert page.eval_on_selector("#runs", "e => Array.from(e.options).map(o => o.text)") == [
            "newest: scan_0002",
            "scan_0002",
            "scan",
        ]
        page.select_option("#runs", "=scan")
        shows("scan", 1)
        publish(1, "scan_0002")
        publish(0, "<b>third</b>")
        assert page.evaluate("window.ptystream.header.run") == "scan"
        assert page.input_value("#runs") == "=scan"
        page.select_option("#runs", "")
        shows("<b>third</b>", 0)
        page.select_option("#runs", "=scan_0002")
        shows("scan_0002", 1)
        move = "e => { e.value = '0'; e.dispatchEvent(new Event('input')); }"
        page.eval_on_selector("#history", move)
        shows("scan_0002", 0)
        page.click("#live")
        shows("scan_0002", 1)
        page.select_option("#runs", "")
        shows("<b>third</b>", 0)
        page.eval_on_selector("#history", move)
        publisher.offer(snapshot(0, run="fourth"))
        page.wait_for_function("window.ptystream.runs.includes('fourth')")
        shows("<b>third</b>", 0)
        assert page.input_value("#runs") == "=<b>third</b>"
        page.click("#live")
        shows("fourth", 0)
        assert page.input_value("#runs") == ""
        assert errors == []
        browser.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_browser_draws_the_published_object_and_follows(site: tuple[str, Publisher], chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    address, publisher = site
    publisher.offer(snapshot(1))
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=FLAGS, timeout=LIMIT_MS)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, bypass_csp=True)  # what waits here is evaluated
        page.set_default_timeout(LIMIT_MS)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        for number in (1, 2):
            if number == 2:
                publisher.offer(snapshot(2))
            page.wait_for_function(f"window.ptystream.header && window.ptystream.header.number === {number}")
            shown = display(with_ramps(snapshot(number)))
            drawn = np.array(page.evaluate(PIXELS % "object-phase")).reshape(60, 70, 4)
            colours = np.array(page.evaluate("Array.from(window.ptystream.cyclic)")).reshape(256, 3)
            lit = np.arange(60) >= 10
            assert (drawn[lit][..., :3] == colours[shown.object["o"].phase[0][lit]]).all()
            assert (drawn[~lit][..., 3] == 0).all()
            grey = np.array(page.evaluate(PIXELS % "object-amplitude")).reshape(60, 70, 4)
            assert (grey[lit][..., 0] == shown.object["o"].amplitude[0][lit]).all()
        page.evaluate(
            "document.getElementById('history').value = '0'; document.getElementById('history').dispatchEvent(new Event('input'))"
        )
        page.wait_for_function("window.ptystream.header.number === 1")
        publisher.offer(snapshot(3))
        page.wait_for_timeout(500)
        assert page.evaluate("window.ptystream.header.number") == 1
        page.click("#live")
        page.wait_for_function("window.ptystream.header.number === 3")
        assert errors == []
        browser.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_quick_look_is_shown_under_its_name_and_can_be_gone_back_to(site: tuple[str, Publisher], chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    address, publisher = site
    whole = snapshot(2)
    image, seen = whole.object["o"], whole.coverage["o"]
    name = "quick look: icom"
    quality = {"quick_look": {"kind": "icom", "frames": 4, "rotation_deg": 12.34, "curl": 0.1, "mirrored": "no"}}
    quality["quick_look"] |= {"center_px": [0.1, 0.2], "measured_ns": time.time_ns(), "iteration": 0}
    early = replace(snapshot(1), iteration=0, object={name: image}, coverage={name: seen}, quality=quality)
    publisher.offer(early)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS, timeout=LIMIT_MS)
        page = browser.new_page(bypass_csp=True)
        page.set_default_timeout(LIMIT_MS)
        page.goto(address)
        title = "document.querySelector('#left .title').textContent"
        page.wait_for_function(f"({title}).includes('quick look: icom · from dark')")
        publisher.offer(replace(whole, object={"o": image, name: image}, coverage={"o": seen, name: seen}, quality=quality))
        page.wait_for_function(f"({title}).includes('object phase')")
        page.select_option("#object-name", name)
        page.wait_for_function(f"({title}).includes('quick look: icom · from dark')")
        page.evaluate("document.querySelector('[data-panel=quality]').click()")
        page.wait_for_function("document.querySelector('[data-figure=quick_look]').textContent.includes('12.3°')")
        assert page.evaluate("window.ptystream.errors") == []
        browser.close()
