"""Damaged, malicious and merely strange messages of the native wire, for every test that feeds one to something.

`malformed()` yields (name, parts) of which a decoder must make nothing but `Rejected`. `strange()` yields messages that
are well formed and say something absurd: they pass the decoder, and it is the buffer that must judge them.
"""

import struct
from collections.abc import Iterator

import msgpack
import numpy as np

from ptystream.detectors.zmq.link import envelope
from ptystream.detectors.zmq.protocol import MAGIC, MAX_HEADER_BYTES, VERSION, frames_parts, samples_parts

SHAPE = (16, 12)


def raw_header(content, version=VERSION, magic=MAGIC):
    """A header part with anything in it."""
    return magic + bytes([version]) + msgpack.packb(content)


def good_frames(count=3, scan="s", first=0, shape=SHAPE, **extra):
    """A sound message to start from."""
    pixels = np.arange(count * shape[0] * shape[1], dtype="<u2")
    return frames_parts(scan, first, [pixels.tobytes()], count, shape, np.dtype("<u2"), "raw", **extra)


def _frames_header(**changed):
    content = {"t": "frames", "scan": "s", "first": 0, "n": 1, "shape": list(SHAPE), "dtype": "<u2", "codec": "raw"}
    content |= {"ts": False, "pos": False} | changed
    return raw_header({key: value for key, value in content.items() if value is not ...})


