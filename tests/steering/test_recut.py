"""Centre, mask, orientation and positions are put right while a run is under way: it ends as one that had them from the start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from memory import Memory
from problems import BEAM, GEOMETRY, PATTERNS, feed, make_run
from steered import Steered, after, ask_when, configuration

from ptystream.dumping import Dumping
from ptystream.events import Payload
from ptystream.loop import Loop, LoopSettings
from ptystream.metrics import Metrics
from ptystream.plan import make_plan, recorder_of
from ptystream.raw import RawFrames
from ptystream.recording import Recorder, Recording
from ptystream.recutting import Recutting, Wish
from ptystream.scan.cut import CutError
from ptystream.scan.intake import Intake
from ptystream.scan.memory import Budget
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Message
from ptystream.verify import FACTOR, distance, verify

RIGHT = [float(BEAM.side // 2)] * 2
WRONG = [RIGHT[0] + 2, RIGHT[1] - 3]
NUMITER = 60


def scans(**data: Any) -> dict[str, Any]:
    found = {"name": "ZmqScan", "shape": BEAM.side, **GEOMETRY, "positions": {"name": "ZmqScan"}, **data}
    return {"s": {"name": "Full", "data": found, "illumination": {"aperture": {"size": 4e-7}}}}


class Kept:
    """The prepared frames, mask and weights of the run of a session, as they were at its end."""

    def __init__(self, session: Session) -> None:
        (pending,) = session._router.pending
        self.buffer = pending.run.scans["s"].buffer
        frames = self.buffer.frames
        slots = {int(i): self.buffer.slot_of(int(i)) for i in range(BEAM.frames)}
        there = {i: s for i, s in slots.items() if s is not None}
        self.frames = {i: frames.slab(s // frames.slab_frames)[s % frames.slab_frames].copy() for i, s in there.items()}
        self.mask, self.decisions = frames.mask.copy(), self.buffer.decisions

    def is_same(self, other: Kept) -> bool:
        same = all(np.array_equal(self.frames[i], other.frames[i]) for i in other.frames)
        return len(self.frames) == len(other.frames) and same and np.array_equal(self.mask, other.mask)


class Run(Steered):
    """One that is told `asked` after some iterations, and whose frames are kept."""

    def __init__(
        self, folder: Path, *asked: tuple[str, Any], when: Any = None, numiter: int = NUMITER, root: Any = None, **data: Any
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.kept: list[Kept] = []
        wishes = [("set", {"path": f"scans.s.data.{name}", "value": value}) for name, value in asked]
        engines = {"e": {"name": "DM", "numiter": numiter}}
        super().__init__(folder, when or after(4), *wishes, **{"scans": scans(**data), "engines": engines, **(root or {})})
        self.result = ptyr.read(self.results[-1])
        self.recording = Recording(folder / "t.ptyrec")

    def prepare(self, session: Session) -> None:
        conclude = session._conclude

        def concluding(turn: Any) -> None:
            self.kept.append(Kept(session))
            conclude(turn)

        session._conclude = concluding  # type: ignore[method-assign]

    @property
    def recut(self) -> dict[str, Any]:
        (entry,) = (entry for entry in self.result.schedule if entry["do"] == "recut")
        return dict(entry)

    def repeats(self) -> bool:
        return verify(self.result, self.recording, offline=False).same_bits


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Run, float]]:
    """A run that has the right values from the start, and how far another may be from it."""
    made: dict[str, tuple[Run, float]] = {}

    def make(**data: Any) -> tuple[Run, float]:
        if (key := str(data)) not in made:
            one, two = (Run(tmp_path_factory.mktemp("right"), numiter=k * NUMITER, **data) for k in (1, 2))
            made[key] = one, FACTOR * distance(one.result.object, two.result.object, one.result.coverage)
        return made[key]

    return make


def apart(one: Run, other: Run) -> float:
    return distance(one.result.object, other.result.object, one.result.coverage)


@pytest.mark.parametrize("when", [4, NUMITER - 1])
def test_a_wrong_centre_is_put_right(tmp_path: Path, right: Any, when: int) -> None:
    wanted, tolerance = right(center=RIGHT)
    made = Run(tmp_path, ("center", RIGHT), when=after(when), center=WRONG)
    (reply,) = made.replies
    assert reply.value["happens"].startswith("92 frames are cut again from the recording, the newest first")
    entry = made.recut
    assert (entry["parameters"], entry["before"], entry["who"]) == ({"center": RIGHT}, {"center": WRONG}, "anna")
    assert made.kept[0].is_same(wanted.kept[0])
    assert apart(wanted, made) <= tolerance
    assert made.repeats()


def test_the_offline_run_is_cut_so_from_its_start(tmp_path: Path) -> None:
    made = Run(tmp_path, ("center", RIGHT), center=WRONG)
    report = verify(made.result, made.recording)
    assert report.good, report.lines()


def test_what_is_modelled_follows_the_centre_at_once(tmp_path: Path) -> None:
    """Behind a long way with a wrong one, the misfit does not rise."""
    made = Run(
        tmp_path, ("center", [RIGHT[0] + 0.2, RIGHT[1]]), when=after(118), numiter=120, center=[RIGHT[0] + 2, RIGHT[1] - 2]
    )
    at = made.result.schedule.index(made.recut)
    done = sum(e["iterations"] * e.get("times", 1) for e in made.result.schedule[:at] if e["do"] == "iterate")
    before, behind = made.result.misfit[done - 1, 0], made.result.misfit[done : done + 3, 0]
    assert behind.max() < 1.5 * before


def test_a_mask_in_a_file_and_its_hot_pixels(tmp_path: Path, right: Any) -> None:
    mask = np.ones((BEAM.side, BEAM.side), np.uint8)
    mask[5:9, 20:24] = 0
    np.save(tmp_path / "mask.npy", mask)
    wanted, tolerance = right(mask=mask.tolist(), hot_pixels=1.0)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "mask.npy", mask)
    made = Run(tmp_path / "a", ("mask", "mask.npy"), hot_pixels=1.0)
    assert made.replies[0].value["value"] == "an array of 32 × 32"
    assert made.kept[0].is_same(wanted.kept[0]) and wanted.kept[0].decisions["hot_pixels"]
    assert made.recut["decisions"]["hot_pixels"] == wanted.kept[0].decisions["hot_pixels"]
    assert apart(wanted, made) <= tolerance
    assert made.repeats()


def test_an_orientation_begins_anew(tmp_path: Path, right: Any) -> None:
    wanted, tolerance = right(orientation=0)
    made = Run(tmp_path, ("orientation", 0), orientation=6)
    assert made.recut["anew"] and made.kept[0].is_same(wanted.kept[0])
    assert apart(wanted, made) <= tolerance < 0.2
    assert made.repeats()


def test_positions_get_another_zero(tmp_path: Path, right: Any) -> None:
    """What is reconstructed moves with them: no iteration is lost."""
    pixel = BEAM.pixel_m
    offset = [10.4 * pixel, -3.7 * pixel]
    wanted, tolerance = right(offset=offset)
    made = Run(tmp_path, ("offset", offset), when=after(NUMITER - 1))
    assert made.replies[0].value["happens"] == "in force before the next pass"
    assert np.allclose(made.result.positions_m, wanted.result.positions_m, atol=1e-3 * pixel)
    assert made.result.object["SsG00"].offset == wanted.result.object["SsG00"].offset
    assert made.result.object["SsG00"].shape == wanted.result.object["SsG00"].shape
    assert apart(wanted, made) <= tolerance
    assert made.repeats()


def test_several_at_once_are_one_change(tmp_path: Path, right: Any) -> None:
    """The second replaces the first, with what that one changed."""
    wanted, tolerance = right(center=RIGHT)
    asked = [("center", [1.0, 1.0]), ("orientation", 0), ("center", RIGHT), ("offset", [0.0, 0.0])]
    made = Run(tmp_path, *asked, center=WRONG, orientation=1)
    entry = made.recut
    assert entry["parameters"] == {"center": RIGHT, "orientation": 0, "offset": [0.0, 0.0]}
    assert entry["before"] == {"center": WRONG, "orientation": 1, "offset": [0.0, 0.0]}
    assert made.kept[0].is_same(wanted.kept[0]) and apart(wanted, made) <= tolerance
    assert made.repeats()


def test_a_second_one_that_is_refused_leaves_the_first_under_way(tmp_path: Path) -> None:
    made = Run(tmp_path, ("center", RIGHT), ("center", [99.0, 3.0]), center=WRONG)
    assert made.replies[0].fault is None and made.replies[1].fault is not None
    assert made.recut["parameters"] == {"center": RIGHT} and made.result.scans["s"]["center"] == RIGHT


def test_it_is_so_for_every_run_that_is_there_and_for_those_to_come(tmp_path: Path) -> None:
    def two(session: Session) -> bool:
        return len(session._router.pending) > 1 and all(
            p.run.ledger()["received"] == BEAM.frames for p in session._router.pending
        )

    root = {"live": {"runs": 3, "overlap": 2}, "engines": {"e": {"name": "DM", "numiter": 12}}}
    asked = ("set", {"path": "scans.s.data.center", "value": RIGHT})
    made = Steered(tmp_path, two, asked, scans=scans(center=WRONG), **root)
    recording = Recording(tmp_path / "t.ptyrec")
    for path in made.results:
        result = ptyr.read(path)
        assert result.scans["s"]["center"] == RIGHT and sum(e["do"] == "recut" for e in result.schedule) == 1
        assert verify(result, recording, offline=False).same_bits
    assert len(made.results) == 3


@pytest.mark.parametrize("arrived", [0, 20, 50])
def test_frames_that_come_meanwhile_are_cut_both_ways(tmp_path: Path, right: Any, arrived: int) -> None:
    """And those that come behind the change. The engine waits for all of them, as in the run that this one is held against: how
    many it has iterated on before the change hangs on what else the machine does."""
    wanted, tolerance = right(center=RIGHT)
    made = Run(
        tmp_path,
        ("center", RIGHT),
        when=lambda session: received(session) >= arrived,
        center=WRONG,
        root={"min_frames_for_recon": BEAM.frames},
    )
    assert made.kept[0].is_same(wanted.kept[0])
    assert apart(wanted, made) <= tolerance
    assert made.repeats()


@pytest.mark.parametrize("arrived", [16, 40])
def test_frames_that_an_engine_has_begun_with_are_cut_again_while_others_come(tmp_path: Path, right: Any, arrived: int) -> None:
    wanted, _ = right(center=RIGHT)
    when, few = (lambda session: received(session) >= arrived), {"min_frames_for_recon": 16}
    made = Run(tmp_path, ("center", RIGHT), when=when, center=WRONG, root=few)
    assert made.kept[0].is_same(wanted.kept[0]) and made.repeats()


def received(session: Session) -> int:
    return -1 if session.current is None else session.current.ledger()["received"]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("center", [99.0, 3.0], "center: lies outside the frames of (32, 32) pixels"),
        ("center", None, "scans.s.data.center: is found from the first frames"),
        ("center", "middle", "scans.s.data.center: middle: "),
        ("mask", [[1, 2, 3]], ""),
        ("mask", "no.npy", "scans.s.data.mask: "),
        ("orientation", 9, "must be 0 to 7"),
        ("offset", [1.0], "scans.s.data.offset: "),
        ("shape", 16, "may not change while the session runs"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path, name: str, value: Any, why: str) -> None:
    made = Run(tmp_path, (name, value), numiter=12)
    if why:
        assert why in made.refused()
        assert not any(entry["do"] == "recut" for entry in made.result.schedule)
        assert made.session.plan.configuration is not None
        assert made.session.plan.configuration.scans[0].data.parameters.center == "fftshift"


def test_without_a_recording_it_is_refused(tmp_path: Path) -> None:
    made = Run(tmp_path, ("center", RIGHT), center=WRONG, root={"records": False})
    assert "io.recording.active is off" in made.refused()


def test_without_memory_for_both_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.plan.FRAMES", Budget(17 << 20))
    made = Run(tmp_path, ("center", RIGHT), center=WRONG)
    assert "92 frames once more take" in made.refused() and "GiB are free" in made.refused()
    assert not any(entry["do"] == "recut" for entry in made.result.schedule)


def test_frames_that_are_turned_between_two_engines_begin_with_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch is asked for in the same moment in which the frames are ready."""
    really, seen = Wish.ready.fget, list[bool]()
    monkeypatch.setattr(Wish, "ready", property(lambda wish: bool(seen) and really(wish)))  # not before it was asked for

    def ready(session: Session) -> bool:
        wishes = session._recutting._wishes
        if wishes and all(really(wish) for wish in wishes):
            seen.append(True)
        return bool(seen)

    class Switched(Run):
        def prepare(self, session: Session) -> None:
            super().prepare(session)
            self.more = ask_when(session, ready, ("switch", {}))

    engines = {"e": {"name": "DM", "numiter": 12}, "f": {"name": "ML", "numiter": 3}}
    made = Switched(tmp_path, ("orientation", 0), orientation=6, root={"engines": engines})
    assert made.more[0].value == "f"
    does = [(e["do"], e.get("label")) for e in made.result.schedule if e["do"] in ("engine", "recut", "finish")]
    begins = [("engine", "e"), ("finish", None), ("recut", None), ("engine", "e"), ("finish", None), ("engine", "f")]
    assert does[:6] == begins
    assert made.repeats()


