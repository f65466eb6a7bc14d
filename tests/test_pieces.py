"""Frames as they lie in a file: which codec, whether they are written, and what is too large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from ptystream.codecs import CodecError, decode, encode
from ptystream.events import Payload
from ptystream.pieces import codec_of, piece

STACK = np.arange(3 * 20 * 12, dtype="<u2").reshape(3, 20, 12)


@pytest.mark.parametrize(
    ("options", "codec"),
    [
        ({"chunks": (1, 20, 12), **hdf5plugin.Bitshuffle(cname="lz4")}, "bslz4"),
        ({"chunks": (1, 20, 12), **hdf5plugin.LZ4()}, "lz4"),
        ({"chunks": (1, 20, 12)}, "raw"),
        ({"chunks": (1, 20, 12), "shuffle": True, **hdf5plugin.LZ4()}, None),
        ({"chunks": (1, 20, 12), **hdf5plugin.Bitshuffle(cname="zstd")}, None),
        ({"chunks": (1, 10, 12), **hdf5plugin.LZ4()}, None),
        ({"chunks": (1, 20, 12), "dtype": ">u2"}, None),
        ({}, None),
    ],
)
def test_the_codec_of_whole_frames_is_known(tmp_path: Path, options: dict[str, Any], codec: str | None) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("d", data=STACK, **options)
        assert codec_of(data) == codec
        if codec is not None:
            found = piece(data, (2, 0, 0), STACK[2].nbytes)
            assert found is not None and found[1]
            np.testing.assert_array_equal(decode(Payload(found[0], codec, STACK.dtype, (20, 12))), STACK[2])


def test_what_is_not_written_left_as_it_was_or_too_large_is_told_apart(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("d", STACK.shape, STACK.dtype, chunks=(1, 20, 12), **hdf5plugin.LZ4())
        assert piece(data, (0, 0, 0), 480) is None
        data.id.write_direct_chunk((0, 0, 0), STACK[0].tobytes(), filter_mask=1)
        assert piece(data, (0, 0, 0), 480) == (STACK[0].tobytes(), False)
        data.id.write_direct_chunk((1, 0, 0), encode(STACK[1], "lz4") + bytes(6000))
        with pytest.raises(CodecError, match=r"a\.h5: /d: \(1, 0, 0\): a frame of 480 bytes is stored in"):
            piece(data, (1, 0, 0), 480)
