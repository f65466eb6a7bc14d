"""One browser's websocket: pictures as it wants them, one on its way at a time, told by what changed since the one it has."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import weakref
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ..hearing import Standing
from .feed import Feed
from .history import Found
from .picture import Picture
from .sharing import Shared
from .tiles import CODINGS, Coding

LONGEST_DRAW_S = 30.0
"""A browser that has not drawn a picture after this time is given up."""
SLOWEST = 1 / 60
"""Pictures a second that a browser may ask for at the least."""
BEAT_S = 0.9
"""Least time between two words on how the session is, unless it has changed: its own come every second."""
MAX_WORD = 4000
"""Characters; a longer word of a browser is left unread."""


class Wish:
    """What a browser wants to see, how often, and whether it is drawing."""

    def __init__(self, changed: asyncio.Event, coding: Coding = "none") -> None:
        self.run: str | None = None
        """None: the newest."""
        self.number: int | None = None
        """None: the newest."""
        self.rate: float | None = None
        """Pictures a second at the most while the newest are followed; None: as they come."""
        self.coding: Coding = coding
        self.due: float | None = None
        """When a picture that was sent must have been drawn; None: none is on its way."""
        self.whole = False
        """Whether the browser has lost what it had."""
        self.gone = False
        self.changed = changed

    def take(self, text: str) -> None:
        """What the browser says, a JSON map: `show` (number or null) with `run` (name or null), `rate` (or null), `drawn`,
        `keyframe`. What is none of these, or of a wrong type, is left."""
        try:
            word = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(word, dict):
            return
        if "drawn" in word or "keyframe" in word:
            self.due = None
        if "keyframe" in word:
            self.whole = True
        if "show" in word:
            run, number = word.get("run"), word["show"]
            self.run = run if isinstance(run, str) else None
            self.number = number if isinstance(number, int) else None
        if "rate" in word:
            self.rate = _rate(word["rate"])
        self.changed.set()


async def serve(browser: WebSocket, feed: Feed, shared: Shared) -> None:
    """Until it has gone: `{run, number, oldest, newest, runs}` as text whenever that changes, pictures as `tiles.encode` makes
    them. The address may say `coding` and `rate`, and with `session=yes` ask for `{session: {state, silent_s, text, runs}}`
    about once a second."""
    await browser.accept()
    fresh = feed.listen()
    fresh.set()
    asked = browser.query_params.get("coding")
    wish = Wish(fresh, next((coding for coding in CODINGS if coding == asked), "none"))
    with contextlib.suppress(ValueError):
        wish.rate = _rate(float(browser.query_params.get("rate", "")))
    reader = asyncio.create_task(_read(browser, wish))
    try:
        await _send(browser, wish, feed, shared, browser.query_params.get("session") == "yes")
    except (WebSocketDisconnect, TimeoutError, RuntimeError):
        pass  # the browser is gone
    finally:
        feed.forget(fresh)
        reader.cancel()


async def _send(browser: WebSocket, wish: Wish, feed: Feed, shared: Shared, heartbeats: bool) -> None:
    loop = asyncio.get_running_loop()
    held: weakref.ref[Picture] | None = None
    """What the browser has, for as long as it is kept here."""
    shown, not_before = 0, 0.0
    said: dict[str, Any] = {}
    standing, beat_at = "", 0.0
    while not wish.gone:
        async with asyncio.timeout_at(wish.due):
            await wish.changed.wait()
        wish.changed.clear()
        session = feed.session
        if heartbeats and (session.state != standing or loop.time() >= beat_at):
            standing, beat_at = session.state, loop.time() + BEAT_S
            await browser.send_json({"session": _session(session)})
        found = None if wish.due is not None else feed.get(wish.run, wish.number)
        if found is None:
            continue
        if wish.whole:
            held, shown, wish.whole = None, 0, False
        elif wish.rate is not None and wish.number is None and loop.time() < not_before:
            loop.call_at(not_before, wish.changed.set)
            continue
        if (told := _told(found)) != said:
            said = told
            await browser.send_json(said)
        if found.picture.serial == shown:
            continue
        not_before = next_tick(loop.time(), wish.rate)
        message = await shared.message(found.picture, None if held is None else held(), wish.coding)
        held, shown = weakref.ref(found.picture), found.picture.serial
        wish.due = loop.time() + LONGEST_DRAW_S
        await browser.send_bytes(message)


def next_tick(now: float, rate: float | None) -> float:
    """When the picture after one that is sent now may be sent. The ticks of a rate are the same for all browsers, so that those
    of one rate have the same picture as a base, and share messages."""
    return now if rate is None else (math.floor(now * rate) + 1) / rate


async def _read(browser: WebSocket, wish: Wish) -> None:
    try:
        while True:
            message = await browser.receive()
            if message["type"] != "websocket.receive":
                return
            text = message.get("text")
            if isinstance(text, str) and len(text) <= MAX_WORD:
                wish.take(text)
    except (WebSocketDisconnect, RuntimeError):
        pass
    finally:
        wish.gone = True
        wish.changed.set()


def _told(found: Found) -> dict[str, Any]:
    told: dict[str, Any] = {"run": found.run, "number": found.number, "oldest": found.oldest, "newest": found.newest}
    return told | {"runs": list(found.runs)}


def _session(standing: Standing) -> dict[str, Any]:
    runs = [{"run": one.run, "state": one.state, "iteration": one.iteration} for one in standing.runs]
    return {"state": standing.state, "silent_s": round(standing.silent_s, 1), "text": standing.text, "runs": runs}


def _rate(given: Any) -> float | None:
    """Pictures a second, or None where that is no number above 0."""
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given) or given <= 0:
        return None
    return max(float(given), SLOWEST)
