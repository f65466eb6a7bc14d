"""Frames and readings that lie in files: growing, encoded, missing, hostile."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from ptystream.codecs import decode
from ptystream.events import FileRows, Frames, Payload, Rejected, Rows, SampleRows, Samples
from ptystream.files import Reader, ReadingThread

STACK = np.random.default_rng(0).poisson(3.0, (6, 20, 12)).astype("<u2")


def frame(where: FileRows, patience_s: float = 0.1) -> Any:
    """What becomes of one frame: a payload, or the reference again."""
    reader = Reader(patience_s)
    (event,) = reader.resolve(Frames("e", np.array([0]), (where,)))
    reader.close()
    assert isinstance(event, Frames)
    return event.payloads[0]


@pytest.mark.parametrize(
    ("options", "codec"),
    [
        ({"chunks": (1, 20, 12), **hdf5plugin.Bitshuffle(cname="lz4")}, "bslz4"),
        ({"chunks": (1, 20, 12), **hdf5plugin.LZ4()}, "lz4"),
        ({"chunks": (1, 20, 12)}, "raw"),
        ({"chunks": (1, 20, 12), "compression": "gzip"}, "raw"),
        ({"chunks": (2, 10, 12), **hdf5plugin.Bitshuffle(cname="lz4")}, "raw"),
        ({"chunks": (1, 20, 12), **hdf5plugin.Bitshuffle(cname="none")}, "raw"),
        ({}, "raw"),
    ],
)
def test_every_layout_gives_the_same_frames(tmp_path: Path, options: dict[str, Any], codec: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=STACK, **options)
        file.create_dataset("stack", data=STACK.reshape(2, 3, 20, 12))
        file.create_dataset("big", data=STACK.astype(">u2"), chunks=(1, 20, 12))
    for dataset in ("data", "stack", "big"):
        for row in range(6):
            payload = frame(FileRows(str(tmp_path / "a.h5"), dataset, row))
            assert isinstance(payload, Payload)
            if dataset == "data":
                assert payload.codec == codec
            np.testing.assert_array_equal(decode(payload), STACK[row])


def test_rows_that_are_announced_too_early_are_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"

    def write() -> None:
        time.sleep(0.3)
        with h5py.File(path, "w", libver="v110") as file:
            made = file.create_dataset("data", (0, 20, 12), "<u2", maxshape=(None, 20, 12), chunks=(1, 20, 12))
            file.swmr_mode = True
            for k in range(6):
                time.sleep(0.05)
                made.resize(k + 1, axis=0)
                made[k] = STACK[k]
                made.flush()
            time.sleep(0.3)

    writer = threading.Thread(target=write)
    writer.start()
    reader = Reader(60.0)
    for row in range(6):
        (event,) = reader.resolve(Frames("e", np.array([row]), (FileRows(str(path), "data", row),)))
        assert isinstance(event, Frames) and isinstance(event.payloads[0], Payload)
        np.testing.assert_array_equal(decode(event.payloads[0]), STACK[row])
    writer.join()
    reader.close()


def test_what_cannot_be_read_is_waited_for_once_and_stays_a_reference(tmp_path: Path) -> None:
    class Counting(threading.Event):
        waits = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.waits += 1
            return super().wait(timeout)

    where = FileRows(str(tmp_path / "nowhere.h5"), "data", 0)
    stopped = Counting()
    reader = Reader(0.4, stopped)
    waits = []
    for _ in range(3):
        (event,) = reader.resolve(Frames("e", np.array([0]), (where,)))
        waits.append(stopped.waits)
        assert isinstance(event, Frames) and event.payloads == (where,)
    assert waits[0] > 1 and len(set(waits)) == 1
    (told,) = reader.resolve(SampleRows("e", 0, {"y": Rows(where.file, "y", 0, 3)}))
    assert isinstance(told, Rejected) and told.reason == "unreadable_file" and "nowhere.h5" in told.detail


def test_what_is_no_stack_of_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["text"] = ["a", "b"]
        file["line"] = np.arange(5.0)
        file["complex"] = STACK.astype(complex)
        file.create_group("group")
        file.create_dataset("huge", (1, 1 << 20, 1 << 20), "<u2", chunks=(1, 1024, 1024))
        file.create_dataset("unwritten", (4, 20, 12), "<u2", chunks=(1, 20, 12))
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "pickle.npy").write_bytes(
        b"\x93NUMPY\x01\x00\x36\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n" + b"x" * 80
    )
    for dataset in ("text", "line", "complex", "group", "huge", "missing", "unwritten"):
        assert isinstance(frame(FileRows(str(path), dataset, 0)), FileRows), dataset
    assert isinstance(frame(FileRows(str(path), "line", 7)), FileRows)
    for file in (tmp_path / "text.h5", tmp_path, Path("/dev/zero")):
        assert isinstance(frame(FileRows(str(file), "data", 0)), FileRows)
    (tmp_path / "begun.npy").write_bytes(b"")
    with open(tmp_path / "several.npy", "wb") as several:
        np.savez(several, a=STACK, b=STACK)
    for file in ("pickle.npy", "begun.npy", "several.npy"):
        assert isinstance(frame(FileRows(str(tmp_path / file), "", 0)), FileRows), file


def test_a_dataset_whose_values_lie_in_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(range(240)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (1, 20, 12), "u1", external=[(str(tmp_path / "secret"), 0, 240)])
    assert isinstance(frame(FileRows(str(tmp_path / "a.h5"), "data", 0)), FileRows)


def test_numpy_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STACK[0].astype(np.int64))
    payload = frame(FileRows(str(tmp_path / "a.npy"), "", 0))
    assert payload.dtype == np.dtype("<u4")
    np.testing.assert_array_equal(decode(payload), STACK[0])


def test_readings_are_averaged_and_scaled(tmp_path: Path) -> None:
    values = np.arange(12.0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["y"] = values
        file["table"] = values.reshape(6, 2)
    reader = Reader(0.1)
    rows = Rows(str(tmp_path / "a.h5"), "y", 2, 8, average=3, scale=-2.0, offset=1.0)
    (samples,) = reader.resolve(SampleRows("e", 5, {"y": rows, "x": np.zeros(2)}))
    assert isinstance(samples, Samples) and samples.first == 5
    np.testing.assert_allclose(samples.channels["y"], values[2:8].reshape(2, 3).mean(axis=1) * -2 + 1)
    for bad in (Rows(rows.file, "y", 2, 1 << 40), Rows(rows.file, "y", 10, 14), Rows(rows.file, "table", 0, 2)):
        (told,) = reader.resolve(SampleRows("e", 0, {"y": bad}))
        assert isinstance(told, Rejected)
    reader.close()


def test_the_thread_keeps_the_order_and_says_when_it_dies(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = STACK
    got: list[Any] = []
    done = threading.Event()

    def deliver(event: Any, arrival_ns: int) -> None:
        got.append((event, arrival_ns))
        if arrival_ns == 9:
            done.set()
        if arrival_ns == 10:
            raise ZeroDivisionError

    died = threading.Event()
    thread = ReadingThread("s", deliver, lambda error: died.set())
    for k in range(9):
        thread.add(Frames("e", np.array([0]), (FileRows(str(tmp_path / "a.h5"), "data", k % 6),)), k)
    thread.add(Rejected("end", ""), 9)
    assert done.wait(60)
    assert [arrival for _, arrival in got] == list(range(10))
    thread.add(Rejected("end", ""), 10)
    assert died.wait(60)
    thread.join(60)
    assert thread.waiting == 0
