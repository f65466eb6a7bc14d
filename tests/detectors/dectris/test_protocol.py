"""Both formats: round trips, whatever comes in whatever order, and messages that are none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import cbor2
import hostile
import numpy as np
import pytest

from ptystream.codecs import CODECS, decode
from ptystream.detectors.dectris import DectrisScan
from ptystream.detectors.dectris.header import of_lookup
from ptystream.detectors.dectris.protocol import TICK, DectrisDecoder
from ptystream.detectors.dectris.series import MAX_HELD
from ptystream.detectors.dectris.simulator import Camera, series_of
from ptystream.events import Event, Frames, Rejected, Samples, ScanEnded, ScanStarted
from ptystream.scan.header import header_of
from ptystream.transport import Message

RNG = np.random.default_rng(7)
FRAMES = RNG.poisson(3.0, (6, 13, 22)).astype("u2")
MASK = np.zeros(FRAMES.shape[1:], "u4")
MASK[3, 4], MASK[12, 21] = 1, 16
FLAT = RNG.uniform(0.8, 1.2, FRAMES.shape[1:]).astype("f4")
FLAT[0, 0] = 0.0
SET_UP: dict[str, Any] = {
    "energy_kev": 12.4,
    "distance_m": 2.5,
    "psize_m": (75e-6, 76e-6),
    "center": (6.5, 11.0),
    "saturation": 60000,
    "pixel_mask": MASK,
    "flatfield": FLAT,
}
FORMATS = ("v1", "stream2")


def fed(decoder: DectrisDecoder, messages: Iterable[Sequence[bytes]], first_ns: int = 0, step_ns: int = 1_000_000) -> list[Event]:
    """Events of messages that arrive a millisecond apart."""
    return [
        event
        for k, parts in enumerate(messages)
        for event in decoder.feed(Message(first_ns + k * step_ns, "s/data", tuple(parts)))
    ]


def pixels(events: Iterable[Event]) -> dict[tuple[str, int], np.ndarray]:
    frames = (event for event in events if isinstance(event, Frames))
    return {(e.epoch, int(i)): decode(p) for e in frames for i, p in zip(e.indices, e.payloads, strict=True)}


def rejected(events: Iterable[Event]) -> dict[str, int]:
    found: dict[str, int] = {}
    for event in events:
        if isinstance(event, Rejected):
            found[event.reason] = found.get(event.reason, 0) + event.count
    return found


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i4", "f4"])
@pytest.mark.parametrize("compression", ["bslz4", "lz4", "lz4block", "none"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_series_comes_back_pixel_by_pixel(format: str, compression: str, kind: str) -> None:
    if (format, compression) == ("stream2", "lz4block"):
        pytest.skip("stream2 knows no LZ4 without a head")
    frames = FRAMES.astype(kind)
    camera = Camera(format, compression, **SET_UP)  # type: ignore[arg-type]
    events = fed(DectrisDecoder(), series_of(camera, 17, frames))
    start, *images, end = events
    assert isinstance(start, ScanStarted)
    assert start.epoch == "17"
    told = start.metadata
    assert (told["energy"], told["distance"], told["num_frames"]) == (pytest.approx(12.4), 2.5, 6)
    assert told["psize"] == [75e-6, 76e-6]
    assert told["center"] == [6.5, 11.0]
    assert told["saturation"] == 60000
    np.testing.assert_array_equal(told["mask"], MASK == 0)
    np.testing.assert_allclose(told["flat"].flat[1:], 1.0 / FLAT.flat[1:].astype(float))
    assert told["flat"][0, 0] == 0.0
    assert end == ScanEnded("17", None, "completed")
    got = pixels(images)
    assert list(got) == [("17", k) for k in range(6)]
    for (_, k), frame in got.items():
        assert frame.dtype == np.dtype(kind)
        np.testing.assert_array_equal(frame, frames[k])
    stamps = [int(e.timestamps_ns[0]) for e in images if isinstance(e, Frames) and e.timestamps_ns is not None]
    assert np.diff(stamps).tolist() == [1_000_000] * 5


@pytest.mark.parametrize("format", FORMATS)
def test_a_header_tells_what_its_detail_holds(format: str) -> None:
    def told(**changed: Any) -> dict[str, Any]:
        camera = Camera(format, **{**SET_UP, **changed})  # type: ignore[arg-type]
        (start,) = fed(DectrisDecoder(), [camera.header(1, 6, (13, 22), np.dtype("u2"))])
        assert isinstance(start, ScanStarted)
        return dict(start.metadata)

    assert "energy" not in told(detail="none")
    assert "mask" not in told(detail="none")
    assert told(detail="basic")["energy"] == pytest.approx(12.4)
    assert "mask" not in told(detail="basic")
    assert "flat" not in told(flatfield_applied=True)  # the detector has multiplied with it
    assert "center" not in told(center=(0.0, 0.0))  # that is what a detector says that was never told
    assert told(header_appendix='{"uid": "abc", "energy": 1, "deep": {"a": 1}}')["uid"] == "abc"
    assert told(header_appendix='{"energy": 1}')["energy"] == pytest.approx(12.4)
    assert told(detail="none", header_appendix='{"energy": 1}').get("energy") is None
    assert told(header_appendix="a word")["appendix"] == "a word"
    assert "appendix" not in told(header_appendix="x" * 5000)
    decoder = DectrisDecoder(header=False)
    (start,) = fed(decoder, [Camera(format, **SET_UP).header(1, 6, (13, 22), np.dtype("u2"))])  # type: ignore[arg-type]
    assert isinstance(start, ScanStarted)
    assert start.metadata["num_frames"] == 6
    assert not {"energy", "mask", "flat", "center"} & set(start.metadata)


def test_version_1_takes_either_name_of_the_flat_field_and_any_order_of_arrays() -> None:
    camera = Camera("v1", flatfield_name="flatfield-1.0", **SET_UP)
    header = camera.header(2, 6, (13, 22), np.dtype("u2"))
    for parts in (header, [*header[:2], *header[4:], *header[2:4]]):
        (start,) = fed(DectrisDecoder(), [parts])
        assert isinstance(start, ScanStarted)
        assert {"mask", "flat", "count_rate_table"} <= set(start.metadata)
        assert start.metadata["count_rate_table"].shape == (20, 2)
    (frames,) = fed(DectrisDecoder(), [camera.image(2, 0, FRAMES[0])])
    np.testing.assert_array_equal(pixels([frames])["2", 0], FRAMES[0])


RATES = np.array([[0, 0], [2e5, 2e5], [4e5, 5e5], [6e5, 1.2e6]])


@pytest.mark.parametrize("format", FORMATS)
def test_a_table_of_count_rates_is_told_as_counts_where_the_detector_has_not_used_it(format: str) -> None:
    def told(decoder: DectrisDecoder, **given: Any) -> Any:
        camera = Camera(format, count_rates=RATES, count_time_s=1e-3, **given)  # type: ignore[arg-type]
        (start,) = fed(decoder, [camera.header(1, 6, (13, 22), np.dtype("u2"))])
        assert isinstance(start, ScanStarted)
        return start.metadata.get("count_table")

    table = told(DectrisDecoder(), count_rate_applied=False)
    measured = np.arange(0, 601)
    np.testing.assert_allclose(np.interp(measured, *table.T), np.interp(measured, *(RATES * 1e-3).T), atol=0.51)
    assert table[-1, 0] == pytest.approx(600, abs=1)
    assert told(DectrisDecoder(), count_rate_applied=True) is None
    assert told(DectrisDecoder()) is None, "where it is not said, it is not known"
    assert told(DectrisDecoder(count_rate=False), count_rate_applied=False) is None
    assert told(DectrisDecoder(header=False), count_rate_applied=False) is None


@pytest.mark.parametrize(("dtype", "last"), [("<u2", 65535), ("<u4", 2**32 - 1), ("<u4", 65535)])
def test_what_a_lookup_table_marks_or_clips_at_its_end_is_beyond_it(dtype: str, last: int) -> None:
    table = of_lookup(np.array([0, 1, 2, 4, 7, last, last, last], dtype))
    np.testing.assert_array_equal(table[-1], [4, 7])
    clipped = of_lookup(np.array([0, 1, 2, 4, 7, 9, 9, 9], dtype))
    np.testing.assert_array_equal(clipped[-1], [5, 9])
    np.testing.assert_allclose(np.interp(np.arange(6), *clipped.T), [0, 1, 2, 4, 7, 9])


@pytest.mark.parametrize("table", [[0], cbor2.CBORTag(70, b"123"), cbor2.CBORTag(70, b"1234"), cbor2.CBORTag(9, b"12345678"), {}])
def test_a_lookup_table_that_is_none_costs_no_header(table: Any) -> None:
    content = cbor2.loads(Camera(count_rate_applied=False, **SET_UP).header(1, 6, (13, 22), np.dtype("u2"))[0])
    content["countrate_correction_lookup_table"] = table
    (start,) = fed(DectrisDecoder(), [[cbor2.dumps(content)]])
    assert isinstance(start, ScanStarted)
    found = header_of(start.metadata)
    assert found.count_table is None and found.values["energy"] == pytest.approx(12.4)
    assert [key for key, _ in found.refused] == ["count_table"]


@pytest.mark.parametrize("format", FORMATS)
def test_positions_in_image_appendices_are_readings_of_their_images(format: str) -> None:
    texts = [json.dumps({"sy": 10.0 * k, "sx": -k, "n": "a"}) for k in range(6)]
    texts[3], texts[4] = "{", json.dumps({"sy": True, "sx": 1})
    camera = Camera(format, image_appendix=texts, **SET_UP)  # type: ignore[arg-type]
    p = DectrisScan.Parameters(appendix={"y": "sy in um", "x": "sx"})
    events = fed(DectrisScan.decoder(p, "s/data"), series_of(camera, 4, FRAMES))
    samples = [e for e in events if isinstance(e, Samples)]
    assert [s.first for s in samples] == [0, 1, 2, 5]
    np.testing.assert_allclose([s.channels["y"] for s in samples], [[0.0], [1e-5], [2e-5], [5e-5]])
    assert [s.channels["x"].tolist() for s in samples] == [[0.0], [-1.0], [-2.0], [-5.0]]
    assert rejected(events) == {"bad_appendix": 2}
    assert len(pixels(events)) == 6
    left = fed(DectrisDecoder(), series_of(camera, 4, FRAMES))
    assert rejected(left) == {"appendix_left": 6}
    assert not any(isinstance(e, Samples) for e in left)


def test_readings_stay_behind_images_that_came_before_their_header() -> None:
    texts = [json.dumps({"y": k, "x": k}) for k in range(6)]
    whole = list(series_of(Camera(image_appendix=texts, **SET_UP), 4, FRAMES))
    decoder = DectrisDecoder(ordered=False, drain=True, appendix={"y": ("y", 1.0), "x": ("x", 1.0)})
    assert fed(decoder, whole[1:4]) == []
    events = fed(decoder, [whole[0]])
    assert isinstance(events[0], ScanStarted)
    assert [type(e) for e in events[1:]] == [Frames, Samples] * 3
    assert [e.first for e in events[2::2]] == [0, 1, 2]


@pytest.mark.parametrize("appendix", [{"y": "a"}, {"z": "a"}, {"y": "a", "x": ""}, {"y": "a in parsec", "x": "b"}])
def test_an_appendix_that_cannot_be_meant_is_refused(appendix: Any) -> None:
    with pytest.raises(ValueError, match=r"name y and x|name of an entry|not known|Input should be"):
        DectrisScan.Parameters(appendix=appendix)


def test_big_endian_and_column_major_pixels() -> None:
    for camera in (
        Camera("v1", "none", big_endian=True),
        Camera(column_major=True),
        Camera(compression="none", column_major=True),
    ):
        (frames,) = fed(DectrisDecoder(), [camera.image(2, 0, FRAMES[0])])
        np.testing.assert_array_equal(pixels([frames])["2", 0], FRAMES[0])


def test_the_channel_that_was_asked_for() -> None:
    camera = Camera(channels=("threshold_1", "threshold_2"), shown="threshold_2", pixel_mask=MASK)
    messages = list(series_of(camera, 1, FRAMES))
    second = pixels(fed(DectrisDecoder(channel="threshold_2"), messages))
    np.testing.assert_array_equal(second["1", 3], FRAMES[3])
    first = pixels(fed(DectrisDecoder(), messages))
    assert not first["1", 3].any()
    assert rejected(fed(DectrisDecoder(channel="difference"), messages)) == {"channel_missing": 6}


# ------------------------------------------------------------------ series


@pytest.mark.parametrize("format", FORMATS)
def test_series_follow_each_other_at_once(format: str) -> None:
    camera = Camera(format)  # type: ignore[arg-type]
    events = fed(DectrisDecoder(), [*series_of(camera, 1, FRAMES), *series_of(camera, 2, FRAMES[:3])])
    told = [(type(e).__name__, e.epoch) for e in events if not isinstance(e, Rejected | Frames)]
    assert told == [("ScanStarted", "1"), ("ScanEnded", "1"), ("ScanStarted", "2"), ("ScanEnded", "2")]
    assert len(pixels(events)) == 9
    assert not rejected(events)


def test_a_series_that_ends_early_says_so() -> None:
    events = fed(DectrisDecoder(), series_of(Camera(), 4, FRAMES, stop=2))
    assert events[-1] == ScanEnded("4", None, "ended early: 2 of 6 images")


def test_a_series_whose_end_is_lost_ends_with_the_next() -> None:
    camera = Camera()
    events = fed(DectrisDecoder(), [*series_of(camera, 4, FRAMES, end=False), *series_of(camera, 5, FRAMES)])
    assert [e.reason for e in events if isinstance(e, ScanEnded)] == ["its end never came, another series began", "completed"]
    again = fed(DectrisDecoder(), [*series_of(camera, 4, FRAMES, end=False), *series_of(camera, 4, FRAMES)])
    assert [type(e).__name__ for e in again if not isinstance(e, Frames)] == ["ScanStarted", "ScanEnded"] * 2


def test_frames_of_an_older_series_are_out() -> None:
    camera = Camera()
    stale = [camera.image(4, 5, FRAMES[5]), camera.image(3, 0, FRAMES[0])]  # of a series that went on, and of one never seen
    events = fed(DectrisDecoder(), [*series_of(camera, 4, FRAMES, stop=3), *series_of(camera, 5, FRAMES, end=False), *stale])
    assert rejected(events) == {"older_series": 2}
    assert sorted(pixels(events)) == [("4", k) for k in range(3)] + [("5", k) for k in range(6)]


def test_a_detector_that_counts_anew_is_followed() -> None:
    camera = Camera()
    events = fed(DectrisDecoder(), [*series_of(camera, 900, FRAMES), *series_of(camera, 1, FRAMES)])
    assert not rejected(events)
    assert len(pixels(events)) == 12


def test_a_series_that_was_going_on_is_joined_or_drained() -> None:
    camera = Camera()
    messages = [*series_of(camera, 8, FRAMES, first=2, header=False), *series_of(camera, 9, FRAMES)]
    joined = fed(DectrisDecoder(), messages)
    assert len(pixels(joined)) == 10
    assert isinstance(joined[0], Frames)
    drained = fed(DectrisDecoder(drain=True), messages)
    assert sorted(pixels(drained)) == [("9", k) for k in range(6)]
    assert rejected(drained) == {"stale_series": 4, "unknown_series": 1}


def test_over_several_sockets_nothing_is_lost_whatever_overtakes() -> None:
    camera = Camera()
    one, two = list(series_of(camera, 1, FRAMES)), list(series_of(camera, 2, FRAMES))
    for seed in range(40):
        random = np.random.default_rng(seed)
        order = one + two
        place = np.arange(len(order)) + random.uniform(0, 5, len(order))
        mixed = [order[k] for k in np.argsort(place)]
        for drain in (False, True):
            decoder = DectrisDecoder(ordered=False, drain=drain)
            events = fed(decoder, mixed)
            events += decoder.feed(Message(10**12, "s/data", (TICK,)))
            assert len(pixels(events)) == 12, (seed, drain, rejected(events))
            ends = [e for e in events if isinstance(e, ScanEnded)]
            assert {e.epoch: e.reason for e in ends} == {"1": "completed", "2": "completed"}, seed
            for epoch in "12":  # no frame behind the end of its series
                last = max(k for k, e in enumerate(events) if isinstance(e, Frames) and e.epoch == epoch)
                assert events.index(next(e for e in ends if e.epoch == epoch)) > last
            assert decoder.due_ns is None


def test_over_several_sockets_a_missing_image_is_waited_for_as_long_as_was_said() -> None:
    decoder = DectrisDecoder(ordered=False, late_s=3.0)
    messages = list(series_of(Camera(), 1, FRAMES))
    events = fed(decoder, [*messages[:3], *messages[4:]])
    assert not any(isinstance(e, ScanEnded) for e in events)
    end_ns = (len(messages) - 2) * 1_000_000
    assert decoder.due_ns == end_ns + 3_000_000_000
    assert decoder.feed(Message(end_ns + 2_999_999_999, "s/data", (TICK,))) == []
    assert decoder.feed(Message(end_ns + 3_000_000_000, "s/data", (TICK,))) == [
        ScanEnded("1", None, "ended early: 5 of 6 images")
    ]
    assert decoder.due_ns is None
    assert rejected(fed(decoder, [messages[3]], 10**12)) == {"older_series": 1}


def test_what_is_held_for_a_header_is_bounded() -> None:
    decoder, camera = DectrisDecoder(ordered=False, drain=True), Camera()
    events = fed(decoder, (camera.image(1, k, FRAMES[0]) for k in range(3 * MAX_HELD)))
    assert rejected(events) == {"stale_series": 3 * MAX_HELD}


# ------------------------------------------------------------------ damaged, malicious, strange


def v1_damaged() -> list[tuple[str, list[bytes]]]:
    camera = Camera("v1", "none", **SET_UP)
    head, described, blob, times = camera.image(1, 0, FRAMES[0])
    found = [("no blob", [head, described]), ("head alone", [head]), ("cut blob", [head, described, blob[:-1], times])]
    for key, values in {
        "shape": ([22], [22, 13, 1], [0, 13], [-22, 13], [2**20, 2**20], "22,13", None, [22.0, 13.0], [True, 13]),
        "type": ("object", "float128", "", None, 5, ["uint16"], "<u2"),
        "encoding": ("zip", "bs32-lz4<", "bs16<", "", None, 7, "pickle"),
        "size": (1, 10**9),
        "htype": (None, 5, "dimage-1.0", ["dimage_d-1.0"]),
    }.items():
        for value in values:
            changed = {**json.loads(described), key: value}
            found.append((f"{key} {value!r}", [head, json.dumps(changed).encode(), blob, times]))
    for key in ("series", "frame"):
        for value in (-1, 2**48, 0.5, None, "0", True, [0]):
            found.append((f"{key} {value!r}", [json.dumps({**json.loads(head), key: value}).encode(), described, blob, times]))
    for k in (0, 1):
        found += [(f"part {k} cut at {n}", [*[head, described][:k], [head, described][k][:n], blob]) for n in (0, 1, 10)]
    found += [("times that are none", [head, described, blob, b"[1]"]), ("deep", [b"[" * 100000, blob])]
    header = camera.header(1, 6, (13, 22), np.dtype("u2"))
    found += [("config missing", header[:1]), ("config no JSON", [header[0], b"\xff\xfe"])]
    found += [
        ("flat field cut", [*header[:3], header[3][:-1]]),
        ("detail", [b'{"htype":"dheader-1.0","series":1,"header_detail":"x"}']),
    ]
    huge = json.dumps({"htype": "dpixelmask-1.0", "shape": [2**15, 2**15], "type": "uint32"}).encode()
    found.append(("a mask that is announced huge", [*header[:2], huge, b"1234"]))
    return found


def v2_damaged() -> list[tuple[str, list[bytes]]]:
    camera = Camera(**SET_UP)
    (whole,) = camera.image(1, 0, FRAMES[0])
    image = cbor2.loads(whole)
    found = [(f"cut at {n}", [whole[:n]]) for n in range(1, len(whole), 37)]
    for key in ("type", "series_id", "image_id", "data"):
        for value in (None, -1, 2**48, 0.5, True, "x", [], {}, {"a": 1}, cbor2.CBORTag(40, [[1, 1], b"1"])):
            found.append((f"{key} {value!r}", [cbor2.dumps({**image, key: value})]))
    tag = cbor2.CBORTag
    squashed = tag(56500, ["bslz4", 2, b"123"])
    for name, value in {
        "typed array without shape": tag(69, bytes(572)),
        "shape of three": tag(40, [[1, 13, 22], tag(69, bytes(572))]),
        "shape of none": tag(40, [[], tag(69, b"")]),
        "shape huge": tag(40, [[2**15, 2**15], tag(70, squashed)]),
        "shape too large for its bytes": tag(40, [[13, 23], tag(69, bytes(572))]),
        "unknown type": tag(40, [[13, 22], tag(83, bytes(572))]),
        "no type": tag(40, [[13, 22], bytes(572)]),
        "a list of numbers": tag(40, [[1, 2], [1, 2]]),
        "algorithm": tag(40, [[13, 22], tag(69, tag(56500, ["zip", 2, b"123"]))]),
        "element size": tag(40, [[13, 22], tag(69, tag(56500, ["bslz4", 4, b"123"]))]),
        "compressed nothing": tag(40, [[13, 22], tag(69, tag(56500, []))]),
        "compressed text": tag(40, [[13, 22], tag(69, tag(56500, ["lz4", 0, "123"]))]),
        "column-major nonsense": tag(1040, [[13, 22], tag(69, squashed)]),
    }.items():
        found.append((name, [cbor2.dumps({**image, "data": {"threshold_1": value}})]))
    (start,) = camera.header(1, 6, (13, 22), np.dtype("u2"))
    mask = {"threshold_1": tag(40, [[13, 22], tag(70, squashed)])}
    found.append(("a mask that does not decode", [cbor2.dumps({**cbor2.loads(start), "pixel_mask": mask})]))
    found += [("nesting", [b"\x81" * 100000]), ("a map of 2^60", [b"\xbb" + (2**60).to_bytes(8, "big")])]
    found += [("bytes of 2^60", [b"\xa1\x64type\x5b" + (2**60).to_bytes(8, "big")]), ("two parts", [whole, b""])]
    return found


@pytest.mark.parametrize("ordered", [True, False])
def test_what_is_no_message_is_rejected_by_reason_and_changes_nothing(ordered: bool) -> None:
    bad = [*v1_damaged(), *v2_damaged(), *((name, list(parts)) for name, parts in hostile.malformed())]
    for format in FORMATS:
        decoder, good = DectrisDecoder(ordered=ordered), list(series_of(Camera(format), 1, FRAMES))  # type: ignore[arg-type]
        events = fed(decoder, [good[0]])
        for name, parts in bad:
            said = decoder.feed(Message(1, "s/data", tuple(parts)))
            assert said, name
            assert all(isinstance(event, Rejected) for event in said), (name, said)
            assert len(said[0].reason) < 40  # type: ignore[union-attr]
        events += fed(decoder, good[1:])
        assert len(pixels(events)) == 6
        assert isinstance(events[-1], ScanEnded)


def test_random_bytes_and_bits_never_raise() -> None:
    random = np.random.default_rng(11)
    sound = [parts for f in FORMATS for parts in series_of(Camera(f, **SET_UP), 1, FRAMES)]  # type: ignore[arg-type]
    decoder = DectrisDecoder(ordered=False)
    for _ in range(1500):
        parts = [bytearray(part) for part in sound[int(random.integers(len(sound)))]]
        part = parts[int(random.integers(len(parts)))]
        for _ in range(int(random.integers(1, 6))):
            if part:
                part[int(random.integers(min(len(part), 300)))] = int(random.integers(256))
        for event in decoder.feed(Message(0, "s/data", tuple(map(bytes, parts)))):
            if isinstance(event, Frames):
                assert all(p.codec in CODECS for p in event.payloads)  # type: ignore[union-attr]
