"""Frames as they came, in files that are read while they grow."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptystream.codecs import encode
from ptystream.events import Event, FileRows, Frames, Payload, Rejected, ScanEnded, ScanStarted
from ptystream.storage.frames import DATASET, MAX_JUMP, TIMES, WRITTEN, FrameFile, FrameFiles

PIXELS = np.random.default_rng(0).poisson(2.0, (12, 9, 16)).astype("<u2")


def payload(k: int, codec: str = "bslz4", pixels: np.ndarray[Any, Any] = PIXELS) -> Payload:
    return Payload(encode(pixels[k], codec), codec, pixels.dtype, pixels[k].shape)


def frames(*indices: int, epoch: str = "a", codec: str = "bslz4") -> Frames:
    return Frames(epoch, np.array(indices), tuple(payload(k, codec) for k in indices), np.array(indices) * 10)


@pytest.fixture
def path_of(tmp_path: Path) -> Callable[[str, str], Path]:
    return lambda scan, epoch: tmp_path / f"{scan}_{epoch}.h5"


def written(path_of: Callable[[str, str], Path], *events: Event, **settings: Any) -> FrameFiles:
    files = FrameFiles(path_of, "r", **settings)
    for event in events:
        files.offer("s/data", event)
    files.close()
    return files


@pytest.mark.parametrize("codec", ["bslz4", "lz4", "raw"])
def test_every_frame_lies_at_its_index_whatever_order_it_came_in(tmp_path: Path, codec: str, path_of: Any) -> None:
    mixed = frames(7, 2, codec="raw"), frames(2, codec=codec)  # others are recoded; a repetition changes nothing
    files = written(path_of, ScanStarted("a"), frames(5, 0, 1, codec=codec), *mixed, Rejected("x", "y"), ScanEnded("a", 8))
    (told,) = [file.told() for file in files.files()]
    assert told["path"] == str(tmp_path / "s_a.h5") and told["ended"]
    assert (told["frames"], told["written"], told["refused"]) == (8, 5, 0)
    with h5py.File(told["path"]) as file:
        there = [0, 1, 2, 5, 7]
        np.testing.assert_array_equal(np.flatnonzero(file[WRITTEN][()]), there)
        np.testing.assert_array_equal(file[told["dataset"]][there], PIXELS[there])
        np.testing.assert_array_equal(file[TIMES][there], np.array(there) * 10)
        assert file.attrs["complete"] and file.attrs["epoch"] == "a" and file.attrs["run"] == "r"
        assert file[DATASET].chunks == (1, 9, 16)


def test_another_process_reads_it_while_it_grows(tmp_path: Path) -> None:
    file = FrameFile(tmp_path / "x.h5", payload(0), {})
    read = f"import h5py; f = h5py.File({str(file.path)!r}, 'r', libver='v110', swmr=True); print(f[{DATASET!r}][()].sum())"
    for k in range(3):
        file.write(k, payload(k))
        file.flush()
        said = subprocess.run([sys.executable, "-c", "import hdf5plugin; " + read], capture_output=True, text=True, timeout=60)
        assert said.stdout.strip() == str(PIXELS[: k + 1].sum()), said.stderr
    file.close(complete=True)


def test_what_does_not_fit_is_counted_and_the_rest_is_written(path_of: Any) -> None:
    other = np.zeros((1, 9, 17), "<u2")
    damaged = Payload(b"\0" * 40, "lz4", PIXELS.dtype, PIXELS[0].shape)
    wrong = Frames("a", np.array([1, 2, MAX_JUMP + 9, -1]), (payload(0, pixels=other), damaged, payload(0), payload(0)))
    files = written(path_of, frames(0), wrong, frames(3))
    told = files.files()[0].told()
    assert (told["written"], told["refused"], told["frames"]) == (2, 4, 4)
    assert files.failure is None


def test_frames_that_lie_in_files_are_not_written_again(path_of: Any) -> None:
    files = written(path_of, Frames("a", np.array([0]), (FileRows("f.h5", "/d", 0),)), ScanEnded("a", 1))
    assert files.files() == []


def test_frames_behind_the_end_of_their_acquisition_begin_no_other_file(path_of: Any) -> None:
    files = written(path_of, frames(0), ScanEnded("a", 1), frames(1, 2), ScanStarted("a"), frames(3))
    assert [(f.path.name, f.written, f.refused) for f in files.files()] == [("s_a.h5", 1, 2), ("s_a_0002.h5", 1, 0)]


def test_a_first_frame_that_no_file_can_hold_ends_nothing(path_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    empty = Frames("a", np.array([0]), (Payload(b"", "raw", np.dtype("u2"), (0, 4)),))
    short = Frames("b", np.array([1]), (Payload(b"12", "raw", PIXELS.dtype, PIXELS[0].shape),))
    files = written(path_of, empty, frames(1), frames(0, epoch="b", codec="raw"), short)
    assert files.failure is None and "cannot be written" in caplog.text
    assert [(f.written, f.refused) for f in files.files()] == [(1, 0), (1, 1)]


def test_a_file_of_another_session_is_never_replaced(path_of: Any, tmp_path: Path) -> None:
    written(path_of, frames(0), session="one")
    before = (tmp_path / "s_a.h5").read_bytes()
    files = written(path_of, frames(1), ScanEnded("a", 1), ScanStarted("a"), frames(2), session="two")
    assert (tmp_path / "s_a.h5").read_bytes() == before
    assert [file.path.name for file in files.files()] == ["s_a_0002.h5", "s_a_0003.h5"]


def test_a_restart_makes_its_files_anew(path_of: Any, tmp_path: Path) -> None:
    written(path_of, frames(0), session="one")
    written(path_of, frames(0, 1), ScanEnded("a", 2), session="one")
    assert [p.name for p in tmp_path.iterdir()] == ["s_a.h5"]
    with h5py.File(tmp_path / "s_a.h5") as file:
        assert file[DATASET].shape[0] == 2 and file.attrs["complete"]


def test_a_restart_makes_those_anew_that_a_killed_session_left_open(path_of: Any, tmp_path: Path) -> None:
    first = FrameFiles(lambda scan, epoch: tmp_path / "before" / f"{scan}_{epoch}.h5", "r", "one")
    first.offer("s/data", frames(0, 1))
    for _ in range(600):
        if first.files() and first.files()[0].written == 2:
            break
        threading.Event().wait(0.05)
    shutil.copy(tmp_path / "before" / "s_a.h5", tmp_path / "s_a.h5")  # as it lies there when nothing closes it
    first.close()
    files = written(path_of, frames(0, 1, 2), ScanEnded("a", 3), session="one")
    assert [file.path for file in files.files()] == [tmp_path / "s_a.h5"]
    with h5py.File(tmp_path / "s_a.h5") as file:
        assert file[DATASET].shape[0] == 3 and file.attrs["complete"]


@pytest.mark.parametrize("epoch", ["../../etc/x", "a/b", "..", "", "é\0ü", "x" * 500])
def test_no_name_of_an_acquisition_leaves_the_folder(epoch: str, path_of: Any, tmp_path: Path) -> None:
    files = written(path_of, frames(0, epoch=epoch))
    assert files.failure is None
    assert [file.path.parent for file in files.files()] == [tmp_path]


def test_a_full_disk_ends_the_writing_and_nobody_waits(
    path_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FrameFile, "write", full)
    caplog.set_level(logging.ERROR, "ptystream")
    files = written(path_of, *(frames(k) for k in range(12)), queue_bytes=200)
    assert isinstance(files.failure, OSError) and files.lost >= 1
    assert "No space left on device; the session goes on" in caplog.text


def test_a_queue_that_is_full_waits_for_the_disk(path_of: Any) -> None:
    files = written(path_of, *(frames(k) for k in range(12)), queue_bytes=1)
    assert files.files()[0].written == 12 and files.lost == 0
