"""Engines that are put behind others, or switched to, while a run is under way; and what a session that was killed does again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from memory import Memory, messages
from steered import Steered, after, configuration

from ptystream.metrics import Metrics
from ptystream.plan import make_plan
from ptystream.recording import Recorder, Recording
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message
from ptystream.verify import verify, worked

CHANNELS = ("s/data", "s/positions")


def engines(result: ptyr.Result) -> list[tuple[str, int]]:
    """(name, iterations) of each that worked, in order."""
    found: dict[str, int] = {}
    name = ""
    for entry in result.schedule:
        if entry["do"] == "engine":
            name = f"{entry['label']} {entry['name']}"
        elif entry["do"] == "iterate":
            found[name] = found.get(name, 0) + entry["iterations"] * entry.get("times", 1)
    return list(found.items())


def repeats(folder: Path, result: ptyr.Result) -> bool:
    return verify(result, Recording(folder / "t.ptyrec"), offline=False).same_bits


def test_an_engine_is_appended_and_the_result_repeats(tmp_path: Path) -> None:
    made = Steered(tmp_path, after(4), ("append", {"engine": "ML", "parameters": {"numiter": 5, "ML_type": "gaussian"}}))
    assert made.replies[0].value == "added00"
    result = ptyr.read(made.results[-1])
    assert engines(result) == [("e DM", 12), ("added00 ML", 5)]
    (entry,) = (e for e in result.schedule if e["do"] == "append")
    assert entry["who"] == "anna" and entry["parameters"]["numiter"] == 5
    assert repeats(tmp_path, result)


def test_the_offline_run_has_it_too(tmp_path: Path) -> None:
    made = Steered(tmp_path, after(4), ("append", {"engine": "ML", "parameters": {"numiter": 5}}))
    report = verify(ptyr.read(made.results[-1]), Recording(tmp_path / "t.ptyrec"))
    assert report.same_bits and report.offline is not None and report.offline < 1e-5


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, [("e DM", 4), ("f RAAR", 6)]),
        ({"engine": "ML", "parameters": {"numiter": 3}}, [("e DM", 4), ("added00 ML", 3), ("f RAAR", 6)]),
        ({"engine": "template", "parameters": {"name": "ML"}}, [("e DM", 4), ("added00 ML", 2), ("f RAAR", 6)]),
        ({"engine": "f"}, [("e DM", 4), ("f RAAR", 6)]),
    ],
)
def test_switching_ends_the_engine_at_work(tmp_path: Path, asked: dict[str, Any], wanted: list[tuple[str, int]]) -> None:
    both = {"e": {"name": "DM", "numiter": 12}, "f": {"name": "RAAR", "numiter": 6}, "template": {"numiter": 2}}
    made = Steered(tmp_path, after(4), ("switch", asked), engines=both)
    result = ptyr.read(made.results[-1])
    assert engines(result) == wanted
    (finish,) = (e for e in result.schedule if e["do"] == "finish" and "who" in e)
    assert finish["who"] == "anna" and made.replies[0].value == wanted[1][0].split()[0]
    assert repeats(tmp_path, result)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("append", {"engine": "MLL"}), "append.name: MLL: not an engine of this version; did you mean 'ML'?"),
        (
            ("append", {"engine": "ML", "parameters": {"numitr": 5}}),
            "append.numitr: 5: unknown parameter; did you mean",
        ),
        (("append", {"engine": "ML", "parameters": {"numiter": 0}}), "append.numiter: 0: should be greater than or equal to 1"),
        (("append", {"engine": "DMOPR"}), "append.name: DMOPR: needs a scan with `name: OPRModel`"),
        (("append", {"engine": "DM_3dBragg"}), "append.name: DM_3dBragg: works on rocking curves"),
        (("append", {"engine": "template"}), "append.parameters.name: engines.template is a template without one"),
        (("switch", {}), "switch: no engine follows e: name one, or `end` the scan"),
        (("switch", {"engine": "e"}), "switch: e: is at work"),
        (("append", {}), "append.engine: "),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path, asked: Any, why: str) -> None:
    made = Steered(tmp_path, after(4), asked, engines={"e": {"name": "DM", "numiter": 12}, "template": {"numiter": 2}})
    assert why in made.refused()
    result = ptyr.read(made.results[-1])
    assert engines(result) == [("e DM", 12)] and not any(entry["do"] == "append" for entry in result.schedule)


def test_nothing_is_switched_when_the_run_is_over(tmp_path: Path) -> None:
    made = Steered(tmp_path, lambda session: session.finished == 1, ("switch", {}), ("append", {"engine": "ML"}))
    assert made.replies == []  # the session is over too
    with pytest.raises(Exception, match="no run is under way"):
        made.session.desk.actions["append"].do("ML")


def again(folder: Path, keep: Any, **root: Any) -> ptyr.Result:
    """What a session makes of the recording in `folder` that another one left when it was killed: `keep` of its messages."""
    with_notes = Recorder(folder / "k.ptyrec", {})
    messages = list(Recording(folder / "t.ptyrec"))
    for message in keep(messages):
        with_notes.write(message)
    with_notes.close()
    none = {"s/data": Memory("s/data", []), "s/positions": Memory("s/positions", [])}
    plan = make_plan(configuration(folder, **root), transports=none)
    paths = Session(plan, metrics=Metrics(), recorded=Recording(folder / "k.ptyrec")).run()
    return ptyr.read(paths[-1])


def unfinished(messages: list[Any]) -> list[Any]:
    """Without the note that the run has a result."""
    return [m for m in messages if m.channel != "session" or b'"asked"' in bytes(m.parts[0])]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (("append", {"engine": "ML", "parameters": {"numiter": 3}}), [("e DM", 12), ("added00 ML", 3)]),
        (("switch", {"engine": "ML", "parameters": {"numiter": 3}}), [("e DM", 4), ("added00 ML", 3)]),
    ],
)
def test_a_session_that_was_killed_does_it_again(tmp_path: Path, asked: Any, wanted: list[tuple[str, int]]) -> None:
    Steered(tmp_path, after(4), asked)
    result = again(tmp_path, unfinished)
    assert engines(result) == wanted
    assert verify(result, Recording(tmp_path / "k.ptyrec"), offline=False).same_bits


def test_a_session_that_was_killed_restarts_again(tmp_path: Path) -> None:
    Steered(tmp_path, after(4), ("restart", {}))
    result = again(tmp_path, unfinished)
    at = [entry["do"] for entry in result.schedule].index("restart")
    assert sum(e["iterations"] * e.get("times", 1) for e in result.schedule[:at] if e["do"] == "iterate") == 4


def test_a_scan_that_was_ended_ends_there_again(tmp_path: Path) -> None:
    """Between the same two messages, although more of it is in the recording."""
    Steered(tmp_path, after(99))
    entry = {"do": "end", "reason": "sample fell off", "who": "anna", "time_ns": 1}
    told = {"asked": entry, "acquisitions": [["s", "a", 0]], "iterations": 3, "engine": "e"}
    note = Message(1, "session", (json.dumps(told).encode(),))

    def half(messages: list[Any]) -> list[Any]:
        places, frames = ([m for m in messages if m.channel == f"s/{name}"] for name in ("positions", "data"))
        return [*places, *frames[:60], note, *frames[60:]]

    result = again(tmp_path, half, min_frames_for_recon=16)
    assert result.ledger["used"] == 59 and result.ledger["late"] > 0
    assert result.scans["s"]["ended"] == "sample fell off"


def test_the_end_of_a_scan_is_noted(tmp_path: Path) -> None:
    plan = make_plan(configuration(tmp_path), transports={n: Memory(n, messages()[k]) for k, n in enumerate(CHANNELS)})
    session = Session(plan, metrics=Metrics(), tap=(tap := Recorder(tmp_path / "n.ptyrec", {})))
    session._sources[0].deliver(next(iter([session._sources[0].transport.receive(0.0)])))  # type: ignore[arg-type]
    (pending,) = session._router.pending
    session.end_scan(pending.run, "sample fell off", "anna")
    tap.close()
    (note,) = (json.loads(bytes(m.parts[0])) for m in Recording(tmp_path / "n.ptyrec") if m.channel == "session")
    assert note["asked"]["reason"] == "sample fell off" and note["acquisitions"] == [["s", "a", 0]]


def test_the_offline_run_has_the_engines_behind_a_new_beginning(tmp_path: Path) -> None:
    """The picture is of those alone."""
    engines = {"e": {"name": "DM", "numiter": 6}, "f": {"name": "ML", "numiter": 4}}
    made = Steered(tmp_path, after(8), ("restart", {"anew": True}), engines=engines)
    result = ptyr.read(made.results[-1])
    done = [(entry["do"], entry.get("label")) for entry in result.schedule if entry["do"] in ("engine", "restart")]
    assert done == [("engine", "e"), ("engine", "f"), ("restart", None), ("engine", "f")]
    assert worked(result, "e") == ["e", "f"]
    report = verify(result, Recording(tmp_path / "t.ptyrec"))
    assert report.same_bits and report.offline is not None and report.offline < 1e-5


@pytest.mark.parametrize("killed", [False, True])
def test_an_engine_that_was_appended_is_steered_by_its_path(tmp_path: Path, killed: bool) -> None:
    """In this run alone; and again by a session that goes on."""
    asked = [
        ("append", {"engine": "ML", "parameters": {"numiter": 5}}),
        ("get", {"path": "engines.added00.numiter"}),
        ("set", {"path": "engines.added00.numiter", "value": 3}),
        ("set", {"path": "engines.added00.numiter", "value": 0}),
        ("get", {"path": "engines.added00.numiter"}),
        ("steerable", {}),
    ]
    made = Steered(tmp_path, after(4), *asked)
    assert made.replies[1].value == 5 and made.replies[2].value["before"] == 5
    assert made.replies[2].value["happens"] == "in force before the next pass, in t alone: its engine was put there on request"
    assert "should be greater than or equal to 1" in str(made.replies[3].fault)
    assert made.replies[4].value == 3 and made.replies[5].value["engines.added00.numiter"] == 3
    result = again(tmp_path, unfinished) if killed else ptyr.read(made.results[-1])
    assert engines(result) == [("e DM", 12), ("added00 ML", 3)]
    (entry,) = (e for e in result.schedule if e["do"] == "steer")
    assert (entry["path"], entry["before"], entry["value"]) == ("engines.added00.numiter", 5, 3)
    file = "k.ptyrec" if killed else "t.ptyrec"
    assert verify(result, Recording(tmp_path / file), offline=False).same_bits
    assert made.session.appended() == []


def test_one_that_is_at_work_is_steered_too(tmp_path: Path) -> None:
    """And one that the next run does not have is none there."""
    switched = Steered(tmp_path, after(4), ("switch", {"engine": "ML", "parameters": {"numiter": 50}}), live={"runs": 2})
    assert engines(ptyr.read(switched.results[0])) == [("e DM", 4), ("added00 ML", 50)]
    asked = ("switch", {"engine": "ML", "parameters": {"numiter": 50}}), ("set", {"path": "engines.added00.numiter", "value": 6})
    (tmp_path / "b").mkdir()
    made = Steered(tmp_path / "b", after(4), *asked, live={"runs": 2, "overlap": 1})
    assert [reply.fault for reply in made.replies] == [None, None]
    first, second = (ptyr.read(path) for path in made.results)
    assert engines(first) == [("e DM", 4), ("added00 ML", 6)] and engines(second) == [("e DM", 12)]
    assert not any(entry["do"] == "steer" for entry in second.schedule)
