"""What ranks tell each other arrives as it was, and bytes that say something else make nothing."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from ptystream.packing import ARRAY, COMPLEX, RECORD, TUPLE, pack, unpack
from ptystream.reconstruction import Storage, Volume


@pytest.mark.parametrize(
    "value",
    [
        {"a": (1, (2.5, "b")), 3: [None, True, b"c"]},
        1 - 2j,
        np.complex64(1 - 2j),
        np.complex128(3j),
        np.float32(0.5),
        np.int64(7),
        float("inf"),
    ],
)
def test_plain_values_arrive(value: Any) -> None:
    assert unpack(pack(value)) == value


@pytest.mark.parametrize("kind", ["u1", "<u2", "<f4", "<c8", "<c16", "?"])
def test_arrays_arrive_with_type_and_shape(kind: str) -> None:
    sent = np.arange(24).astype(kind).reshape(2, 3, 4)[:, ::2]
    found = unpack(pack(sent))
    assert found.dtype == sent.dtype
    assert found.flags.writeable
    np.testing.assert_array_equal(found, sent)


def test_storages_arrive() -> None:
    sent = Volume(np.ones((2, 3, 4), np.complex64), (1e-8, 2e-8), (3, -4), np.complex64(0.5), first=-2)
    found = unpack(pack({"whole": sent}))["whole"]
    assert type(found) is Volume
    assert (found.corner, found.fill, found.pixel_size_m) == (sent.corner, 0.5, sent.pixel_size_m)
    np.testing.assert_array_equal(found.data, sent.data)


def test_what_the_others_do_not_know_is_not_sent() -> None:
    class Own(Storage):
        pass

    for value in (object(), Own(np.ones((1, 1, 1)), None), np.array([object()])):
        with pytest.raises((TypeError, ValueError)):
            unpack(pack(value))


@pytest.mark.parametrize(
    ("code", "held"),
    [
        (RECORD, ["Storage", {"nope": 1}]),
        (RECORD, ["os.system", {"command": "true"}]),
        (RECORD, [[1], {}]),
        (RECORD, []),
        (ARRAY, ["|O", [1], b"12345678"]),
        (ARRAY, ["<f8", [3], b"12345678"]),
        (ARRAY, ["what", [3], b"12345678"]),
        (ARRAY, 5),
        (COMPLEX, ["a", "b"]),
        (TUPLE, 5),
        (99, []),
    ],
)
def test_bytes_that_say_something_else_are_refused(code: int, held: Any) -> None:
    with pytest.raises(ValueError, match=r"extension|objects|reshape"):
        unpack(msgpack.packb(msgpack.ExtType(code, msgpack.packb(held))))
