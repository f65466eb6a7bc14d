"""The web viewer in a real headless Chromium: what is drawn is what was published."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import uvicorn

from ptystream.publish.display import display, with_ramps
from ptystream.publish.publisher import Publisher
from ptystream.publish.snapshot import Image, Snapshot
from ptystream.viewers.web.server import Feed, application

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def snapshot(number: int, state: str = "running") -> Snapshot:
    random = np.random.default_rng(number)
    wave = np.exp(1j * random.uniform(-3, 3, (1, 60, 70))) * random.uniform(0.5, 1.5, (1, 60, 70))
    seen = np.ones((60, 70), np.float32)
    seen[:10] = 0.01
    return Snapshot(
        run="test",
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
    server = uvicorn.Server(uvicorn.Config(application(feed), port=0, log_level="error", ws_per_message_deflate=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/", publisher
    server.should_exit = True
    thread.join(10)
    feed.close()
    publisher.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_browser_draws_the_published_object_and_follows(site: tuple[str, Publisher], chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    address, publisher = site
    publisher.offer(snapshot(1))
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        pixels = "(() => { const c = document.getElementById('%s'); return Array.from(c.getContext('2d')"
        pixels += ".getImageData(0, 0, c.width, c.height).data); })()"
        for number in (1, 2):
            if number == 2:
                publisher.offer(snapshot(2))
            page.wait_for_function(f"window.ptystream.header && window.ptystream.header.number === {number}")
            shown = display(with_ramps(snapshot(number)))
            drawn = np.array(page.evaluate(pixels % "object-phase")).reshape(60, 70, 4)
            colours = np.array(page.evaluate("Array.from(window.ptystream.cyclic)")).reshape(256, 3)
            lit = np.arange(60) >= 10
            assert (drawn[lit][..., :3] == colours[shown.object["o"].phase[0][lit]]).all()
            assert (drawn[~lit][..., 3] == 0).all()
            grey = np.array(page.evaluate(pixels % "object-amplitude")).reshape(60, 70, 4)
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
