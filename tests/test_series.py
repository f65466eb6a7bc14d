"""A scan as one of a series: its name and angle in the names of files, in snapshots and in results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import Memory
from problems import BEAM, GEOMETRY, PATTERNS, PLACES

from ptystream.detectors.zmq.protocol import frames_parts, header, samples_parts
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.params.patterns import fill
from ptystream.plan import make_plan
from ptystream.publish import schema
from ptystream.scan.series import Series, SeriesParameters, series_of
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.viewers.figure import seen_in

ZMQ = {"name": "ZmqScan"}


def acquisition(meta: dict[str, Any], angle: float | None) -> dict[str, list[list[bytes]]]:
    frames, places = [[header("start", scan="a", meta=meta)]], [[header("start", scan="a", meta={})]]
    for k, pattern in enumerate(PATTERNS):
        frames.append(frames_parts("a", k, [pattern.tobytes()], 1, pattern.shape, pattern.dtype, "raw"))
        told = {"y": PLACES[k, :1], "x": PLACES[k, 1:]} | ({} if angle is None else {"rot": np.array([angle + 1e-3 * (k % 3)])})
        places.append(samples_parts("a", k, told, None))
    for messages in (frames, places):
        messages.append([header("end", scan="a", count=BEAM.frames, reason="completed")])
    return {"data": frames, "positions": places}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("series", "meta", "angle", "known"),
    [
        ({"id": "tomo 7", "angle": 12.5}, {}, None, Series("tomo 7", 12.5)),
        ({"id_key": "run.tomo", "angle_key": "theta"}, {"run": {"tomo": 31}, "theta": -3}, None, Series("31", -3.0)),
        ({"id_key": "tomo"}, {"tomo": "../up"}, 45.0, Series("../up", 45.001)),
    ],
)
def test_series_and_angle_are_in_names_snapshots_and_results(
    tmp_path: Path, series: dict[str, Any], meta: dict[str, Any], angle: float | None, known: Series
) -> None:
    positions = {**ZMQ, "channels": {"angle": None if angle is None else "rot"}}
    data = {**ZMQ, "shape": BEAM.side, **GEOMETRY, "positions": positions, "series": series}
    names = {
        "rfile": "%(series)s/%(run)s_%(angle)07.3f.ptyr",
        "autosave": {"interval": 2, "rfile": "%(series)s_%(iterations)d.dump"},
    }
    given = {
        "run": "t",
        "threads": 1,
        "min_frames_for_recon": BEAM.frames,
        "io": {"home": str(tmp_path), **names, "recording": {"active": False}},
        "scans": {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}}},
        "engines": {"e": {"name": "DM", "numiter": 4}},
    }
    transports = {f"s/{kind}": Memory(f"s/{kind}", messages) for kind, messages in acquisition(meta, angle).items()}
    told: list[Any] = []

    class Seen:
        viewers = 0

        def offer(self, snapshot: Any) -> None:
            told.append(schema.decode(schema.encode(snapshot)))

    plan = make_plan(load(given), transports=transports)
    (path,) = Session(plan, metrics=Metrics(), publisher=Seen()).run()  # type: ignore[arg-type]
    safe = {"tomo 7": "tomo_7", "31": "31", "../up": "___up"}[str(known.id)]
    assert path == tmp_path / safe / f"t_{known.angle:07.3f}.ptyr"
    assert list(tmp_path.glob(f"{safe}_*.dump"))
    assert (told[-1].series, told[-1].angle) == (known.id, pytest.approx(known.angle))
    result = ptyr.read(path)
    assert result.scans["s"]["series"] == known.id
    assert result.scans["s"]["angle"] == pytest.approx(known.angle)
    assert (seen_in(result).series, seen_in(result).angle) == (known.id, pytest.approx(known.angle))


@pytest.mark.parametrize(
    "strange", [None, True, {}, [], "", "x" * 10_000, float("nan"), "12", b"\xff", 10**400], ids=lambda s: str(s)[:9]
)
def test_whatever_the_metadata_hold_there_is_a_name_or_none(strange: Any) -> None:
    found = series_of(SeriesParameters(id_key="a.b", angle_key="c"), [{"a": {"b": strange}, "c": strange}, {"a": 1}])
    assert found.id is None or 0 < len(found.id) <= 200
    assert found.angle is None or np.isfinite(found.angle)
    made = fill("%(series)s/%(angle)g", "r", found.keys())
    assert made.count("/") == 1
    assert "." not in made.partition("/")[0]


def test_the_first_source_that_has_the_key_counts_and_a_key_may_contain_a_dot() -> None:
    p = SeriesParameters(id_key="a.b")
    assert series_of(p, [{}, {"a.b": "x", "a": {"b": "y"}}, {"a": {"b": "z"}}]).id == "x"
    assert series_of(SeriesParameters(), [{"a": 1}], 3.0) == Series(None, 3.0)
    assert fill("%(series)s %(angle).1f", "r") == "None 0.0"


def test_a_name_and_a_key_for_it_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="leave one of them out"):
        SeriesParameters(angle=1.0, angle_key="theta")
