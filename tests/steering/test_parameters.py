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


def guaranteed(result: ptyr.Result) -> int:
    """Iterations after the last that the scan brought: one more may have been made before it was known that the scan is over."""
    last = max(k for k, entry in enumerate(result.schedule) if entry["do"] in ("take", "end"))
    return sum(e["iterations"] * e.get("times", 1) for e in result.schedule[last:] if e["do"] == "iterate")


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
    assert (guaranteed(first), guaranteed(second)) == (12, 3)
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
    assert not steered(result) and guaranteed(result) == 12


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
    assert not steered(result) and guaranteed(result) == 12


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


@pytest.mark.parametrize("refuses", [0, 1])
def test_one_of_two_runs_that_cannot_take_a_change_leaves_both_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: int
) -> None:
    configure, made_of, names = DM.configure, list[Any](), list[str]()

    def fail(self: DM, parameters: Any) -> None:
        configure(self, parameters)
        if self is made_of[refuses] and parameters.alpha == 0.5:
            raise ArithmeticError("cannot")

    def two(session: Session) -> bool:
        runs = [turn.run for turn in session._turns if turn.run.engine is not None]
        made_of[:], names[:] = [run.engine for run in runs], [run.name for run in runs]
        return len(made_of) == 2

    monkeypatch.setattr(DM, "configure", fail)
    asked = [("set", {"path": "engines.e.alpha", "value": 0.5}), ("get", {"path": "engines.e.alpha"})]
    made = Steered(tmp_path, two, *asked, live={"runs": 3, "overlap": 2})
    assert f"engines.e.alpha: 0.5: {names[refuses]} cannot take it: cannot" in str(made.replies[0].fault)
    assert made.replies[1].value == 1.0
    recording = Recording(tmp_path / "t.ptyrec")
    for path in made.results:
        result = ptyr.read(path)
        assert [entry["value"] for entry in steered(result)] in ([], [0.5, 1.0], [1.0])
        assert verify(result, recording, offline=False).same_bits
    assert made_of and all(engine.p.alpha == 1.0 for engine in made_of) and len(made.results) == 3


@pytest.mark.parametrize(
    ("path", "value", "most"),
    [
        ("engines.e.numiter", 10**12, "1e+06"),
        ("engines.e.numiter_contiguous", 10**12, "100"),
        ("engines.e.alpha", 1e12, "10"),
        ("io.publish.interval_s", 1e12, None),
        ("live.latency", 1e12, None),
    ],
)
def test_a_mistyped_number_holds_nothing_up(tmp_path: Path, path: str, value: Any, most: str | None) -> None:
    asked = [("set", {"path": path, "value": value}), ("get", {"path": path}), ("steerable", {"described": True})]
    made = Steered(tmp_path, after(2), *asked)
    why = f"may be {most} at most while the session runs" if most else "should be less than or equal to 3600"
    assert why in str(made.replies[0].fault) and made.replies[1].value != value
    (told,) = (entry for entry in made.replies[2].value if entry["path"] == path)
    assert told["upper"] == float(most or 3600)
    assert guaranteed(ptyr.read(made.results[0])) == 12


def test_a_configuration_may_say_more_than_may_be_set(tmp_path: Path) -> None:
    made = configuration(tmp_path, engines={"e": {"name": "DM", "numiter": 2_000_000}})
    tree = Tree(made)
    assert tree.set("engines.e.numiter", 5).before == 2_000_000


def test_no_number_of_an_engine_without_a_limit_is_needed_to_pass(tmp_path: Path) -> None:
    """Every number of iterations or step that can be steered has one."""
    names = ["DM", "RAAR", "EPIE", "SDR", "ML", "PyPty"]
    engines = {f"e{k}": {"name": name} for k, name in enumerate(names)}
    for entry in Tree(configuration(tmp_path, engines=engines)).described():
        if entry["path"].split(".")[-1] in ("numiter", "numiter_contiguous", "alpha", "beta", "sigma", "tau"):
            assert entry["upper"] is not None, entry["path"]


@pytest.mark.parametrize(("name", "value", "why"), [("numiter", None, "give the number"), ("wolfe_c1_constant", 5, "1 or less")])
def test_what_only_the_whole_branch_refuses_is_not_in_force(tmp_path: Path, name: str, value: Any, why: str) -> None:
    tree = Tree(configuration(tmp_path, engines={"e": {"name": "PyPty"}}))
    before = tree.get(f"engines.e.{name}")
    with pytest.raises(Refused, match=why):
        tree.set(f"engines.e.{name}", value)
    assert before is not None and tree.get(f"engines.e.{name}") == before
