"""Parameters that change while a session runs: looked up, refused, in force at once and in the runs to come, and repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import Memory, messages
from steered import Steered, after, configuration

from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.metrics import Metrics
from ptystream.plan import make_plan
from ptystream.recording import Recorder, Recording
from ptystream.run import Run
from ptystream.session import Session
from ptystream.steering.actions import Actions
from ptystream.steering.desk import Refused
from ptystream.steering.tree import Tree
from ptystream.steering.wire import Reply, Request, decode_reply, encode_reply
from ptystream.storage import ptyr
from ptystream.verify import verify


def steered(result: ptyr.Result) -> list[Any]:
    return [entry for entry in result.schedule if entry["do"] == "steer"]


def test_a_change_is_in_force_between_two_passes_and_the_result_repeats_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = ptyr.read(Steered(tmp_path / "plain", after(99)).results[0])
    made = Steered(tmp_path, after(4), ("set", {"path": "engines.e.alpha", "value": 0.7}))
    told = {"path": "engines.e.alpha", "before": 1.0, "value": 0.7, "happens": "in force before the next pass"}
    assert made.replies[0].value == told
    result = ptyr.read(made.results[0])
    (entry,) = steered(result)
    assert (entry["path"], entry["value"], entry["before"], entry["who"]) == ("engines.e.alpha", 0.7, 1.0, "anna")
    at = result.schedule.index(entry)
    assert sum(e["iterations"] * e.get("times", 1) for e in result.schedule[:at] if e["do"] == "iterate") == 4
    assert not np.array_equal(result.object["SsG00"].data, plain.object["SsG00"].data)
    report = verify(result, Recording(tmp_path / "t.ptyrec"), offline=False)
    assert report.same_bits


@pytest.mark.parametrize("numiter", [5, 30])
def test_numiter_counts_from_the_same_beginning(tmp_path: Path, numiter: int) -> None:
    made = Steered(tmp_path, after(8), ("set", {"path": "engines.e.numiter", "value": numiter}))
    assert ptyr.read(made.results[0]).iter_info[-1]["iteration"] == max(numiter, 9)


def test_runs_to_come_have_it_from_their_beginning(tmp_path: Path) -> None:
    asked = ("set", {"path": "engines.e.numiter", "value": 3})
    made = Steered(tmp_path, lambda session: session.finished == 1, asked, live={"runs": 2, "overlap": 1})
    first, second = (ptyr.read(path) for path in made.results)
    assert (first.iter_info[-1]["iteration"], second.iter_info[-1]["iteration"]) == (12, 3)
    assert not steered(first) and second.schedule.index(steered(second)[0]) < len(second.schedule)


def test_what_the_session_heeds_changes_too(tmp_path: Path) -> None:
    told = {"io.publish.interval_s": 2, "io.publish.share": 0.25}
    asked = [("set", {"path": path, "value": value}) for path, value in ({"live.latency": 0.5} | told).items()]
    made = Steered(tmp_path, after(3), *asked, ("get", {"path": "live.latency"}), ("get", {"path": "io.publish"}))
    assert made.session.plan.loop.latency_s == 0.5 and made.session._teller.interval_s == 2.0
    assert made.session._teller.share == 0.25
    assert made.replies[3].value == 0.5
    assert (made.replies[4].value["interval_s"], made.replies[4].value["share"]) == (2.0, 0.25)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("engines.e.alpha", -1.0, "engines.e.alpha: -1.0: should be greater than or equal to 0"),
        ("engines.e.alpha", "much", "should be a valid number"),
        ("engines.e.alfa", 1.0, "is no parameter: alfa: did you mean 'alpha'?"),
        ("engines.e.fourier_power_bound", 0.5, "may not change while the session runs"),
        ("scans.s.data.psize", 1e-6, "may not change while the session runs"),
        ("io.home", "/", "may not change while the session runs"),
        ("engines.e.alpha.__class__", 1, "is no parameter"),
        ("__class__", 1, "is no parameter"),
    ],
)
def test_what_may_not_be_is_refused_and_changes_nothing(tmp_path: Path, path: str, value: Any, why: str) -> None:
    made = Steered(tmp_path, after(2), ("set", {"path": path, "value": value}))
    assert why in made.refused()
    result = ptyr.read(made.results[0])
    assert not steered(result) and result.iter_info[-1]["iteration"] == 12


def test_the_offline_run_is_steered_too(tmp_path: Path) -> None:
    asked = ("set", {"path": "engines.e.numiter", "value": 4})
    made = Steered(tmp_path, after(2), asked, engines={"e": {"name": "DM", "numiter": 40}})
    report = verify(ptyr.read(made.results[0]), Recording(tmp_path / "t.ptyrec"))
    assert report.offline is not None and report.offline < 1e-5  # all frames were there from the beginning: the same 4 iterations


def test_a_change_that_an_engine_cannot_take_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: DM, parameters: Any) -> None:
        raise ArithmeticError("cannot")

    monkeypatch.setattr(DM, "configure", fail, raising=False)
    made = Steered(tmp_path, after(2), ("set", {"path": "engines.e.alpha", "value": 0.5}), ("get", {"path": "engines.e.alpha"}))
    assert "cannot" in str(made.replies[0].fault) and made.replies[1].value == 1.0
    result = ptyr.read(made.results[0])
    assert not steered(result) and result.iter_info[-1]["iteration"] == 12


def test_a_change_of_an_engine_that_is_no_longer_there_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run("t", [], [], Context())
    run.apply({"do": "steer", "path": "engines.gone.alpha", "value": 0.5, "before": 1.0, "who": "", "time_ns": 0})
    assert "there is no such engine any more" in caplog.text


def test_restart_takes_the_starting_probe_again_and_repeats(tmp_path: Path) -> None:
    made = Steered(tmp_path, after(4), ("restart", {}))
    assert made.replies == [Reply(0)]
    result = ptyr.read(made.results[0])
    assert [entry["do"] for entry in result.schedule].count("restart") == 1
    assert verify(result, Recording(tmp_path / "t.ptyrec"), offline=False).same_bits


def test_restart_without_an_engine_is_refused(tmp_path: Path) -> None:
    frames, places = messages()
    sources = {"s/data": Memory("s/data", frames), "s/positions": Memory("s/positions", places)}
    idle = Session(make_plan(configuration(tmp_path), transports=sources), metrics=Metrics())
    with pytest.raises(Refused, match="no engine is at work"):
        Actions(idle).restart()


def test_every_steerable_parameter_of_every_engine_can_be_looked_up_and_set(tmp_path: Path) -> None:
    names = ["DM", "RAAR", "EPIE", "SDR", "ML"]
    engines = {f"e{k}": {"name": name} for k, name in enumerate(names)}
    tree = Tree(configuration(tmp_path, engines=engines))
    found = tree.steerable()
    assert {"live.latency", "io.publish.interval_s", *(f"engines.e{k}.numiter" for k in range(5))} <= set(found)
    for path, value in found.items():
        assert tree.get(path) == value
        assert tree.set(path, value).before == value
    with pytest.raises(Refused, match="is no parameter"):
        tree.get("engines.e9")
    assert tree.get()["run"] == "t"
    described = {entry["path"]: entry for entry in tree.described()}
    assert {path: entry["value"] for path, entry in described.items()} == found
    beta = described["engines.e1.beta"]
    assert (beta["types"], beta["lower"], beta["choices"]) == (["float"], 0.0, None) and beta["doc"]


def test_a_session_that_was_killed_goes_on_as_it_was_steered(tmp_path: Path) -> None:
    """After the last dump, or where there was none."""
    asked = [("set", {"path": "engines.e.numiter", "value": 3}), ("set", {"path": "live.latency", "value": 100.0})]
    Steered(tmp_path, after(99))
    plan = make_plan(
        configuration(tmp_path), transports={"s/data": Memory("s/data", []), "s/positions": Memory("s/positions", [])}
    )
    killed, kept = Session(plan, metrics=Metrics(), tap=(tap := Recorder(tmp_path / "k.ptyrec", {}))), []
    for name, arguments in asked:
        killed.desk.ask(Request(1, name, arguments), kept.append, who="anna")
    killed.desk.serve()
    for message in Recording(tmp_path / "t.ptyrec"):
        if message.channel.startswith("s/"):
            tap.write(message)
    tap.close()

    none = {"s/data": Memory("s/data", []), "s/positions": Memory("s/positions", [])}
    again = Session(
        make_plan(configuration(tmp_path), transports=none), metrics=Metrics(), recorded=Recording(tmp_path / "k.ptyrec")
    )
    (path,) = again.run()
    result = ptyr.read(path)
    assert result.iter_info[-1]["iteration"] == 3 and len(steered(result)) == 2
    assert again.plan.loop.latency_s == 100.0
    assert Actions(again).get("engines.e.numiter") == 3
    assert verify(result, Recording(tmp_path / "k.ptyrec"), offline=False).same_bits


def test_everything_that_is_in_force_can_be_sent(tmp_path: Path) -> None:
    """A complex fill of the object too, which no form on the wire is for."""
    sample = {"model": None, "fill": 0.5 + 0.25j}
    data = configuration(tmp_path).given["scans"]["s"]["data"]
    scans = {"s": {"name": "Full", "data": data, "illumination": {"aperture": {"size": 4e-7}}, "sample": sample}}
    (reply,) = Steered(tmp_path, after(2), ("get", {}), scans=scans).replies
    value = decode_reply(encode_reply(reply)).value
    assert value["scans"]["s"]["sample"]["fill"] == "(0.5+0.25j)" and value["engines"]["e"]["name"] == "DM"
