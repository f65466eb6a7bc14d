"""Frames from arrays: what a scan takes of them, in a file and in memory; and signals of virtual detectors, on the wire too."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptystream.detectors.arrays.protocol import FrameArray
from ptystream.detectors.zmq.protocol import NativeDecoder, frames_parts, header
from ptystream.params.attached import Attached, attached
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.plan import make_plan, models_of
from ptystream.scan.block import EOS, Signal
from ptystream.scan.parameters import PtyScanParameters
from ptystream.scan.ptyscan import PtyScan
from ptystream.transport import Message, TransportClosed

COUNTS = np.random.default_rng(0).poisson(30.0, (3, 4, 8, 8))
LENGTHS = {"acc_voltage": 200.0, "distance": 0.5, "psize": 1e-4, "raster": {"points": (3, 4), "step": 1e-10}}
MASKS = np.random.default_rng(1).normal(size=(5, 8, 8))
SIGNALS = np.einsum("skyx,myx->skm", COUNTS, MASKS)


def configured(home: Path, engine: dict[str, Any] | None = None, **data: Any) -> Any:
    entry = {"name": "Full", "data": {"name": "ArrayScan", **LENGTHS, **data}}
    root = {"io": {"home": str(home)}, "threads": 1, "min_frames_for_recon": 1}
    return load({**root, "scans": {"s": entry}, "engines": {"e": engine or {"name": "PyPty"}}})


def acquired(configuration: Any, after: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, slab rows) of what a scan hands out. `after`: the source is opened anew behind so many messages."""
    plan = make_plan(configuration)
    channel, (buffer, _) = plan.channels[0], plan.scans[0].make(None)
    transport = channel.transport
    transport.open()
    number = 0
    while True:
        if number == after:
            transport.close()
            transport = configuration.scans[0].data.plugin.transport(
                configuration.scans[0].data.parameters, "s/data", channel.decoder
            )
            transport.open()
        try:
            message = transport.receive(1.0)
        except TransportClosed:
            break
        number += 1
        for event in channel.decoder.feed(message):
            buffer.feed("data", event, 0)
    found = handed_out(buffer)
    plan.close()
    return found


def handed_out(buffer: PtyScan) -> tuple[np.ndarray, np.ndarray]:
    indices, rows = [], []
    while buffer.ledger.prepared < buffer.ledger.distinct:
        buffer.changed(-1, 0.01)
    while (block := buffer.take(1000)) is not EOS:
        if isinstance(block, Signal):
            buffer.changed(-1, 0.01)
            continue
        indices += block.indices.tolist()
        rows += [buffer.frames.row(slot).copy() for slot in block.slots.tolist()]
    return np.array(indices), np.array(rows)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", ["u2", "i8", "f8", "u1"])
@pytest.mark.parametrize("kept", ["file", "memory"])
def test_every_frame_comes_row_by_row(flat: bool, kind: str, kept: str, tmp_path: Path) -> None:
    data = (COUNTS.reshape(12, 8, 8) if flat else COUNTS).astype(kind)
    np.save(tmp_path / "data.npy", data)
    given = {"file": "data.npy"} if kept == "file" else {"array": data}
    configuration = configured(tmp_path, **given)
    assert configuration.scans[0].data.parameters.shape == 8
    indices, rows = acquired(configuration)
    np.testing.assert_array_equal(indices, np.arange(12))
    np.testing.assert_array_equal(np.fft.fftshift(rows, axes=(1, 2)), COUNTS.reshape(12, 8, 8))


def test_columns_before_rows_in_memory_are_no_matter(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.asfortranarray(COUNTS.astype("u2")))
    _, rows = acquired(configured(tmp_path, file="data.npy"))
    np.testing.assert_array_equal(np.fft.fftshift(rows, axes=(1, 2)), COUNTS.reshape(12, 8, 8))


def test_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    held = np.lib.format.open_memmap(tmp_path / "data.npy", "w+", "u2", (1 << 14, 1 << 12, 512, 8))  # 512 GiB of nothing
    held[0, 0, 3, 3] = 7
    del held
    array = np.load(tmp_path / "data.npy", mmap_mode="r", allow_pickle=False)
    frames = FrameArray(np.asarray(array), None)
    assert frames.total == 1 << 26 and frames.rows(0, 2).sum() == 7


