"""Damaged, malicious and strange documents: counted by reason, never an exception, nothing unpickled."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from beamline import FLY, STEP, Documents, decoder, feed, plan_of, run

from ptystream.detectors.bluesky import BlueskyScan
from ptystream.detectors.bluesky.locators import locator
from ptystream.detectors.bluesky.payload import NAMES, body, on_the_wire, packed
from ptystream.detectors.units import UnitError, converted
from ptystream.detectors.wire import WireError
from ptystream.events import Rejected
from ptystream.transport import Message

ODD = [None, True, -1, 0, 2**63, 2**200, 0.5, float("nan"), float("inf"), "", "x" * 5000, b"\xff", [], [[]], {}, {"a": {}}]


class Bomb:
    """Unpickling it would be seen."""

    exploded = False

    def __reduce__(self) -> Any:
        return (setattr, (Bomb, "exploded", True))


def hostile() -> Iterator[tuple[str, bytes]]:
    """(what, message) of which nothing but a rejection may be made."""
    generator = np.random.default_rng(0)
    for length in (0, 1, 2, 7, 100, 5000):
        yield f"{length} random bytes", generator.bytes(length)
        yield f"{length} random bytes as a body", b" start " + generator.bytes(length)
    for protocol in range(6):
        yield f"pickle {protocol}", b" start " + pickle.dumps({"uid": Bomb()}, protocol)
        yield f"pickle {protocol} alone", pickle.dumps(("start", {"uid": Bomb()}), protocol)
    yield (
        "pickled objects in an array",
        b" event "
        + msgpack.packb({"data": {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": pickle.dumps(Bomb())}}),
    )
    for kind in ("|O8", "O", "<M8[s]", "V9", "<u2,<u2", 5, None, "x" * 99, ">"):
        array = {b"nd": True, b"type": kind, b"kind": b"", b"shape": [1], b"data": bytes(8)}
        yield f"an array of {kind!r}", b" event " + msgpack.packb({"data": array})
    for shape in ([-1], [2**40, 2**40], [3], ["a"], "ab", None, [1] * 60):
        array = {b"nd": True, b"type": "<u2", b"kind": b"", b"shape": shape, b"data": bytes(8)}
        yield f"an array of shape {shape!r}", b" event " + msgpack.packb({"data": array})
    yield "an extension", b" start " + msgpack.packb({"uid": msgpack.ExtType(5, b"abc")})
    yield "a long map", b" start \xdf\xff\xff\xff\xff"
    yield "deep msgpack", b" start " + b"\x91" * 100_000
    yield "deep JSON", b" start " + b"[" * 100_000
    yield "unknown name", b" bogus {}"
    yield "no body", b" start"
    yield "empty body", b" start "
    yield "a list", b" start [1, 2]"
    yield "a text", b' start "uid"'
    yield "integer keys", b" start " + msgpack.packb({7: 8})
    for name in sorted(NAMES):
        yield f"an empty {name}", f" {name} {{}}".encode()
        yield f"a {name} of odd things", f" {name} ".encode() + json.dumps({"uid": [], "descriptor": 5, "data": 7}).encode()


@pytest.mark.parametrize("what", [name for name, _ in hostile()])
def test_hostile_messages_are_rejected(what: str) -> None:
    raw = dict(hostile())[what]
    held = decoder(via="zmq")
    events = held.feed(Message(0, "s/data", (raw,)))
    empty = what in ("an empty bulk_events",)
    assert len(events) >= (not empty) and all(isinstance(e, Rejected) for e in events)
    assert not Bomb.exploded
    for via, extra in (("file", {"file": "x"}), ("kafka", {"topics": ["t"]})):
        for parts in ((raw,), (raw.partition(b" ")[2],), ()):
            assert all(isinstance(e, Rejected) for e in decoder(via=via, **extra).feed(Message(0, "s/data", parts)))
    assert not Bomb.exploded


def test_a_pickle_is_refused_with_how_to_switch() -> None:
    (event,) = decoder(via="zmq").feed(Message(0, "s/data", (b" start " + pickle.dumps({"uid": "a"}),)))
    assert isinstance(event, Rejected)
    assert event.reason == "pickle_refused"
    assert "serializer=msgpack.dumps" in event.detail


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    folder = tmp_path_factory.mktemp("documents")
    return run(plan_of("files", folder, 3)) + run(plan_of("fly", folder, rate_hz=5000.0)) + run(plan_of("step", folder, 3))


@pytest.mark.slow
def test_every_entry_of_every_document_may_be_odd(sound: Documents) -> None:
    """One entry after the other is replaced by something odd; the decoder lives and counts."""
    find = {"y": [*([STEP["y"]]), FLY["y"]], "x": [STEP["x"], FLY["x"]], "energy": "config:camera:photon_energy"}
    for number, (name, document) in enumerate(sound):
        if name in ("event", "datum", "stream_datum") and number % 7:
            continue
        for key in document:
            for odd in ODD:
                damaged = [*sound[:number], (name, {**document, key: odd}), *sound[number + 1 :]]
                for role in ("data", "positions"):
                    try:
                        events = feed(decoder(role, find=find), damaged[max(0, number - 6) : number + 6])
                    except Exception as error:
                        raise AssertionError(f"{name}.{key} = {odd!r:.60}") from error
                    assert all(not isinstance(e, Rejected) or e.count > 0 for e in events)


def test_random_damage_to_nested_entries(sound: Documents) -> None:
    chance = random.Random(1)

    def damage(item: Any) -> Any:
        if isinstance(item, dict) and item:
            key = chance.choice(list(item))
            return {**item, key: damage(item[key])} if chance.random() < 0.8 else {**item, key: chance.choice(ODD)}
        return chance.choice(ODD)

    for _ in range(300):
        documents = [(name, damage(copy.deepcopy(d)) if chance.random() < 0.1 else d) for name, d in sound]
        chance.random() < 0.3 and chance.shuffle(documents)
        for role in ("data", "positions"):
            feed(decoder(role, find={"y": [STEP["y"], FLY["y"]], "x": [STEP["x"], FLY["x"]]}), documents)


def test_cut_messages(sound: Documents) -> None:
    raw = packed(*sound[1])
    for cut in range(len(raw)):
        events = decoder(via="zmq").feed(Message(0, "s/data", (raw[:cut],)))
        assert events and all(isinstance(e, Rejected) for e in events)


def test_documents_survive_the_wire() -> None:
    document = {
        "uid": "a",
        "frame": np.arange(6, dtype=">u2").reshape(2, 3),
        "number": np.float64(0.5),
        "flags": np.array([True, False]),
        "nested": [{"a": (1, 2)}, None, "µm"],
    }
    name, back = on_the_wire(packed("event", document, b"here"), b"here")
    assert name == "event"
    assert back["number"] == 0.5 and back["nested"] == [{"a": [1, 2]}, None, "µm"]
    np.testing.assert_array_equal(back["frame"], document["frame"])
    np.testing.assert_array_equal(back["flags"], document["flags"])
    with pytest.raises(WireError, match="there"):
        on_the_wire(packed("event", document, b"here"), b"there")
    with pytest.raises(WireError, match="without a body"):
        body(b"")


@pytest.mark.parametrize(
    ("text", "raw", "unit", "wanted"),
    [
        ("start:a; unit=mm", 2.0, None, 2e-3),
        ("start:a", 2.0, "um", 2e-6),
        ("start:a; unit=mm", 2.0, "um", 2e-3),
        ("start:a; unit=um; sign=-1; scale=3; offset=1 mm", 2.0, None, -6e-6 + 1e-3),
        ("start:a; unit=m; offset=2", 1.0, None, 3.0),
    ],
)
def test_units_signs_scales_and_offsets(text: str, raw: float, unit: str | None, wanted: float) -> None:
    assert locator(text, "length").value(raw, unit, "length")[0] == pytest.approx(wanted)


def test_energies_and_wavelengths() -> None:
    assert converted(np.array([8.0]), "keV", "energy")[0] == 8.0
    assert converted(np.array([8000.0]), "eV", "energy")[0] == pytest.approx(8.0)
    assert converted(np.array([1.0]), "Å", "energy")[0] == pytest.approx(12.3984193)
    assert locator("const:0.15498 nm", "energy").value(0.15498, None, "energy")[0] == pytest.approx(8.0, rel=1e-4)
    with pytest.raises(UnitError, match="no unit"):
        converted(np.array([1.0]), None, "length")
    with pytest.raises(UnitError, match="furlong"):
        converted(np.array([1.0]), "furlong", "length")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"find": {"y": "motor"}}, "must be one of event:"),
        ({"find": {"y": "event:"}}, "must be one of event:"),
        ({"find": {"y": "event:a; unit=furlong"}}, "furlong"),
        ({"find": {"y": "event:a; sign=2"}}, "sign must be 1 or -1"),
        ({"find": {"y": "event:a; scale=0"}}, "scale not 0"),
        ({"find": {"y": "event:a; colour=red"}}, "options are"),
        ({"find": {"y": "const:2"}}, "no unit"),
        ({"find": {"y": "const:two m"}}, "no finite number"),
        ({"find": {"energy": "config:camera"}}, "config:device:key"),
        ({"find": {"y": "hint:7"}}, "slowest axis"),
        ({"via": "file"}, "JSON lines"),
        ({"via": "kafka"}, "topic"),
        ({"prefix": "a b"}, "without spaces"),
        ({"prefixx": "a"}, "prefixx"),
    ],
)
def test_what_a_configuration_says_wrongly_is_named(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        BlueskyScan.Parameters(**given)
