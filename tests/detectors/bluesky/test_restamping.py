"""Documents whose times are shifted, in each form in which they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from beamline import STEP, decoder, plan_of, run

from ptystream.detectors.bluesky.payload import packed
from ptystream.detectors.bluesky.source import BlueskyScan
from ptystream.events import Samples
from ptystream.faults import Faults, damage
from ptystream.transport import Message

DATA = {"y": 1.0, "x": 2.0, "name": "é"}
STAMPS = {"y": 1.5e9, "x": 1.5e9 + 1}
EVENT = {"descriptor": "d", "seq_num": 1, "data": DATA, "timestamps": STAMPS}
PAGE = {"descriptor": "d", "seq_num": [1, 2], "data": {}, "timestamps": {"y": [1.5e9, 1.5e9 + 1]}}


def published(name: str, document: Any) -> bytes:
    return packed(name, document, b"ptycho")


def in_json(name: str, document: Any) -> bytes:
    return b"ptycho " + name.encode() + b" " + json.dumps(document).encode()


def line(name: str, document: Any) -> bytes:
    return json.dumps([name, document]).encode()


def value(name: str, document: Any) -> bytes:
    made: bytes = msgpack.packb([name, document])
    return made


@pytest.mark.parametrize("form", [published, in_json, line, value])
def test_times_are_later_and_nothing_else_is_changed(form: Any) -> None:
    for name, document, wanted in (
        ("event", EVENT, {**EVENT, "timestamps": {"y": 1.5e9 + 2, "x": 1.5e9 + 3}}),
        ("event_page", PAGE, {**PAGE, "timestamps": {"y": [1.5e9 + 2, 1.5e9 + 3]}}),
        ("bulk_events", {"d": [EVENT]}, {"d": [{**EVENT, "timestamps": {"y": 1.5e9 + 2, "x": 1.5e9 + 3}}]}),
    ):
        (made,) = BlueskyScan.restamped([form(name, document)], 2 * 10**9)
        assert made == form(name, wanted)


def test_what_has_no_times_is_left_as_it_is() -> None:
    for parts in (
        [line("start", {"uid": "u", "time": 1.0})],
        [published("event", {"seq_num": 1})],
        [published("event", {"timestamps": {}})],
        [published("bulk_events", {"d": [3], "e": 4})],
        [b"ptycho event \x80\x04garbage"],
        [b"garbage"],
        [b""],
        [],
        [b"a", b"b"],
    ):
        assert BlueskyScan.restamped(parts, 10**9) is parts


def test_positions_of_a_run_are_shifted_by_a_skew(tmp_path: Path) -> None:
    documents = run(plan_of("step", tmp_path, 5))
    messages = [Message(k, "s/positions", (packed(name, document),)) for k, (name, document) in enumerate(documents)]

    def stamps(given: Any) -> Any:
        listening = decoder("positions", find=STEP)
        events = [event for message in given for event in listening.feed(message)]
        return np.concatenate([event.timestamps_ns for event in events if isinstance(event, Samples)])

    found = damage(messages, Faults(skew=2.0), {"s/positions": BlueskyScan.restamped})
    assert len(found.hit["skew"]) == 5
    np.testing.assert_allclose(stamps(found.messages) - stamps(messages), 2e9, atol=1000)