def test_reading_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.detectors.arrays.protocol.MESSAGE_BYTES", 5 * 64 * 2)
    configuration = configured(tmp_path, array=COUNTS.astype("u2"))
    for after in range(6):
        indices, _ = acquired(configuration, after)
        np.testing.assert_array_equal(indices, np.arange(12))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (np.zeros((8, 8)), "must be .frame, y, x"),
        (np.zeros((2, 8, 8), complex), "real numbers"),
        (np.zeros((2, 0, 8)), "too large, or empty"),
        (np.array([{"a": 1}], object), "Python objects"),
        (b"not an array at all", "no .npy file"),
        (None, "no such file"),
    ],
)
def test_what_cannot_be_frames_is_refused_before_anything_is_opened(content: Any, told: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / "data.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "data.npy", content, allow_pickle=True)
    with pytest.raises(ConfigurationError, match=rf"scans.s.data.file.*{told}"):
        configured(tmp_path, file="data.npy")


@pytest.mark.parametrize(("given", "told"), [({"file": "data.pkl"}, "end in .npy"), ({}, "must be given, or `array`")])
def test_a_file_or_an_array_must_be_named(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=told):
        configured(tmp_path, **given)


def test_an_array_in_memory_is_told_by_its_shape_and_never_copied() -> None:
    held = attached(COUNTS)
    assert held.array is COUNTS and copy.deepcopy(held) is held
    again = attached(str(held))
    assert str(held) == "<array in memory: 3 × 4 × 8 × 8 int64>" and again.array is None and again.shape == COUNTS.shape
    for hostile in ("<array in memory: x × 1 f4>", "<array in memory: ", "<array in memory: 1" + "0" * 99 + " f4>"):
        assert Attached(None, hostile).shape == ()
    with pytest.raises(ValueError, match="name a file"):
        attached("data.npy")


# ---------------------------------------------------------------------- signals


@pytest.mark.parametrize("suffix", ["npy", "memory", "h5"])
def test_signals_come_as_they_are_negative_ones_too(suffix: str, tmp_path: Path) -> None:
    engine = {"name": "PyPty", "algorithm": "lsq_compressed", "masks": MASKS}
    given: dict[str, Any] = {"array": SIGNALS}
    if suffix == "npy":
        np.save(tmp_path / "data.npy", SIGNALS)
        given = {"file": "data.npy"}
    if suffix == "h5":
        with h5py.File(tmp_path / "data.h5", "w") as file:
            file["data"] = SIGNALS.reshape(12, 5)
        os.utime(tmp_path / "data.h5", (1e9, 1e9))  # its format does not tell whether it was closed
        given = {"name": "Hdf5Scan", "file": "data.h5", "frames": "/data"}
    configuration = configured(tmp_path, engine, **given)
    model = models_of(configuration)["s"]
    assert model.store_shape == (1, 5) and model.geometry.view == (8, 8)
    if suffix == "h5":
        plan = make_plan(configuration)
        plan.channels[0].transport.open()
        first = next(m for _ in range(99) if (m := plan.channels[0].transport.receive(0.1)) is not None and len(m.parts) > 1)
        found = plan.channels[0].decoder.feed(first)[0].payloads[3]
        np.testing.assert_allclose(np.frombuffer(found.buffer, found.dtype), SIGNALS.reshape(12, 5)[3], rtol=1e-6)
        plan.close()
        return
    indices, rows = acquired(configuration)
    assert len(indices) == 12 and (rows < 0).any()
    np.testing.assert_allclose(rows[:, 0], SIGNALS.reshape(12, 5), rtol=1e-6)


def test_signals_come_live_on_the_native_wire() -> None:
    p = PtyScanParameters(shape=8, signals=5, acc_voltage=200.0, raster={"points": (3, 4), "step": 1e-10})
    scan, decoder = PtyScan("s", p), NativeDecoder()
    data = SIGNALS.reshape(12, 1, 5).astype("<f4")
    parts = [[header("start", scan="a", meta={})]]
    parts += [frames_parts("a", k, [data[k : k + 4].tobytes()], 4, (1, 5), data.dtype, "raw") for k in (0, 4, 8)]
    for part in parts:
        for event in decoder.feed(Message(0, "s/data", tuple(part))):
            scan.feed("data", event, 0)
    indices, rows = handed_out(scan)
    np.testing.assert_array_equal(indices, np.arange(12))
    np.testing.assert_array_equal(rows, data)


def test_signals_of_another_number_are_counted_and_left_out() -> None:
    p = PtyScanParameters(shape=8, signals=5, positions_theory=np.zeros((2, 2)))
    scan, decoder = PtyScan("s", p), NativeDecoder()
    for k, n in enumerate((5, 4)):
        part = frames_parts("a", k, [np.ones((1, n), "<f4").tobytes()], 1, (1, n), np.dtype("<f4"), "raw")
        for event in decoder.feed(Message(0, "s/data", tuple(part))):
            scan.feed("data", event, 0)
    assert scan.ledger.reason_counts()["wrong_shape"] == 1


@pytest.mark.parametrize(
    "given",
    [{"rebin": 2}, {"orientation": 2}, {"shift": (1, 0)}, {"mask": np.ones((8, 8))}, {"hot_pixels": 10.0}, {"shape": None}],
)
def test_what_is_done_with_pictures_is_refused_with_signals(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"signals|shape"):
        PtyScanParameters(**{"shape": 8, "signals": 5, **given})


def test_other_engines_take_patterns_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"scans.s.data.signals: 5: engines.e \(DM\) takes patterns only: use PyPty"):
        models_of(configured(tmp_path, {"name": "DM"}, array=SIGNALS, signals=5, shape=8))
