"""Requests and replies as bytes; whatever else comes is refused and nothing more."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import hostile
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptystream.steering.wire import (
    MAX_REQUEST_BYTES,
    Fault,
    Reply,
    Request,
    WireError,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None)
@given(number=st.integers(0, 2**60), action=st.text(max_size=100), arguments=st.dictionaries(st.text(), VALUES, max_size=4))
def test_a_request_comes_back_as_it_was(number: int, action: str, arguments: dict[str, Any]) -> None:
    request = Request(number, action, arguments, "somebody")
    assert decode_request(encode_request(request)) == request


@settings(deadline=None)
@given(value=VALUES)
def test_a_reply_comes_back_as_it_was(value: Any) -> None:
    assert decode_reply(encode_reply(Reply(3, value))) == Reply(3, value)


def test_a_fault_and_plain_forms_of_numbers_arrays_and_paths() -> None:
    fault = Reply(4, fault=Fault("save", "x", "do that"))
    assert decode_reply(encode_reply(fault)) == fault
    assert str(fault.fault) == "save: x: do that"
    sent = {"a": np.float32(0.5), "b": np.arange(3), "c": Path("d/e")}
    assert decode_reply(encode_reply(Reply(1, sent))).value == {"a": 0.5, "b": [0, 1, 2], "c": "d/e"}
    with pytest.raises(WireError, match="object has no form"):
        encode_reply(Reply(1, object()))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "version None"),
        ({"version": 2, "id": 1, "action": "status"}, "version 2"),
        ({"version": 1, "action": "status"}, "'id'"),
        ({"version": 1, "id": True, "action": "status"}, "'id'"),
        ({"version": 1, "id": 1}, "'action'"),
        ({"version": 1, "id": 1, "action": "a" * 101}, "'action'"),
        ({"version": 1, "id": 1, "action": "a", "with": [1]}, "'with'"),
        ({"version": 1, "id": 1, "action": "a", "who": 5}, "'who'"),
        ([1], "a map is needed"),
    ],
)
def test_what_is_no_request_is_refused_with_what_is_wrong(said: Any, why: str) -> None:
    with pytest.raises(WireError, match=why):
        decode_request(msgpack.packb(said))


@pytest.mark.parametrize("depth", [33, 500, 1000, 1020, 100_000])
@pytest.mark.parametrize(
    "before", [b"", b"\x81\xa7version", b"\x84\xa7version\x01\xa2id\x01\xa6action\xa3get\xa4with\x81\xa4path"]
)
def test_what_is_nested_too_deep_is_refused(depth: int, before: bytes) -> None:
    for decode in (decode_request, decode_reply):
        with pytest.raises(WireError, match=r"nested|is no msgpack"):
            decode(before + b"\x91" * depth + b"\x01")


def test_what_is_nested_as_parameters_are_is_taken() -> None:
    value: object = 1
    for _ in range(20):
        value = {"a": [value]} if _ % 2 else [value]
    assert decode_request(encode_request(Request(1, "set", {"value": value}))).arguments == {"value": value}


def test_what_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="are allowed"):
        decode_request(bytes(MAX_REQUEST_BYTES + 1))


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=60))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    for decode in (decode_request, decode_reply):
        with contextlib.suppress(WireError):
            decode(raw)


def test_the_hostile_corpus_is_refused() -> None:
    for _, parts in hostile.malformed():
        for part in parts:
            with pytest.raises(WireError):
                decode_request(bytes(part))
