"""Messages of ptypy's wire: there and back, and whatever is none."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interaction.hostile_requests import FRAMES, MAPS

from ptystream.interaction.framing import MAX_DEPTH, MAX_HEADER_BYTES, FramingError, decode, encode


def test_without_arrays_it_is_one_part_of_json() -> None:
    (part,) = encode({"status": "ok", "out": [1, None, True, 2.5, "é", {"a": ()}]})
    assert json.loads(bytes(part)) == {
        "hasarray": False,
        "message": {"status": "ok", "out": [1, None, True, 2.5, "é", {"a": []}]},
    }


def test_an_array_lies_behind_and_its_place_is_held() -> None:
    header, raw = encode({"status": "ok", "out": np.arange(6.0).reshape(2, 3)})
    assert json.loads(bytes(header)) == {
        "hasarray": True,
        "message": {"status": "ok", "out": "NPYARRAY[000]"},
        "arraylist": [{"dtype": "<f8", "shape": [2, 3]}],
    }
    assert len(bytes(raw)) == 48


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.complex64).reshape(3, 4),
        np.arange(12).reshape(3, 4)[:, ::2],
        np.arange(12, dtype=">u2").reshape(3, 4).T,
        np.array(5.0),
        np.zeros((0, 3)),
        np.array([True, False]),
    ],
    ids=["complex", "gaps", "big-endian and turned", "no axis", "empty", "bool"],
)
def test_arrays_come_back(array: np.ndarray) -> None:
    back = decode([bytes(part) for part in encode({"a": array, "b": [array, 1]})])
    np.testing.assert_array_equal(back["a"], array)
    assert (back["a"].shape, back["a"].dtype.str) == (array.shape, array.dtype.str)
    np.testing.assert_array_equal(back["b"][0], array)


def test_an_array_without_gaps_is_not_copied() -> None:
    array = np.zeros((100, 100), np.complex64)
    assert np.shares_memory(np.frombuffer(encode(array)[1], np.uint8), array)
    part = encode(array)[1]
    assert np.shares_memory(decode([encode(array)[0], part]), array)


def test_what_json_has_no_form_for() -> None:
    value = {"path": Path("/a/b"), "number": np.float32(0.5), "count": np.int64(3), 7: "key", "z": 1 + 2j, "o": np.array([None])}
    back = decode([bytes(part) for part in encode(value)])
    assert (back["path"], back["number"], back["count"], back["7"]) == ("/a/b", 0.5, 3, "key")
    assert back["z"].dtype == np.complex128
    assert back["z"] == 1 + 2j
    assert back["o"] == "[None]"


def test_what_cannot_be_sent_is_said() -> None:
    deep: list[Any] = []
    for _ in range(MAX_DEPTH + 2):
        deep = [deep]
    with pytest.raises(FramingError, match="deeper"):
        encode(deep)
    ring: dict[str, Any] = {}
    ring["again"] = ring
    with pytest.raises(FramingError, match="deeper"):
        encode(ring)
    with pytest.raises(FramingError, match="more than 1000 arrays"):
        encode([np.zeros(1)] * 1001)
    assert len(encode([np.zeros(1)] * 1000)) == 1001
    with pytest.raises(FramingError, match="looks like an array's place"):
        encode({"a": np.zeros(1), "b": "NPYARRAY[000]"})
    assert decode([bytes(part) for part in encode({"b": "NPYARRAY[000]"})]) == {"b": "NPYARRAY[000]"}


def test_a_header_that_is_too_long_is_not_read() -> None:
    with pytest.raises(FramingError, match="are allowed"):
        decode([b" " * (MAX_HEADER_BYTES + 1)])


@pytest.mark.parametrize("parts", [[], *FRAMES[:-1]], ids=lambda parts: repr(parts)[:40])
def test_the_hostile_corpus_is_refused_or_plain(parts: list[bytes]) -> None:
    if parts in ([b'{"message": 1}'], [b'{"hasarray": false, "message": NaN}']):
        assert decode(parts) == 1 or np.isnan(decode(parts))
        return
    with pytest.raises(FramingError):
        decode(parts)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_whatever_bytes_come(parts: list[bytes]) -> None:
    with contextlib.suppress(FramingError):
        decode(parts)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.just("NPYARRAY[000]"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_every_plain_value_comes_back(value: Any) -> None:
    assert decode([bytes(part) for part in encode(value)]) == value


@given(JSON, JSON, st.lists(st.binary(max_size=40), max_size=3))
def test_headers_that_announce_anything(message: Any, listed: Any, parts: list[bytes]) -> None:
    with contextlib.suppress(FramingError):
        decode([json.dumps({"hasarray": True, "message": message, "arraylist": listed}).encode(), *parts])


def test_the_maps_of_the_corpus_are_well_framed() -> None:
    for said in MAPS:
        assert decode([bytes(part) for part in encode(said)]) == said
