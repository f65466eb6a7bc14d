"""Copies of rows of files in a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from ptystream.events import FileRows, Payload, Rows, SampleRows, Samples
from ptystream.files import Reader
from ptystream.kept import FILES, Kept
from ptystream.recording import Recorder, Recording
from ptystream.transport import Message

FRAME = FileRows("a.h5", "/data", 3)


def given(folder: Path, *messages: tuple[Any, ...]) -> Kept:
    """Copies made of these parts."""
    with_recorder = Recorder(folder / "r.ptyrec")
    for parts in messages:
        with_recorder.write(Message(0, FILES, parts))
    with_recorder.close()
    return Kept(Recording(folder / "r.ptyrec"))


def test_readings_are_kept_as_they_are_in_the_file(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.ptyrec")
    rows = np.arange(6, dtype=">i2")
    where = Rows("gone.h5", "/y", 4, 10, 3, -2.0, 1.0)
    Kept(tap=recorder).keep(where, Payload(rows.tobytes(), "raw", rows.dtype, rows.shape))
    recorder.close()
    reader = Reader(0.0, copies=Kept(Recording(tmp_path / "r.ptyrec")))
    (event,) = reader.resolve(SampleRows("e", 0, {"y": where}))
    assert isinstance(event, Samples)
    np.testing.assert_array_equal(event.channels["y"], [-1.0, -7.0])


@pytest.mark.parametrize(
    ("told", "content"),
    [
        (msgpack.packb(["raw", "<u2", [2, 2]]), bytes(7)),
        (msgpack.packb(["raw", "|O", [2, 2]]), bytes(32)),
        (msgpack.packb(["raw", "<u2", [1 << 20, 1 << 20]]), bytes(8)),
        (msgpack.packb(["raw", "<u2", [-1, 4]]), bytes(8)),
        (msgpack.packb(["raw", "nonsense", [2, 2]]), bytes(8)),
        (msgpack.packb([1, 2]), bytes(8)),
        (b"\xc1", bytes(8)),
    ],
)
def test_a_damaged_copy_is_none(tmp_path: Path, told: bytes, content: bytes) -> None:
    place = msgpack.packb(["a.h5", "/data", 3])
    assert (
        given(tmp_path, (place, told, content), (b"\xc1", told, content), (b"x",), (b"\x91\x90", told, b"")).find(FRAME) is None
    )


def test_a_sound_copy_is_found_and_others_are_not(tmp_path: Path) -> None:
    place, told = msgpack.packb(["a.h5", "/data", 3]), msgpack.packb(["bslz4", "<u2", [2, 2]])
    kept = given(tmp_path, (place, told, b"chunk"))
    found = kept.find(FRAME)
    assert found is not None and (bytes(found.buffer), found.codec, found.dtype, found.shape) == (
        b"chunk",
        "bslz4",
        "<u2",
        (2, 2),
    )
    assert kept.find(FileRows("a.h5", "/data", 4)) is None
    assert kept.find(Rows("a.h5", "/data", 3, 4)) is None
