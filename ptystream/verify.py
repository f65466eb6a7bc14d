"""Is a result what its recording gives? Its schedule done again, bit by bit; and an offline run of all frames beside it.

What is promised is in docs/explanation/live-equals-offline.md.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.loop import Loop, LoopSettings, Step
from ptystream.metrics import Metrics
from ptystream.params.load import Configuration, check
from ptystream.plan import make_plan
from ptystream.quality import align
from ptystream.reconstruction import Reconstruction, Storage
from ptystream.recording import Recording
from ptystream.results import given_of, versions
from ptystream.run import Run
from ptystream.run_state import EngineEntry
from ptystream.scan.contents import differing
from ptystream.scan.cut import CutError
from ptystream.schedule import Schedule
from ptystream.session import Session, SessionError
from ptystream.storage import ptyr
from ptystream.transport import Message, TransportClosed
from ptystream.wiring import Plan

log = logging.getLogger(__name__)

FACTOR = 1.2
"""How much further a live result may be from an offline run than that is from one of twice the iterations."""
ROUNDING = 1e-3
"""Complex rms by which a repetition elsewhere (other versions, another machine, a GPU) may differ in any case."""

Tell = Callable[[str, int, int], None]
"""(what is done, how much of it, of how much)."""


class VerifyError(RuntimeError):
    """Nothing can be verified; the text says why."""


@dataclass(slots=True)
class Verification:
    """What was found."""

    differing: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Version or machine → (then, now), where they are not the same."""
    device: str = "cpu"
    """Where the result was made."""
    iterations: int = 0
    frames: int = 0
    unlike: list[str] = field(default_factory=list)
    """Arrays that frames are cut by, and that are not what they were: path and file of each."""
    changed: dict[str, int] = field(default_factory=dict)
    """Probe or object → pixels in which the repetition differs; empty: the same bits."""
    apart: float = 0.0
    """Complex rms between the objects of result and repetition."""
    offline: float | None = None
    """Complex rms between the result's object and that of an offline run; None: none was made."""
    wander: float | None = None
    """The same between that and an offline run of twice the iterations."""
    repeated_object: Storage | None = None
    offline_object: Storage | None = None

    @property
    def same_bits(self) -> bool:
        """Whether the repetition is the result."""
        return not self.changed

    @property
    def must_be_same(self) -> bool:
        """Whether it has to be: on a CPU, with the same versions on the same kind of machine."""
        return not self.differing and self.device == "cpu"

    @property
    def tolerance(self) -> float:
        """What the repetition may differ by where it need not be the same."""
        return ROUNDING if self.wander is None else max(ROUNDING, FACTOR * self.wander)

    @property
    def repeats(self) -> bool:
        """Whether the repetition is what it has to be."""
        return self.same_bits or (not self.must_be_same and self.apart <= self.tolerance)

    @property
    def equals_offline(self) -> bool:
        """Whether the result is as near to the offline run as promised; true where none was made."""
        return self.offline is None or self.wander is None or self.offline <= FACTOR * self.wander

    @property
    def good(self) -> bool:
        """Whether everything that was looked at is as promised."""
        return self.repeats and self.equals_offline

    def lines(self) -> list[str]:
        """For a person."""
        told = [f"{self.frames} frames, {self.iterations} iterations, made on the {self.device.upper()}"]
        told += [f"{name} was {then or 'not known'}, is {now}" for name, (then, now) in self.differing.items()]
        told += [f"{what} is not what it was" for what in self.unlike]
        if self.same_bits:
            told.append("repetition of the schedule: the same bits")
        else:
            pixels = ", ".join(f"{name} {count}" for name, count in self.changed.items())
            verdict = "MUST BE THE SAME" if self.must_be_same else f"allowed {self.tolerance:.3g}"
            told.append(f"repetition of the schedule: differs in pixels ({pixels}), complex rms {self.apart:.3g}: {verdict}")
        if self.offline is not None and self.wander is not None:
            verdict = "as promised" if self.equals_offline else "FURTHER THAN PROMISED"
            told.append(
                f"offline run of all frames: complex rms {self.offline:.3g}, {self.offline / max(self.wander, 1e-30):.2f} × the "
                f"{self.wander:.3g} between numiter and 2 numiter iterations ({FACTOR:g} allowed): {verdict}"
            )
        return [*told, "verified" if self.good else "NOT VERIFIED"]