def malformed() -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """(name, parts) of messages that are not native wire."""
    rng = np.random.default_rng(1)
    one = bytes(2 * SHAPE[0] * SHAPE[1])
    yield "no parts", ()
    yield "one empty part", (b"",)
    yield "empty parts", (b"", b"", b"")
    for length in (1, 5, 6, 40, 5000):
        yield f"{length} random bytes", (rng.bytes(length),)
        yield f"{length} random bytes behind the magic", (MAGIC + bytes([VERSION]) + rng.bytes(length), rng.bytes(64))
        yield f"an envelope and {length} random bytes", (envelope(rng.bytes(8), 0), rng.bytes(length))
    yield "an envelope alone", (envelope(b"aaaaaaaa", 0),)
    yield "pickle", (b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",)
    yield "json", (b'{"htype": "dimage-1.0"}', one)
    yield "unknown version", (raw_header({"t": "start", "scan": "s"}, version=200),)
    yield "wrong magic", (raw_header({"t": "start", "scan": "s"}, magic=b"PTYX"),)
    yield "oversized header", (raw_header({"t": "start", "scan": "s", "meta": {"x": bytes(MAX_HEADER_BYTES)}}),)
    yield "deep nesting", (MAGIC + bytes([VERSION]) + b"\x91" * 100_000,)
    yield "a map of a thousand million entries", (MAGIC + bytes([VERSION]) + b"\xdf" + struct.pack(">I", 1_000_000_000),)
    yield "extension type", (raw_header({"t": "start", "scan": "s", "meta": {"x": msgpack.ExtType(5, b"abc")}}),)
    yield "timestamp type", (raw_header({"t": "start", "scan": "s", "meta": {"x": msgpack.Timestamp(1, 2)}}),)
    yield "integer key", (raw_header({"t": "start", "scan": "s", 7: 8}),)
    for value in (None, 7, [], [1], {}, {"t": "start"}, "start", b"\xff", True, 1.5):
        yield f"header {value!r}", (raw_header(value),)
        yield f"kind {value!r}", (raw_header({"t": value if value != "start" else "begin", "scan": "s"}),)
        for kind in ("start", "frames", "samples", "end"):
            if not isinstance(value, str):
                yield f"scan {value!r} of {kind}", (raw_header({"t": kind, "scan": value}), one)
        if value is not None:
            yield (
                f"metadata {value!r}",
                (raw_header({"t": "start", "scan": "s", "meta": value if value != {} else 3}),)
                if not (isinstance(value, dict))
                else (raw_header({"t": "start", "scan": "s", "meta": 3}),),
            )
    yield "empty scan id", (raw_header({"t": "start", "scan": ""}),)
    yield "scan id of 1000 characters", (raw_header({"t": "start", "scan": "s" * 1000}),)
    whole = good_frames()
    for cut in range(len(whole[0])):
        yield f"header cut at {cut}", (whole[0][:cut], *whole[1:])
    for cut in (0, 1, 17, len(whole[1]) - 1):
        yield f"pixels cut at {cut}", (whole[0], whole[1][:cut])
    yield "pixels too long", (whole[0], bytes(whole[1]) + b"\0")
    yield "pixels missing", (whole[0],)
    yield "a part too many", (*whole, b"x")
    odd = [-1, 2**48, 2**63, 2**64 - 1, 0.5, float("nan"), None, True, "0", b"0", [0], {"a": 0}, ...]
    for value in odd:
        yield f"first {value!r}", (_frames_header(first=value), one)
        yield (
            f"samples first {value!r}",
            (
                raw_header({"t": "samples", "scan": "s", "n": 2, "names": ["y"]} | ({} if value is ... else {"first": value})),
                bytes(16),
            ),
        )
        yield f"n {value!r}", (_frames_header(n=value), one)
        yield (
            f"samples n {value!r}",
            (
                raw_header({"t": "samples", "scan": "s", "first": 0, "names": ["y"], "n": None if value is ... else value}),
                bytes(16),
            ),
        )
        if value not in (None, ...):
            yield f"end count {value!r}", (raw_header({"t": "end", "scan": "s", "count": value}),)
        for shape in ([value, 4], [4, value], value):
            yield (
                f"shape {shape!r}",
                (
                    _frames_header(
                        shape=None
                        if shape is ...
                        else [s if s is not ... else 0 for s in shape]
                        if isinstance(shape, list)
                        else shape
                    ),
                    one,
                ),
            )
    yield "no frames", (_frames_header(n=0), b"")
    yield "a million million frames", (_frames_header(n=10**12), one)
    yield "three dimensions", (_frames_header(shape=[2, 8, 12]), one)
    yield "no dimensions", (_frames_header(shape=[]), one)
    yield "a huge frame", (_frames_header(shape=[2**30, 2**30]), one)
    yield "a huge encoded frame", (_frames_header(shape=[2**15, 2**15], dtype="<u4", codec="bslz4"), bytes(64))
    for dtype in ("<f8", "<i8", "<u8", "<u2,<u2", "object", "O", "|O8", "V4", ">u2", "<M8[s]", "", 5, None, ["<u2"], {}, ...):
        yield f"dtype {dtype!r}", (_frames_header(dtype=dtype), one)
    for codec in ("zip", "pickle", "", 5, None, ["raw"], {}, b"raw", ...):
        yield f"codec {codec!r}", (_frames_header(codec=codec), one)
    for listed in ([0, 1], [], [0.5], [-1], [2**48], ["0"], "0", 5, [[0]], {"a": 1}):
        yield f"indices {listed!r}", (_frames_header(first=..., indices=listed), one)
    yield "timestamps announced and missing", (_frames_header(ts=True), one)
    yield "timestamps of 7 bytes", (_frames_header(ts=True), one, bytes(7))
    yield "positions of one number", (_frames_header(pos=True), one, bytes(8))
    table = samples_parts("s", 0, {"y": np.zeros(4), "x": np.zeros(4)}, None)
    yield "samples cut", (table[0], bytes(table[1])[:-3])
    yield "samples missing", (table[0],)
    for names in ([], ["y", "y"], ["y", 3], "yx", None, [""] * 300, [["y"]], {"y": 1}):
        size = len(names) if isinstance(names, list) else 2
        yield (
            f"names {str(names)[:30]}",
            (
                raw_header({"t": "samples", "scan": "s", "first": 0, "n": 2, "names": names}),
                bytes(16 * size),
            ),
        )


def strange(scan="s") -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """(name, parts) of well-formed absurdities within `scan`."""
    nan, km = np.full(3, np.nan), np.full(3, 1e3)
    yield "positions that are no numbers", tuple(samples_parts(scan, 0, {"y": nan, "x": nan}, None))
    yield "infinite positions", tuple(samples_parts(scan, 3, {"y": nan * 0 + np.inf, "x": -km}, None))
    yield "positions a kilometre off", tuple(samples_parts(scan, 6, {"y": km, "x": km}, None))
    yield "samples far beyond the scan", tuple(samples_parts(scan, 2**48 - 3, {"y": km, "x": km}, None))
    yield "a frame far beyond the scan", tuple(good_frames(1, scan, first=2**48 - 1))
    yield "frames of another shape", tuple(good_frames(2, scan, first=0, shape=(5, 7)))
    yield "the same index twice in one message", tuple(good_frames(2, scan, first=[4, 4]))
    yield "channels that nobody asked for", tuple(samples_parts(scan, 0, {"temperature": km}, None))
    garbage = [b"\0" * 5, np.random.default_rng(2).bytes(400)]
    yield "frames that do not decode", tuple(frames_parts(scan, 0, garbage, 2, SHAPE, np.dtype("<u2"), "bslz4"))
    yield "an end with an absurd count", (raw_header({"t": "end", "scan": scan + " that nobody began", "count": 2**47}),)