def test_what_came_to_nothing_and_cannot_be_set_back_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file of the mask that was in force is gone."""
    for name in ("before.npy", "other.npy"):
        np.save(tmp_path / name, np.ones((BEAM.side, BEAM.side)) * (np.arange(BEAM.side) > (name == "other.npy")))

    def none(self: RawFrames, *asked: Any) -> Any:
        (tmp_path / "before.npy").unlink()
        return iter(())

    monkeypatch.setattr(RawFrames, "frames", none)
    made = Run(tmp_path, ("mask", "other.npy"), mask=str(tmp_path / "before.npy"), numiter=12)
    assert made.replies[0].fault is None and made.result.ledger["used"] == BEAM.frames
    assert not any(entry["do"] == "recut" for entry in made.result.schedule)
    assert "frames stay as they were: 92 of 92 frames cannot be cut again" in caplog.text
    assert "cannot be set back" in caplog.text


def test_a_cut_that_is_given_up_while_it_makes_room_is_never_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(center=WRONG)
    feed(run, 0, 92)
    buffer, raw = run.scans["s"].buffer, SimpleNamespace(there=True, lost=0, frames=lambda *asked: iter(()))
    buffer._raw = raw  # type: ignore[assignment]
    at_it, room = threading.Event(), threading.Event()
    make_room = Intake.make_room

    def slowly(self: Intake, cut: Any) -> bool:
        at_it.set()
        return make_room(self, cut) and room.is_set()

    monkeypatch.setattr(Intake, "make_room", slowly)
    cut = buffer.recut({"center": RIGHT})
    assert cut is not None and at_it.wait(30)
    assert buffer.recut({"center": WRONG}) is None
    room.set()
    assert buffer._cutting is not None
    buffer._cutting[1].join(30)
    assert cut.failure == "given up" and cut.total == 0 and len(buffer._intake.cuts) == 1


def test_what_was_asked_for_is_told_in_lines_of_bounded_length(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = np.ones((BEAM.side, BEAM.side), int)
    mask[3] = 0
    Run(tmp_path, ("mask", mask.tolist()), numiter=12)
    assert max(len(record.getMessage()) for record in caplog.records) < 3000


class SlowRaw:
    """Frames as they came, which are given when a test says so."""

    there, lost = True, 0

    def __init__(self) -> None:
        self.may, self.asked = threading.Event(), threading.Event()

    def frames(self, epoch: str, wanted: Any, stopped: Any = None) -> Any:
        self.asked.set()
        while not (self.may.wait(0.01) or stopped.is_set()):
            pass
        for number in [] if stopped.is_set() else list(wanted):
            yield number, Payload(PATTERNS[number].tobytes(), "raw", np.dtype("<u2"), PATTERNS[number].shape)


def slow_run(budget: Budget) -> tuple[Any, SlowRaw]:
    run = make_run(center=WRONG)
    buffer = run.scans["s"].buffer
    buffer._intake.budget, buffer.ledger.expected = budget, 92
    feed(run, 0, 92)
    buffer._raw = raw = SlowRaw()  # type: ignore[assignment]
    return run, raw


def test_a_second_change_needs_no_memory_but_that_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    run, raw = slow_run(budget := Budget(64 << 20))
    buffer, recutting = run.scans["s"].buffer, Recutting()
    told = {"path": "scans.s.data.center", "who": "anna", "time_ns": 1}
    recutting.ask([run], {**told, "value": [1.0, 2.0], "before": WRONG})
    budget.claim(budget.left, 1)  # another scan
    recutting.ask([run], {**told, "value": RIGHT, "before": [1.0, 2.0]})
    raw.may.set()
    (wish,) = recutting.of(run)
    buffer._cutting[1].join(30)
    assert wish.ready and wish.cut is not None and wish.cut.done == 92 and wish.cut.parameters.center == tuple(RIGHT)


@pytest.mark.parametrize("other", [False, True])
def test_a_second_change_for_which_there_is_no_memory_leaves_the_first_untouched(other: bool) -> None:
    """Whether it is refused here, or in another run."""
    run, raw = slow_run(budget := Budget(128 << 20))
    waits = raw
    runs, recutting = [run], Recutting()
    if other:
        second, more = slow_run(budget)
        second.name, runs = "second", [run, second]
        waits = more
    told = {"path": "scans.s.data.center", "who": "anna", "time_ns": 1}
    recutting.ask(runs, {**told, "value": RIGHT, "before": WRONG})
    assert waits.asked.wait(30) and raw.asked.wait(30)
    under_way = recutting.of(runs[-1])[0].cut
    left = budget.left
    refusing = runs[-1].scans["s"].buffer
    refusing.ledger.expected = 1_000_000_000  # so many are to come that they do not fit
    with pytest.raises(CutError, match=r"second: \d+ frames once more take" if other else r"^\d+ frames once more take"):
        recutting.ask(runs, {**told, "value": [1.0, 2.0], "before": RIGHT})
    assert budget.left == left and recutting.of(runs[-1])[0].cut is under_way
    raw.may.set()
    waits.may.set()
    for each in runs:
        (wish,) = recutting.of(each)
        each.scans["s"].buffer._cutting[1].join(30)
        assert wish.ready and wish.entry["parameters"] == {"center": RIGHT}
        assert wish.cut is not None and wish.cut.done == 92 and wish.cut.parameters.center == tuple(RIGHT)
        each.apply(wish.entry)
        assert each.decided("s")["center"] == RIGHT


def test_a_mistyped_offset_is_refused_and_no_position_loses_a_digit(tmp_path: Path) -> None:
    made = Run(tmp_path, ("offset", [1e12, 0.0]), numiter=12)
    plain = Run(tmp_path / "plain", numiter=12)
    assert not any(entry["do"] == "recut" for entry in made.result.schedule)
    assert np.array_equal(made.result.positions_m, plain.result.positions_m)
    assert made.session.plan.configuration is not None
    assert made.session.plan.configuration.scans[0].data.parameters.offset == (0.0, 0.0)


def masked(folder: Path, *rows: int) -> str:
    """The file of a mask without some rows."""
    made = np.ones((BEAM.side, BEAM.side), np.uint8)
    made[list(rows)] = 0
    np.save(folder / "mask.npy", made)
    return str(folder / "mask.npy")


@pytest.mark.parametrize("steered", [False, True])
def test_a_mask_whose_file_was_changed_since_is_named_by_verify(tmp_path: Path, steered: bool) -> None:
    file = masked(tmp_path, 3)
    made = Run(tmp_path, ("mask", file), numiter=12) if steered else Run(tmp_path, numiter=12, when=after(99), mask=file)
    assert verify(made.result, made.recording, offline=False).unlike == []
    masked(tmp_path, 3, 4)
    found = verify(made.result, made.recording, offline=False)
    assert not found.good and [told.split(": ") for told in found.unlike] == [["scans.s.data.mask", file]]
    assert f"scans.s.data.mask: {file} is not what it was" in found.lines()


def test_a_mask_that_was_given_as_numbers_is_known_again(tmp_path: Path) -> None:
    """As a list in the result, whatever type of number it was."""
    mask = np.ones((BEAM.side, BEAM.side), np.uint8)
    mask[3] = 0
    made = Run(tmp_path, numiter=12, when=after(99), mask=mask)
    assert made.result.scans["s"]["contents"]["mask"]
    assert verify(made.result, made.recording, offline=False).unlike == [] and made.repeats()


@pytest.mark.parametrize("changed", [False, True])
def test_a_session_that_was_killed_notices_a_steered_mask_whose_file_was_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: bool
) -> None:
    made = Run(tmp_path, ("mask", masked(tmp_path, 3)), numiter=12)
    kept = Recorder(tmp_path / "k.ptyrec", {})
    for message in made.recording:
        if message.channel != "session" or b'"steered"' in bytes(message.parts[0]):
            kept.write(message)
    kept.close()
    if changed:
        masked(tmp_path, 3, 4)
    none = {name: Memory(name, []) for name in ("s/data", "s/positions")}
    plan = make_plan(configuration(tmp_path, scans=scans(), engines={"e": {"name": "DM", "numiter": 12}}), transports=none)
    session = Session(plan, metrics=Metrics(), recorded=Recording(tmp_path / "k.ptyrec"))
    session.run()
    told = f"scans.s.data.mask: {tmp_path / 'mask.npy'} is not what it was"
    assert (told in caplog.text) is changed and any(told in line for line in session.health.concerns()) is changed
    assert (told in str(verify(ptyr.read(session.results[-1]), Recording(tmp_path / "k.ptyrec"), offline=False).lines())) is False


def test_a_configuration_whose_mask_was_changed_does_not_go_on_from_a_dump(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def given() -> Any:
        root = {"io": {"home": str(tmp_path), "rfile": "%(run)s_%(iterations)04d.ptyr", "recording": {"active": True}}}
        return configuration(tmp_path, scans=scans(mask=file), **root)

    file = masked(tmp_path, 3)
    recorder, _ = recorder_of(given())
    assert recorder is not None
    recorder.write(Message(1, "s/data", (b"frame",)))
    recorder.close(finished=False)
    masked(tmp_path, 3, 4)
    recorder, before = recorder_of(given())
    assert recorder is not None and before == recorder.path
    assert f"scans.s.data.mask: {file} is not what it was before the interruption" in caplog.text
    run = make_run()
    feed(run, 0, 92)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    loop.step()
    dumping = Dumping(given(), recorder)
    dumping._dump(run, loop)()
    assert dumping.checkpoint(run.name) is None
    assert f"were cut by what is another now: scans.s.data.mask: {file}" in caplog.text
    recorder.close()