def verify(
    result: ptyr.Result,
    recording: Recording,
    given: Mapping[str, Any] | None = None,
    *,
    offline: bool = True,
    tell: Tell = lambda what, done, total: None,
) -> Verification:
    """Do it all again. `given`: the configuration, where not the one in the result.

    Raises `VerifyError` where the result or the recording lack what is needed, `ConfigurationError` for a configuration that
    cannot be read any more.
    """
    if not result.schedule:
        raise VerifyError("the result has no schedule: it was not written by a session of this program")
    configuration = check(quiet(given or result.parameters), result.run)
    found = Verification(device=result.versions.get("device", "cpu"), frames=int(result.ledger.get("used", 0)))
    now = versions() | {"device": found.device}
    found.differing = {k: (result.versions.get(k, ""), v) for k, v in now.items() if result.versions.get(k, "") != v}
    try:
        run = repeat(result, recording, configuration, tell)
        found.iterations, found.unlike = run.iterations, _unlike(result, run, configuration)
        _compare(found, result, run)
        if offline:
            once = _offline(result, recording, configuration, 1, tell)
            twice = _offline(result, recording, configuration, 2, tell)
            found.offline = distance(result.object, once.objects, result.coverage)
            found.wander = distance(once.objects, twice.objects, result.coverage)
            found.offline_object = next(iter(once.objects.values()))
    except (SessionError, TimeoutError, KeyError, CutError) as error:
        missing = recording.missing_in_all()  # frames were waited for: their time may be over before all of it was read
        lacking = f" ({missing} messages are not in it: the disk was full)" if missing else ""
        raise VerifyError(f"{recording.path}: {error}{lacking}") from error
    return found


def _unlike(result: ptyr.Result, run: Run, configuration: Configuration) -> list[str]:
    """Arrays by which the repetition has cut frames, and that are not what they were; those that were changed on request are told
    with the change."""
    found = list(run.unlike)
    for label, scan in run.scans.items():
        steered = {name for e in result.schedule if e["do"] == "recut" and e["scan"] == label for name in e["parameters"]}
        then = result.scans.get(label, {}).get("contents") or {}
        for name in differing(scan.contents, {k: v for k, v in then.items() if k not in steered}):
            found.append(f"scans.{label}.data.{name}: {given_of(configuration, label, name)}")
    return found


def repeat(result: ptyr.Result, recording: Recording, configuration: Configuration, tell: Tell) -> Run:
    """The run that the schedule of a result makes of the recording."""
    run = _fed(result, recording, configuration, tell)
    entries = Schedule(result.schedule).to_repeat()
    for k, entry in enumerate(entries):
        tell("repeating the schedule", k, len(entries))
        run.apply(entry)
    tell("repeating the schedule", len(entries), len(entries))
    return run


def _offline(result: ptyr.Result, recording: Recording, configuration: Configuration, factor: int, tell: Tell) -> Reconstruction:
    """What `factor` × numiter iterations of all frames give, with parameters as they were at the end."""
    run = _fed(result, recording, configuration, tell)
    for asked in (entry for entry in result.schedule if entry["do"] in ("steer", "append")):
        run.apply(asked)
    for label in run.scans:  # before a frame is taken: all that was changed at once
        recut = [entry for entry in result.schedule if entry["do"] == "recut" and entry["scan"] == label]
        if recut:
            changes = {name: value for entry in recut for name, value in entry["parameters"].items()}
            before = {name: value for entry in reversed(recut) for name, value in entry["before"].items()}
            run.apply({**recut[-1], "parameters": changes, "before": before})
    engines = {entry.label: entry for entry in run.engines}
    labels = worked(result, next(iter(engines)))
    run.engines = [_longer(engines[label], factor) for label in labels]
    total = sum(int(entry.parameters.numiter) for entry in run.engines)
    what = "offline run" if factor == 1 else f"offline run of {factor} numiter"
    loop = Loop(run, LoopSettings(frames_per_block=1 << 40, min_frames_for_recon=1 << 40))
    while (step := loop.step()) is not Step.DONE:
        tell(what, run.iterations, total)
        if step is Step.IDLE:
            for scan in run.scans.values():
                scan.buffer.changed(-1, 0.05)
    if run.reconstruction is None or run.state == "failed":
        raise SessionError("no frame of the recording can be used")
    return run.reconstruction


def worked(result: ptyr.Result, first: str) -> list[str]:
    """Labels of the engines that the picture is of: where the run began anew, those from there on."""
    found: list[str] = []
    at_work = False
    for entry in result.schedule:
        if entry["do"] == "engine":
            found.append(entry["label"])
        elif entry["do"] in ("recut", "restart") and entry.get("anew"):
            found = [first] if at_work else []
        if entry["do"] in ("engine", "finish"):
            at_work = entry["do"] == "engine"
    return found


def _longer(entry: EngineEntry, factor: int) -> EngineEntry:
    return replace(entry, parameters=entry.parameters.model_copy(update={"numiter": factor * int(entry.parameters.numiter)}))


def _fed(result: ptyr.Result, recording: Recording, configuration: Configuration, tell: Tell) -> Run:
    """A run that has the frames of the result's and has done nothing."""
    follows = {scan.label: scan.data.parameters.follows for scan in configuration.scans}
    own = []
    for label, told in result.scans.items():
        sender = label
        while (before := follows.get(sender)) is not None:
            sender = before
        own += [(sender, *told["acquisition"])] if told.get("acquisition") else []
    decisions = {label: dict(held) for label, held in result.decisions.items()}
    run, plan = fed(recording, configuration, own, decisions)
    tell("compiling", 0, 1)
    plan.warm_up()
    return run


