"""`ptystream check`: what each source finds out before a scan, and what it says is to be done."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ports import beside
from problems import BEAM, GEOMETRY

from ptystream.cli.check import check
from ptystream.detectors.hdf5.simulator import FRAMES, write
from ptystream.detectors.panda.simulator import PandaServer, readings, stream
from ptystream.detectors.zmq.plain import PlainSender

Said = pytest.CaptureFixture[str]


def checked(folder: Path, said: Said, data: dict[str, Any], listen: float = 0.0) -> tuple[int, str]:
    file = folder / "c.json"
    given = {"shape": BEAM.side, **GEOMETRY, **data}
    file.write_text(json.dumps({"scans": {"s": {"name": "Full", "data": given}}, "engines": {"e": {"name": "DM"}}}))
    return check(str(file), listen), said.readouterr().out


def of_file(path: Path, **more: Any) -> dict[str, Any]:
    return {"name": "Hdf5Scan", "file": str(path), "frames": FRAMES, "samples": {"y": "/entry/stage/y"}, **more}


# ------------------------------------------------------------------ HDF5


def test_of_a_file_every_place_is_said_with_its_shape(tmp_path: Path, capsys: Said) -> None:
    write(tmp_path / "a.h5", BEAM, wait=lambda s: False)
    places = {"energy_from": "/entry/beam/energy", "mask_from": "/entry/detector/mask", "expected": "/entry/detector/number"}
    places |= {"finished": "/entry@finished", "psize_from": ["/entry/detector/pixel_size in m"] * 2, "times": "/entry/stage/x"}
    status, said = checked(tmp_path, capsys, of_file(tmp_path / "a.h5", **places))
    assert status == 0, said
    for text in (
        "a.h5: can be read, closed",
        f"frames: {FRAMES}: {BEAM.frames}×32×32 of uint16, {BEAM.frames} frames now, handed on as bslz4",
        f"samples.y: /entry/stage/y: room for {BEAM.frames} numbers",
        f"energy_from: /entry/beam/energy: {GEOMETRY['energy']:.6g}",
        "mask_from: /entry/detector/mask: 32×32, 0 pixels are left out",
        f"expected: /entry/detector/number: {BEAM.frames}",
        "finished: /entry@finished: not set yet",
        f"{GEOMETRY['psize']:.6g}, {GEOMETRY['psize']:.6g}",
        f"times: /entry/stage/x: room for {BEAM.frames} numbers",
    ):
        assert text in said, said


def test_of_a_file_what_is_wrong_is_said_with_its_parameter(tmp_path: Path, capsys: Said) -> None:
    write(tmp_path / "a.h5", BEAM, wait=lambda s: False)
    positions = {"name": "Hdf5Scan", "file": str(tmp_path / "a.h5"), "samples": {"y": "/entry/stagge/y", "x": "/entry/stage/x"}}
    more = {"samples": {}, "positions": positions, "times": "/entry/when", "energy_from": "/entry/beam/e"}
    status, said = checked(tmp_path, capsys, of_file(tmp_path / "a.h5", **more))
    assert status == 1
    assert "scans.s.data.positions: samples.y: " in said and "no 'stagge'" in said and "correct `samples`" in said
    assert "scans.s.data: times: " in said and "no 'when'" in said and "correct `times`" in said
    assert "energy_from: /entry/beam/e: nothing yet" in said and "samples.x: /entry/stage/x: room for" in said


def test_of_a_file_that_is_not_there_or_none_at_all(tmp_path: Path, capsys: Said) -> None:
    status, said = checked(tmp_path, capsys, of_file(tmp_path / "later.h5"))
    assert status == 0 and "later.h5: is not there yet; will be read when it appears" in said
    status, said = checked(tmp_path, capsys, of_file(tmp_path / "no" / "a.h5"))
    assert status == 1 and f"there is no folder {tmp_path / 'no'}; make it" in said
    (tmp_path / "bad.h5").write_bytes(b"no HDF5" * 100)
    status, said = checked(tmp_path, capsys, of_file(tmp_path / "bad.h5"))
    assert status == 1 and "bad.h5" in said and "is it an HDF5 file" in said
    status, said = checked(tmp_path, capsys, of_file(tmp_path / "b*.h5"))
    assert status == 0 and "1 match now; the next scan is each that appears" in said


def test_of_a_master_file_the_sources_that_are_missing_are_named(tmp_path: Path, capsys: Said) -> None:
    with h5py.File(tmp_path / "m.h5", "w", libver="v110") as f:
        layout = h5py.VirtualLayout((4, 32, 32), "u2")
        layout[:] = h5py.VirtualSource("part.h5", "d", (4, 32, 32))
        f.create_virtual_dataset("v", layout)
    status, said = checked(tmp_path, capsys, of_file(tmp_path / "m.h5", frames="/v", samples={}))
    assert status == 0 and "m.h5: can be read, may still grow" in said and "4×32×32 of uint16, 0 frames now" in said
    assert "part.h5: a source of a virtual dataset is not there yet" in said


# ------------------------------------------------------------------ PandA


def of_panda(port: int) -> dict[str, Any]:
    positions = {"name": "PandaScan", "port": port, "channels": {"y": "INENC1.VAL.Value", "x": "INENC2.VAL.Value"}}
    return {"name": "MoonFlowerScan", "num_frames": 10, "positions": positions}


def test_of_a_data_port_its_answer_and_what_it_captures(tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.detectors.panda.source.ANSWER_S", 60.0)
    table = readings(BEAM)
    server = PandaServer([(list(stream(table)), list(stream(table, scaled=False)))] * 2)
    server.start()
    try:
        status, said = checked(tmp_path, capsys, of_panda(server.port), listen=60.0)
        assert status == 0, said
        assert f"scans.s.data.positions: 127.0.0.1:{server.port}: answers\n" in said
        assert "captures INENC1.VAL.Value um, INENC2.VAL.Value um" in said
    finally:
        server.stop()


def test_of_a_data_port_that_is_silent_closed_or_another(tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.detectors.panda.source.ANSWER_S", 60.0)
    server = PandaServer([])
    server.start()
    try:
        status, said = checked(tmp_path, capsys, of_panda(server.port))
        assert status == 0 and "answers\n" in said and "captured" not in said
    finally:
        server.stop()
    status, said = checked(tmp_path, capsys, of_panda(server.port))
    assert status == 1 and "switch the box on, or correct `host` and `port`" in said
    monkeypatch.setattr("ptystream.detectors.panda.source.ANSWER_S", 0.5)
    with PlainSender() as other:
        status, said = checked(tmp_path, capsys, of_panda(int(other.address.rpartition(":")[2])))
        assert status == 1 and "no data port of a PandABox; correct `port`" in said


def test_of_a_data_port_that_is_not_armed(tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.detectors.panda.source.ANSWER_S", 60.0)
    server = PandaServer([])
    server.start()
    try:
        status, said = checked(tmp_path, capsys, of_panda(server.port), listen=0.2)
        assert status == 0 and "nothing was captured within 0.2 s; is PCAP armed?" in said
    finally:
        server.stop()


# ------------------------------------------------------------------ ports and PVs


def test_every_port_of_a_detector_is_tried(tmp_path: Path, capsys: Said) -> None:
    def held(port: int) -> socket.socket:
        taken = socket.socket()
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            taken.close()
            raise
        return taken

    with ExitStack() as stack:
        first, taken = beside(stack, lambda: PlainSender("pub"), held)  # nobody listens there
        port = int(first.address.rpartition(":")[2])
        data = {"name": "SlsScan", "address": first.address, "ports": 2}
        status, said = checked(tmp_path, capsys, data)
        taken.close()
        assert status == 1
        assert f"{first.address}: answers" in said and f":{port + 1}: " in said and "start the sender" in said
        with PlainSender("pub", f"tcp://127.0.0.1:{port + 1}"):
            status, said = checked(tmp_path, capsys, data)
        assert status == 0 and said.count("answers") == 2
    status, said = checked(tmp_path, capsys, data | {"bind": True})
    assert status == 0 and said.count("will listen") == 2


def test_a_pv_is_searched_for(tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("p4p", reason="PVAccess needs p4p")
    from ptystream.detectors.pva.simulator import Ioc

    monkeypatch.setattr("ptystream.detectors.pva.source.ANSWER_S", 60.0)
    with Ioc("T:Image") as ioc:
        ioc.post(np.zeros((5, 7), "u2"), 1, "bslz4")
        where = {"addresses": "127.0.0.1", "search_port": int(ioc.conf["EPICS_PVA_BROADCAST_PORT"])}
        data = {"name": "PvaScan", "pv": "T:Image", **where}
        status, said = checked(tmp_path, capsys, data)
        assert status == 0 and "pv: T:Image: is there; holds 5×7 of uint16, codec bslz4" in said, said
        monkeypatch.setattr("ptystream.detectors.pva.source.ANSWER_S", 0.5)
        status, said = checked(tmp_path, capsys, data | {"pv": "T:Other"})
        assert status == 1 and "pv: T:Other: is not found within 0.5 s; start its IOC" in said, said
