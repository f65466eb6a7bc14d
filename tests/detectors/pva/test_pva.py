"""A PV as a source: the codecs of an IOC, damaged updates, and a whole session against a server in this process."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

pytest.importorskip("p4p", reason="PVAccess needs p4p")

from ptystream.codecs import decode
from ptystream.detectors.pva import PvaScan
from ptystream.detectors.pva.simulator import Ioc
from ptystream.events import Frames, Rejected
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load, source_parameters
from ptystream.plan import make_plan
from ptystream.scan.parameters import PtyScanParameters
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message


def where(ioc: Ioc) -> dict[str, Any]:
    return {"addresses": "127.0.0.1", "search_port": int(ioc.conf["EPICS_PVA_BROADCAST_PORT"])}


def source(ioc: Ioc, **given: Any) -> tuple[Any, Any]:
    p = source_parameters(PvaScan, PtyScanParameters)(pv="T:Image", **where(ioc), **given)
    decoder = PvaScan.decoder(p, "s/data")
    return PvaScan.transport(p, "s/data", decoder), decoder


def connected(transport: Any, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while transport._first and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not transport._first


def test_every_codec_comes_back_and_the_old_frame_is_left_out() -> None:
    with Ioc("T:Image") as ioc:
        transport, decoder = source(ioc, first_id=1)
        transport.open()
        connected(transport)
        for number, codec in enumerate(("", "bslz4", "lz4", "zlib")):
            ioc.post(PATTERNS[number], number + 1, codec)
        ioc.post(PATTERNS[5].astype("f4")[:, :30], 6)
        events: list[Any] = []
        while sum(isinstance(e, Frames) for e in events) < 5:
            message = transport.receive(60)
            assert message is not None
            events += decoder.feed(message)
        transport.close()
        transport.close()
    got = {int(e.indices[0]): decode(e.payloads[0]) for e in events if isinstance(e, Frames)}
    for number in range(4):
        np.testing.assert_array_equal(got[number], PATTERNS[number])
    np.testing.assert_array_equal(got[5], PATTERNS[5][:, :30])
    assert [(e.reason, e.count) for e in events if isinstance(e, Rejected)] == [("gap", 1)]
    stamps = [int(e.timestamps_ns[0]) for e in events if isinstance(e, Frames)]
    assert abs(stamps[0] - time.time_ns()) < 600e9


def test_a_queue_that_is_full_loses_what_the_ids_tell() -> None:
    with Ioc("T:Image") as ioc:
        transport, decoder = source(ioc, queue=2, first_id=1)
        updated, came = transport._updated, threading.Event()

        def listening(update: Any) -> None:
            updated(update)
            if update.uniqueId == 6:
                came.set()

        transport._updated = listening
        transport.open()
        connected(transport)
        for number in range(6):
            ioc.post(PATTERNS[number], number + 1)
        assert came.wait(60)
        events: list[Any] = []
        while (message := transport.receive(0.0)) is not None:
            events += decoder.feed(message)
        ioc.post(PATTERNS[7], 8)
        events += decoder.feed(transport.receive(60))
        transport.close()
    lost = sum(e.count for e in events if isinstance(e, Rejected))
    assert lost == 8 - sum(isinstance(e, Frames) for e in events) > 0


BAD = [
    ({"id": -1}, "index_range"),
    ({"id": None}, "index_range"),
    ({"codec": "blosc"}, "unknown_codec"),
    ({"codec": "jpeg"}, "unknown_codec"),
    ({"codec": ["lz4"]}, "unknown_codec"),
    ({"codec": "zlib"}, "undecodable"),
    ({"type": "unknown"}, "wrong_dtype"),
    ({"type": "bool"}, "wrong_dtype"),
    ({"shape": []}, "wrong_shape"),
    ({"shape": [3, 4, 5]}, "wrong_shape"),
    ({"shape": [4, 5]}, "truncated"),
    ({"shape": [32000, 32000]}, "oversized"),
]


@pytest.mark.parametrize(("new", "reason"), BAD)
def test_a_damaged_update_is_rejected_by_name(new: dict[str, Any], reason: str) -> None:
    p = source_parameters(PvaScan, PtyScanParameters)(pv="x")
    decoder = PvaScan.decoder(p, "s/data")
    good = {"id": 1, "codec": "", "type": "uint16", "shape": [3, 2], "size": 12, "stamp_ns": 5}
    (event,) = decoder.feed(Message(1, "s/data", (json.dumps(good | new).encode(), bytes(12))))
    assert isinstance(event, Rejected) and event.reason == reason, event
    (event,) = decoder.feed(Message(1, "s/data", (b"refused", b"no NTNDArray")))
    assert event.reason == "malformed_update"
    for parts in ((), (b"",), (b"[]", b""), (json.dumps(good).encode(),)):
        (event,) = decoder.feed(Message(1, "s/data", parts))
        assert isinstance(event, Rejected)
    assert isinstance(decoder.feed(Message(1, "s/data", (json.dumps(good).encode(), bytes(12))))[-1], Frames)


def test_what_is_no_image_is_told() -> None:
    from p4p.nt import NTScalar
    from p4p.server import Server
    from p4p.server.thread import SharedPV

    pv = SharedPV(nt=NTScalar("d"), initial=1.0)
    with Server(providers=[{"T:Image": pv}], isolate=True) as server:
        given = {"addresses": "127.0.0.1", "search_port": int(server.conf()["EPICS_PVA_BROADCAST_PORT"])}
        p = source_parameters(PvaScan, PtyScanParameters)(pv="T:Image", **given)
        transport = PvaScan.transport(p, "s/data", None)  # type: ignore[arg-type]
        transport.open()
        connected(transport)
        pv.post(2.0)
        (event,) = PvaScan.decoder(p, "s/data").feed(transport.receive(60))  # type: ignore[arg-type]
        transport.close()
    assert event.reason == "malformed_update" and "NTNDArray" in event.detail


def configuration(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    given = {"name": "PvaScan", "shape": BEAM.side, **GEOMETRY, "num_frames": BEAM.frames, "first_id": 1, **data}
    return {
        "run": "t",
        "min_frames_for_recon": BEAM.frames + 1,
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {"s": {"name": "Full", "data": given, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 5}},
    }


def test_a_session_takes_its_frames_from_a_pv(tmp_path: Path) -> None:
    with Ioc("T:Image") as ioc:
        plan = make_plan(load(configuration(tmp_path, {"pv": "T:Image", **where(ioc), "positions_theory": PLACES.tolist()})))
        running = Session(plan, metrics=Metrics())
        thread = threading.Thread(target=running.run)
        thread.start()
        connected(plan.channels[0].transport, 60)
        for number, pattern in enumerate(PATTERNS):
            ioc.post(pattern, number + 1, "bslz4")
            time.sleep(0.005)
        thread.join(60)
        assert not thread.is_alive()
    assert ptyr.read(running.results[0]).ledger["used"] == BEAM.frames


def test_what_cannot_be_is_told_before_anything_runs(tmp_path: Path) -> None:
    for data, text in (({"pv": ""}, r"scans\.s\.data\.pv.*name of a PV"), ({"pv": "x", "queue": 0}, "queue")):
        with pytest.raises(ConfigurationError, match=text):
            load(configuration(tmp_path, data))