def fed(
    recording: Recording,
    configuration: Configuration,
    acquisitions: Sequence[tuple[str, str, int]] = (),
    decisions: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Run, Plan]:
    """A run that has its frames from a recording and has done nothing, with its plan; arguments as of `Session.again`."""
    plan = make_plan(
        configuration, transports={channel: _Silent(channel) for channel in _channels(configuration)}, recording=recording
    )
    run = Session(plan, metrics=Metrics()).again(recording, acquisitions, decisions)
    run.decisions = {label: copy.deepcopy(dict(held)) for label, held in (decisions or {}).items()}
    return run, plan


def _channels(configuration: Configuration) -> list[str]:
    names = [f"{scan.label}/data" for scan in configuration.scans]
    return names + [f"{scan.label}/positions" for scan in configuration.scans if scan.positions is not None]


def quiet(given: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that writes nothing."""
    tree: dict[str, Any] = copy.deepcopy(dict(given))
    for scan in (tree.get("scans") or {}).values():
        if isinstance(scan, dict) and isinstance(scan.get("data"), dict):
            scan["data"].pop("save", None)
    return tree


class _Silent:
    """A transport from which nothing comes."""

    def __init__(self, channel: str) -> None:
        self.channel = channel

    def open(self) -> None:
        """Nothing to open."""

    def receive(self, timeout_s: float) -> Message | None:
        """The end."""
        raise TransportClosed(self.channel)

    def acknowledge(self, message: Message) -> None:
        """Nobody waits for it."""

    def close(self) -> None:
        """Nothing to close."""


# ---------------------------------------------------------------------- comparing


def _compare(found: Verification, result: ptyr.Result, run: Run) -> None:
    assert run.reconstruction is not None
    again = run.reconstruction
    for kind, was, now in (("probe", result.probe, again.probes), ("object", result.object, again.objects)):
        if set(was) != set(now):
            raise VerifyError(f"the result has {kind}s {', '.join(sorted(was))}, its schedule makes {', '.join(sorted(now))}")
        for name, storage in was.items():
            if count := changed(storage, now[name]):
                found.changed[f"{kind} {name}"] = count
    found.repeated_object = next(iter(again.objects.values()))
    if found.changed:
        found.apart = distance(result.object, again.objects, result.coverage)


def changed(one: Storage, other: Storage) -> int:
    """Pixels of `one` that are not, bit by bit, those of `other`; all where their canvases differ."""
    if one.data.shape != other.data.shape or one.offset != other.offset or one.data.dtype != other.data.dtype:
        return one.data.size
    bits = (np.ascontiguousarray(held.data).view(np.uint8).reshape(one.data.size, -1) for held in (one, other))
    first, second = bits
    return int(np.count_nonzero((first != second).any(axis=1)))


def distance(one: Mapping[str, Storage], other: Mapping[str, Storage], coverage: Mapping[str, NDArray[np.float32]]) -> float:
    """Largest complex rms between objects of the same name, weighted by the coverage of `one`, where both have pixels; without
    shift, ramp, phase and scale."""
    return max(_distance(storage, other[name], coverage.get(name)) for name, storage in one.items())


def _distance(one: Storage, other: Storage, coverage: NDArray[np.float32] | None) -> float:
    a, b, where = overlap(one, other)
    weight = np.ones(one.shape, np.float32) if coverage is None or coverage.shape != one.shape else coverage
    count = min(len(a), len(b))
    return max(align(a[k], b[k], weight[where]).complex_rms for k in range(count))


def overlap(one: Storage, other: Storage) -> tuple[NDArray[Any], NDArray[Any], tuple[slice, ...]]:
    """The layers of two storages where both have pixels, and where that is in `one`."""
    low = [max(a, b) for a, b in zip(one.offset, other.offset, strict=True)]
    high = [min(a + n, b + m) for a, n, b, m in zip(one.offset, one.shape, other.offset, other.shape, strict=True)]
    if any(h <= l for l, h in zip(low, high, strict=True)):
        raise VerifyError("the objects do not overlap")

    def part(of: Storage) -> tuple[slice, ...]:
        return tuple(slice(l - o, h - o) for l, h, o in zip(low, high, of.offset, strict=True))

    return one.data[(slice(None), *part(one))], other.data[(slice(None), *part(other))], part(one)


def aligned(result: ptyr.Result, other: Storage) -> tuple[Sequence[NDArray[Any]], NDArray[np.float64]]:
    """The result's first object and `other` made comparable, as two pictures (y, x), and the weight of their pixels."""
    name, storage = next(iter(result.object.items()))
    a, b, where = overlap(storage, other)
    weight = np.asarray(result.coverage.get(name, np.ones(storage.shape)), float)[where]
    made = align(a[0], b[0], weight)
    return (made.first, made.second), made.weight
