"""Frames that documents name in files of other kinds: TIFF, .npy, and those that an EIGER writes."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from beamline import decoder, feed, rejected

from ptystream.codecs import decode
from ptystream.events import FileRows, Frames, Payload, Rejected
from ptystream.files import Reader

tifffile = pytest.importorskip("tifffile", reason="extra `tiff` is not installed")
STACK = np.random.default_rng(2).poisson(9.0, (6, 12, 14)).astype("u2")


def run(resource: dict[str, Any], datums: list[dict[str, Any]], per: int = 1, **given: Any) -> list[Any]:
    """Events of a run whose frames a resource holds."""
    key = {"source": "x", "dtype": "array", "external": "FILESTORE:", "shape": [per, 12, 14] if per > 1 else [12, 14]}
    told = {"uid": "d", "run_start": "a", "name": "primary", "time": 0.0, "data_keys": {"cam": key}, "configuration": {}}
    documents: list[tuple[str, dict[str, Any]]] = [("start", {"uid": "a", "time": 0.0}), ("descriptor", told)]
    documents.append(("resource", {"uid": "r", "run_start": "a", "path_semantics": "posix", **resource}))
    for k, arguments in enumerate(datums):
        documents.append(("datum", {"datum_id": f"r/{k}", "resource": "r", "datum_kwargs": arguments}))
        event = {"uid": f"e{k}", "descriptor": "d", "seq_num": k + 1, "time": 0.0, "timestamps": {"cam": 0.0}, "filled": {}}
        documents.append(("event", {**event, "data": {"cam": f"r/{k}"}}))
    return feed(decoder(**given), documents)


@pytest.mark.parametrize("kind", ["AD_TIFF", "NPY_SEQ", "AD_EIGER"])
@pytest.mark.parametrize("allowed", [True, False])
def test_files_of_every_kind_are_read_from_allowed_folders_alone(tmp_path: Path, kind: str, allowed: bool) -> None:
    resource, datums = tiffs(tmp_path), [{"point_number": k} for k in range(3)]
    if kind == "NPY_SEQ":
        for k, frame in enumerate(STACK):
            np.save(tmp_path / f"scan_{k}.npy", frame)
        resource = {"spec": kind, "root": str(tmp_path), "resource_path": "scan", "resource_kwargs": {}}
        datums = [{"index": k} for k in range(6)]
    elif kind == "AD_EIGER":
        with h5py.File(tmp_path / "run_1_data_000001.h5", "w") as file:
            file["entry/data/data"] = STACK
        resource = {"spec": kind, "root": str(tmp_path), "resource_path": "run", "resource_kwargs": {"images_per_file": 6}}
        datums = [{"seq_id": 1, "frame_num": k} for k in range(6)]
    events = run(resource, datums, 2 if kind == "AD_TIFF" else 1, folders=[str(tmp_path if allowed else tmp_path / "elsewhere")])
    reader = Reader(0.0)
    payloads = [p for e in events for found in reader.resolve(e) if isinstance(found, Frames) for p in found.payloads]
    reader.close()
    assert [isinstance(payload, Payload) for payload in payloads] == [allowed] * 6


def read(events: list[Any]) -> np.ndarray:
    """The frames, in order."""
    reader = Reader(0.0)
    resolved = [found for event in events for found in reader.resolve(event) if isinstance(found, Frames)]
    reader.close()
    payloads = [payload for event in resolved for payload in event.payloads]
    assert all(isinstance(payload, Payload) for payload in payloads), payloads
    return np.stack([decode(payload) for payload in payloads])  # type: ignore[arg-type]


def tiffs(folder: Path, stack: np.ndarray = STACK) -> dict[str, Any]:
    """A sequence as areaDetector's TIFF plugin writes it, and its resource."""
    (folder / "2026").mkdir(exist_ok=True)
    for k, frame in enumerate(stack):
        tifffile.imwrite(folder / "2026" / f"scan_{k:06d}.tiff", frame)
    kept = {"template": "%s%s_%6.6d.tiff", "filename": "scan", "frame_per_point": 2}
    return {"spec": "AD_TIFF", "root": str(folder), "resource_path": "2026", "resource_kwargs": kept}


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "f4"])
def test_a_sequence_of_tiff_files_gives_its_frames(tmp_path: Path, dtype: str) -> None:
    stack = STACK.astype(dtype)
    events = run(tiffs(tmp_path, stack), [{"point_number": k} for k in range(3)], per=2)
    assert rejected(events) == {}
    found = read(events)
    np.testing.assert_array_equal(found, stack)
    assert found.dtype == stack.dtype


