"""The published message: everything comes back, and nothing but a sound message of this version is read."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields, replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import snapshot

from ptystream.publish.display import PHASE_STEPS, VISIBLE_COVERAGE, display, with_ramps
from ptystream.publish.schema import FORMS, MAX_HEADER_BYTES, VERSION, SchemaError, decode, decode_display, encode, read
from ptystream.publish.snapshot import Image

READERS = {"complex64": decode, "uint8": decode_display}


def parts_of(form: str = "complex64", number: int = 0) -> list[bytes]:
    return [bytes(part) for part in encode(snapshot(number), form)]


@pytest.mark.parametrize("number", range(6))
def test_a_snapshot_comes_back_as_it_was(number: int) -> None:
    sent = with_ramps(snapshot(number))
    back = decode(encode(sent, "complex64"))
    for field in fields(sent):
        wanted, got = getattr(sent, field.name), getattr(back, field.name)
        if field.name in ("probe", "object"):
            assert list(got) == list(wanted)
            for name, image in wanted.items():
                np.testing.assert_array_equal(got[name].data, image.data)
                assert (got[name].pixel_size_m, got[name].offset) == (image.pixel_size_m, image.offset)
                assert got[name].ramp == pytest.approx(image.ramp)
        elif field.name == "coverage":
            np.testing.assert_array_equal(got["o"], wanted["o"])
        elif isinstance(wanted, np.ndarray):
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)
        else:
            assert got == wanted


def test_the_display_form_holds_what_its_documentation_says() -> None:
    sent = with_ramps(snapshot(3))
    shown = decode_display(encode(sent, "uint8"))
    image, picture, seen = sent.object["o"], shown.object["o"], sent.coverage["o"]
    np.testing.assert_array_equal(shown.coverage["o"], display(sent).coverage["o"])
    lit = seen > VISIBLE_COVERAGE
    a, b, c = image.ramp
    y, x = np.ogrid[: image.data.shape[1], : image.data.shape[2]]
    flat = np.angle(image.data[0] * np.exp(-1j * (a + b * y + c * x)))
    drawn = -np.pi + 2 * np.pi * picture.phase[0] / PHASE_STEPS
    assert np.abs(np.angle(np.exp(1j * (drawn - flat))))[lit].max() <= np.pi / PHASE_STEPS + 1e-3
    low, high = picture.limits[0]
    amplitude = (low + (high - low) * picture.amplitude[0] / 255) * picture.scale[0]
    inside = lit & (picture.amplitude[0] > 0) & (picture.amplitude[0] < 255)
    assert np.abs(amplitude - np.abs(image.data[0]))[inside].max() <= (high - low) * picture.scale[0] / 255
    assert picture.scale[0] == pytest.approx(float(np.median(np.abs(image.data[0])[lit])), rel=0.05)


def test_slices_come_with_their_depths_and_a_share_of_the_ramp() -> None:
    shown = snapshot(1)
    y, x = np.mgrid[:20, :20]
    slices = np.stack([np.exp(1j * (0.3 + 0.02 * y)), np.exp(0.03j * x)]).astype("c8")
    thick = {"o": Image(slices, (1e-11, 1e-11), (0, 0), depths_m=(0.0, 1e-9))}
    shown = with_ramps(replace(shown, object=thick, coverage={"o": np.ones((20, 20), "f4")}))
    np.testing.assert_allclose(shown.object["o"].ramp, (0.15, 0.01, 0.015), atol=1e-4)
    assert decode(encode(shown)).object["o"].depths_m == (0.0, 1e-9)
    assert decode_display(encode(shown, "uint8")).object["o"].depths_m == (0.0, 1e-9)
    for depths, why in (((0.0, 1.0, 2.0), "no whole number of stacks of 3"), ((0.0, np.nan), "finite numbers")):
        wrong = replace(thick["o"], depths_m=depths)
        with pytest.raises(SchemaError, match=why):
            decode(encode(replace(shown, object={"o": wrong})))


def test_arrays_that_have_the_dtype_of_the_wire_are_not_copied() -> None:
    sent = snapshot()
    parts = encode(sent, "complex64")
    assert any(np.shares_memory(np.frombuffer(part, "u1"), sent.object["o"].data.view("u1")) for part in parts[1:])
    back = decode(parts)
    with pytest.raises(ValueError, match="read-only"):
        back.object["o"].data[0, 0, 0] = 0


@pytest.mark.parametrize("form", FORMS)
def test_every_cut_and_every_exchange_of_parts_is_refused(form: str) -> None:
    whole = parts_of(form)
    bad: list[list[bytes]] = [[], whole[:-1], [*whole, b""], [whole[0], *whole[:0:-1]]]
    bad += [[whole[0][:cut], *whole[1:]] for cut in range(0, len(whole[0]), 7)]
    for k in range(1, len(whole)):
        bad += [[*whole[:k], part, *whole[k + 1 :]] for part in (whole[k] + b"\0", whole[k][:-1]) if part != whole[k]]
    for parts in bad:
        with pytest.raises(SchemaError):
            READERS[form](parts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), VERSION + 1),
        (("format",), "something else"),
        (("form",), "float16"),
        (("run",), 7),
        (("number",), "1"),
        (("number",), True),
        (("probe",), []),
        (("ledger",), {"used": "all"}),
        (("rates",), {"x": None}),
        (("newest_frame_ns",), 1.5),
        (("quality",), []),
        (("quality", "frc", "measured_ns"), 1.5),
        (("object", "o", "pixel_size_m"), [0.0, 1.0]),
        (("object", "o", "pixel_size_m"), [float("nan"), 1.0]),
        (("object", "o", "offset"), [1.5, 2]),
        (("object", "o", "ramp"), [0.0, float("inf"), 0.0]),
        (("arrays", 0, "dtype"), "|O8"),
        (("arrays", 0, "shape"), [2**40, 2**40, 2**40]),
        (("arrays", 0, "shape"), [-1, 20, 21]),
        (("arrays", 0, "shape"), "big"),
        (("arrays", 0, "name"), "probe/other"),
        (("arrays", 0, "name"), 5),
        (("arrays",), None),
    ],
)
def test_a_header_with_one_wrong_entry_is_refused_before_memory_is_taken(form: str, path: tuple[Any, ...], value: Any) -> None:
    parts = parts_of(form, 1)
    header = msgpack.unpackb(parts[0])
    inner = header
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(SchemaError):
        read([msgpack.packb(header), *parts[1:]])
    del inner[path[-1]]
    with pytest.raises(SchemaError):
        read([msgpack.packb(header), *parts[1:]])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("guess",), {"measured_ns": 1, "iteration": 1}),
        (("frc",), {}),
        (("frc",), [1.0]),
        (("frc", "guess"), 1.0),
        (("frc", "resolution_m"), float("inf")),
        (("frc", "resolution_m"), "fine"),
        (("frc", "correlation"), [1.0, None]),
        (("frc", "frames"), 1.5),
        (("frc", "frames"), True),
        (("drift", "probe_m"), [1.0, 2.0, 3.0]),
        (("convergence", "state"), 3),
        (("convention", "ties"), ["a", "b"]),
        (("convention", "ranking"), [{"name": "a", "orientation": 0}]),
        (("convention", "lead"), float("nan")),
    ],
)
def test_a_figure_of_quality_that_is_none_is_refused(path: tuple[str, ...], value: Any) -> None:
    parts = parts_of(number=1)
    header = msgpack.unpackb(parts[0])
    assert decode(parts).quality == header["quality"] != {}
    inner = header["quality"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(SchemaError, match=f"quality.*{path[-1]}"):
        decode([msgpack.packb(header), *parts[1:]])


@pytest.mark.parametrize("depth", [1, 1000])
@pytest.mark.parametrize("kind", [b"\xdd", b"\xdf", b"\xc6", b"\xdb"], ids=["list", "map", "bytes", "text"])
def test_what_a_header_claims_takes_no_memory(kind: bytes, depth: int) -> None:
    for claimed in (2**32 - 1, 60_000):
        header = ((kind + claimed.to_bytes(4, "big")) * depth).ljust(1 << 16, b"\0")
        tracemalloc.start()
        with pytest.raises(SchemaError):
            read([header])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 128 << 20  # each of 1000 nested lists could claim 2^32 entries


def test_a_shape_takes_no_memory_that_did_not_come() -> None:
    parts = parts_of()
    header = msgpack.unpackb(parts[0])
    header["arrays"][0]["shape"] = [2**20, 2**10, 2**10]
    tracemalloc.start()
    with pytest.raises(SchemaError, match=f"{8 * 2**40} bytes are announced, {len(parts[1])} came"):
        read([msgpack.packb(header), *parts[1:]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_header_that_is_too_long_is_not_unpacked() -> None:
    header = msgpack.unpackb(parts_of()[0]) | {"run": "x" * MAX_HEADER_BYTES}
    with pytest.raises(SchemaError, match=f"at most {MAX_HEADER_BYTES}"):
        read([msgpack.packb(header), *parts_of()[1:]])


@pytest.mark.parametrize("form", FORMS)
def test_arrays_that_are_neither_announced_nor_there_are_named(form: str) -> None:
    whole = parts_of(form)
    header = msgpack.unpackb(whole[0])
    for k, entry in enumerate(header["arrays"]):
        if entry["name"].startswith("coverage/"):
            continue  # an object without coverage is sound
        rest = header | {"arrays": header["arrays"][:k] + header["arrays"][k + 1 :]}
        with pytest.raises(SchemaError, match=f"arrays are missing: {entry['name']}"):
            READERS[form]([msgpack.packb(rest), *whole[1 : k + 1], *whole[k + 2 :]])


def test_another_version_is_told_what_to_do() -> None:
    parts = parts_of()
    header = msgpack.unpackb(parts[0]) | {"version": 99}
    with pytest.raises(SchemaError, match=r"version 99 .*reads version .*same release on both sides"):
        decode([msgpack.packb(header), *parts[1:]])


def test_the_forms_are_not_taken_for_each_other() -> None:
    for form, other in (("complex64", "uint8"), ("uint8", "complex64")):
        with pytest.raises(SchemaError, match=form):
            READERS[other](parts_of(form))
    with pytest.raises(ValueError, match="complex64, uint8"):
        encode(snapshot(), "float32")


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=4), st.integers(0, 3))
def test_random_parts_are_refused(parts: list[bytes], place: int) -> None:
    mixed = parts_of()[:place] + parts
    for reader in READERS.values():
        with pytest.raises(SchemaError):
            reader(mixed)