def test_a_sequence_of_npy_files_gives_its_frames(tmp_path: Path) -> None:
    for k, frame in enumerate(STACK):
        np.save(tmp_path / f"scan_{k}.npy", frame)
    resource = {"spec": "NPY_SEQ", "root": str(tmp_path), "resource_path": "scan", "resource_kwargs": {}}
    np.testing.assert_array_equal(read(run(resource, [{"index": k} for k in range(6)])), STACK)


@pytest.mark.parametrize("spec", ["AD_EIGER", "AD_EIGER_SLOW", "AD_EIGER2"])
@pytest.mark.parametrize("each", [True, False])
def test_files_of_an_eiger_give_their_frames(tmp_path: Path, spec: str, each: bool) -> None:
    for number in range(2):
        with h5py.File(tmp_path / f"run_17_data_{number + 1:06d}.h5", "w") as file:
            file["entry/data/data"] = STACK[4 * number : 4 * number + 4]
    with h5py.File(tmp_path / "run_17_master.h5", "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink("run_17_data_000001.h5", "/entry/data/data")
    resource = {"spec": spec, "root": str(tmp_path), "resource_path": "run", "resource_kwargs": {"images_per_file": 4}}
    one = [{"seq_id": 17, "frame_num": k} for k in range(6)]
    events = run(resource, one) if each else run(resource, [{"seq_id": 17}], per=6)
    assert rejected(events) == {}
    np.testing.assert_array_equal(read(events), STACK)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"spec": "AD_TIFF", "resource_kwargs": {"template": "%s%s_%9999999d.tiff", "filename": "a"}}, "malformed"),
        ({"spec": "AD_TIFF", "resource_kwargs": {"template": "%s%s%s_%d.tiff", "filename": "a"}}, "malformed"),
        ({"spec": "AD_TIFF", "resource_kwargs": {"template": "%(a)s%s_%d", "filename": "a"}}, "malformed"),
        ({"spec": "AD_TIFF", "resource_kwargs": {"template": "%s%s_%d.tiff"}}, "malformed"),
        ({"spec": "AD_EIGER", "resource_kwargs": {}}, "malformed"),
        ({"spec": "AD_EIGER", "resource_kwargs": {"images_per_file": 0}}, "malformed"),
        ({"spec": "CSV", "resource_kwargs": {}}, "unknown_spec"),
    ],
)
def test_resources_that_cannot_be_read_are_counted_with_what_to_do(more: dict[str, Any], reason: str) -> None:
    events = run({"root": "/", "resource_path": "x", **more}, [{"point_number": 0}])
    found = [e for e in events if isinstance(e, Rejected)]
    assert found[0].reason == reason
    assert not any(isinstance(p, FileRows) for e in events if isinstance(e, Frames) for p in e.payloads)
    if reason == "unknown_spec":
        assert "'CSV'" in found[0].detail and "write HDF5" in found[0].detail


def test_a_colour_picture_a_damaged_file_and_no_library_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resource = tiffs(tmp_path)
    tifffile.imwrite(tmp_path / "2026" / "scan_000000.tiff", np.zeros((12, 14, 3), "u1"), photometric="rgb")
    (tmp_path / "2026" / "scan_000002.tiff").write_bytes(b"II*\0" + bytes(20))
    (tmp_path / "2026" / "scan_000004.tiff").unlink()
    events = run(resource, [{"point_number": k} for k in range(3)], per=2)

    def unread() -> int:
        reader = Reader(0.0)
        payloads = [p for e in events for found in reader.resolve(e) if isinstance(found, Frames) for p in found.payloads]
        reader.close()
        return sum(isinstance(payload, FileRows) for payload in payloads)

    assert unread() == 3
    assert "and no frame" in caplog.text
    imported = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "tifffile":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert unread() == 6
    assert "ptystream[tiff]" in caplog.text
