"""An engine on several ranks: rank 0's, which the loop sees, and one on each other rank that does the same on its own frames.

Whatever is asked of the engine of rank 0 is told to the others first, with what has changed since: rows of the pod table (all
of them, on every rank), canvases, and the counts of the frames that are theirs. Frame number r of the pod table belongs to
rank r modulo their number. Probes and objects are the same on all, since every engine sums over the ranks before it divides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ptystream.device import use
from ptystream.engine import Context, Engine, Progress
from ptystream.packing import pack, unpack
from ptystream.parallel import Ranks, Team
from ptystream.params.attached import Attached
from ptystream.params.load import plugins
from ptystream.reconstruction import PodTable, Reconstruction, Storage, Volume
from ptystream.scan.block import FrameStore

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 26
"""Counts that are sent at a time."""

Rows = NDArray[np.int64]


def mine(ranks: Ranks, rows: Rows) -> Rows:
    """Those of `rows` whose frames are this rank's."""
    return rows if ranks.size == 1 else rows[rows % ranks.size == ranks.rank]


def spread(team: Team | None, name: str, make: Callable[[Any], Engine]) -> Callable[[Any], Engine]:
    """What makes an engine of that name that works on all ranks of the team; `make` itself where there is none."""
    if team is None:
        return make
    if not getattr(make, "spreads", False):
        raise ValueError(f"engine {name} works on one rank; start it without an MPI launcher")
    return lambda parameters: Spread(team, name, make(parameters), parameters)


# ---------------------------------------------------------------------- rank 0


class Spread:
    """An engine whose work is shared by a team. See `ptystream.engine.Engine` for every method."""

    Parameters: Any = None
    spreads: ClassVar[bool] = True

    def __init__(self, team: Team, name: str, engine: Engine, parameters: Any) -> None:
        self.team, self.name, self.engine, self.parameters = team, name, engine, parameters
        self._known: dict[str, tuple[Any, ...]] = {}
        """What the others know of each storage."""
        self._ways: set[int] = set()
        self._stores: set[int] = set()

    def start(
        self,
        reconstruction: Reconstruction,
        frames: Mapping[int, FrameStore],
        context: Context,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Engine.start`."""
        self.reconstruction, self.frames = reconstruction, frames
        told = {f.name: getattr(context, f.name) for f in fields(context) if f.name != "ranks"}
        rows = np.arange(reconstruction.pods.length)
        self._tell(
            "start",
            name=self.name,
            parameters=_told(self.name, self.parameters),
            context=told,
            state=state,
            geometries=reconstruction.geometries,
            pods=reconstruction.pods.pods,
            improved=reconstruction.improved,
            **self._news(rows, new=True),
        )
        with _together(self.team, refusal=ValueError):
            self._give(rows)
            use(context.device, self.team.place)
            self.engine.start(reconstruction, frames, replace(context, ranks=self.team), state)
        for kind in KINDS:  # an engine may make other storages of them, on every rank the same
            self._known |= {f"{kind} {name}": _extent(storage) for name, storage in getattr(reconstruction, kind).items()}

    def extend(self, rows: Rows) -> None:
        """See `Engine.extend`."""
        self._tell("extend", **self._news(rows, new=True))
        with _together(self.team):
            self._give(rows)
            self.engine.extend(rows)

    def revise(self, rows: Rows, what: str) -> None:
        """See `Engine.revise`."""
        if what in ("frame", "mask"):
            self._stores.clear()
        self._tell("revise", what=what, **self._news(rows, new=False))
        with _together(self.team):
            if what == "frame":
                self._give(rows)
            self.engine.revise(rows, what)

    def configure(self, parameters: Any) -> None:
        """See `Engine.configure`."""
        self.parameters = parameters
        self._tell("configure", parameters=_told(self.name, parameters))
        with _together(self.team):
            self.engine.configure(parameters)

    def complete(self) -> None:
        """See `Engine.complete`."""
        self._tell("complete")
        with _together(self.team):
            self.engine.complete()

    def iterate(self, iterations: int, rows: Rows | None = None) -> Progress:
        """See `Engine.iterate`."""
        self._tell("iterate", iterations=iterations, rows=rows)
        with _together(self.team):
            return self.engine.iterate(iterations, rows)

    def average(self) -> None:
        """See `Engine.average`."""
        self._tell("average")
        with _together(self.team):
            self.engine.average()

    def restart(self) -> None:
        """See `Engine.restart`."""
        self._tell("restart")
        with _together(self.team):
            self.engine.restart()

    def snapshot(self, parts: Iterable[str] = ("probe", "object")) -> Reconstruction:
        """See `Engine.snapshot`. Probe and object are here; only the illumination is a sum over all frames, and is left out where
        the engine has failed: the others may wait in the midst of another sum."""
        wanted = tuple(part for part in parts if part != "coverage" or self.team not in _failed)
        if "coverage" in wanted:
            self._tell("snapshot", parts=wanted)
        with _together(self.team):
            return self.engine.snapshot(wanted)

    def state(self) -> Mapping[str, Any]:
        """See `Engine.state`: what it holds is the same on all ranks."""
        return self.engine.state()

    def refined(self) -> dict[str, NDArray[Any]]:
        """See `PyPty.refined`: the same on all ranks. Nothing of an engine that refines nothing else."""
        found: dict[str, NDArray[Any]] = getattr(self.engine, "refined", dict)()
        return found

    def modelled(self, row: int) -> Any:
        """See `PyPty.modelled`: all that it takes is on this rank. None of an engine that has no model of its own."""
        found: Callable[[int], Any] = getattr(self.engine, "modelled", lambda row: None)
        return found(row)

    def simulated(self) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """See `PyPty.simulated`. Where it is left before its end, the rest is gone through all the same: the others do."""
        self._tell("simulated")
        patterns = self.engine.simulated()  # type: ignore[attr-defined]
        try:
            while True:
                with _together(self.team):
                    found = next(patterns, None)
                if found is None:
                    return
                yield found
        finally:
            with _together(self.team):
                for _ in patterns:
                    pass

    def finish(self) -> None:
        """See `Engine.finish`."""
        self._tell("finish")
        with _together(self.team):
            self.engine.finish()

    # ------------------------------------------------------------------ what the others hear

    def _tell(self, do: str, **more: Any) -> None:
        self.team.tell(pack({"do": do, **more}))

    def _news(self, rows: Rows, *, new: bool) -> dict[str, Any]:
        """What has changed since the last call: these rows of the pod table, storages, ways to the detector, stores."""
        held, table = self.reconstruction, self.reconstruction.pods
        told: dict[str, Any] = {"rows": rows, "new": new, "table": {name: getattr(table, name)[rows] for name in COLUMNS}}
        told["storages"] = [n for kind in KINDS for name, s in getattr(held, kind).items() if (n := self._changed(kind, name, s))]
        fresh = [number for number in held.propagators if number not in self._ways]
        self._ways.update(fresh)
        if fresh:
            every = {id(way): way for number in fresh for way in held.propagators[number]}
            order = {key: k for k, key in enumerate(every)}
            told["ways"] = list(every.values()), {n: [order[id(way)] for way in held.propagators[n]] for n in fresh}
            told["dispersion"] = held.probe_dispersion, held.object_dispersion
        told["stores"] = {n: _described(store) for n, store in self.frames.items() if n not in self._stores}
        self._stores.update(self.frames)
        return told

    def _changed(self, kind: str, name: str, storage: Storage) -> dict[str, Any] | None:
        """What the others lack of a storage: nothing, layers at the end, or all of it."""
        now, before = _extent(storage), self._known.get(f"{kind} {name}")
        self._known[f"{kind} {name}"] = now
        if before == now:
            return None
        more = before is not None and before[::2] == now[::2] and before[1][1:] == now[1][1:] and before[1][0] < now[1][0]
        if before is not None and more:
            return {"kind": kind, "name": name, "more": _host(storage.data[before[1][0] :])}
        return {"kind": kind, "name": name, "whole": replace(storage, data=_host(storage.data))}

    def _give(self, rows: Rows) -> None:
        """To each rank the counts of its frames."""
        table = self.reconstruction.pods
        for rank in range(1, self.team.size):
            for scan, part in pieces(table, rows[rows % self.team.size == rank], self.frames):
                store, slots = self.frames[scan], table.frame[part, 1]
                counts = np.empty((len(part), *store.shape), store.dtype)
                for number in np.unique(slots // store.slab_frames):
                    here = slots // store.slab_frames == number
                    counts[here] = store.slab(int(number))[slots[here] % store.slab_frames]
                self.team.give(rank, counts)


COLUMNS = (*PodTable.REVISABLE, "frame", "index")
KINDS = ("probes", "objects")


def dismiss(team: Team) -> None:
    """Rank 0 ends: the others may go home. Where it failed in the midst of an engine's work they would not hear it."""
    if team in _failed:
        team.abort()
    team.tell(GO_HOME)


DISMISS = "dismiss"
GO_HOME = pack({"do": DISMISS})
GRACE_S = 10.0
"""A rank that cannot go on waits so long for rank 0, which as a rule has met the same, to say so itself."""
_failed: set[Team] = set()
"""Teams whose rank 0 has raised out of an engine."""


@contextmanager
def _together(team: Team, refusal: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """What the others do at the same time. A `refusal` all ranks have come to."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, refusal):
            _failed.add(team)
        raise


def pieces(table: PodTable, rows: Rows, stores: Mapping[int, FrameStore]) -> Iterator[tuple[int, Rows]]:
    """(scan, rows) in portions that are sent at a time; the same on both sides."""
    for scan in np.unique(table.frame[rows, 0]).tolist():
        store, here = stores[scan], rows[table.frame[rows, 0] == scan]
        count = max(1, PIECE_BYTES // (int(np.prod(store.shape)) * np.dtype(store.dtype).itemsize))
        for first in range(0, len(here), count):
            yield scan, here[first : first + count]


def _told(name: str, parameters: Any) -> dict[str, Any]:
    """Parameters as the others can have them. Raises `ValueError` for a function, which only this process has."""
    held: dict[str, Any] = parameters.model_dump()
    for key, value in held.items():
        if callable(value):
            raise ValueError(f"engines.{name}.{key}: a function is known to one rank: give the text of an expression")
    return {key: value for key, value in held.items() if not isinstance(value, Attached)}  # frames, which are given otherwise


def _extent(storage: Storage) -> tuple[Any, ...]:
    """What others compare."""
    return storage.corner, storage.data.shape, storage.begun


def _described(store: FrameStore) -> dict[str, Any]:
    told = {"slab_frames": store.slab_frames, "shape": tuple(store.shape), "dtype": np.dtype(store.dtype).str}
    return {**told, "limit": float(store.limit), "mask": store.mask, "weights": store.weights}


def _host(array: Any) -> NDArray[Any]:
    """Of a GPU's array a copy here."""
    return np.asarray(array.get() if hasattr(array, "get") else array)


# ---------------------------------------------------------------------- the others


@dataclass(slots=True)
class Share:
    """A rank's frames of one scan."""

    slab_frames: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    limit: float
    mask: NDArray[np.uint8]
    weights: NDArray[np.float32] | None
    count: int = 0
    """Frames that are here."""
    slabs: list[NDArray[Any]] = field(default_factory=list)

    def slab(self, number: int) -> NDArray[Any]:
        """See `FrameStore.slab`."""
        return self.slabs[number]

    def put(self, counts: NDArray[Any]) -> Rows:
        """Take frames in; returns their slots."""
        slots = np.arange(self.count, self.count + len(counts))
        self.count += len(counts)
        while len(self.slabs) * self.slab_frames < self.count:
            self.slabs.append(np.empty((self.slab_frames, *self.shape), self.dtype))
        for slot, frame in zip(slots.tolist(), counts, strict=True):
            self.slabs[slot // self.slab_frames][slot % self.slab_frames] = frame
        return slots


def serve(team: Team) -> None:
    """Work for rank 0 until it lets go. What goes wrong here ends the whole job."""
    try:
        worker = Worker(team, plugins("engines"))
        while worker.obey(unpack(team.hear() or b"")):
            pass
    except BaseException:
        while (told := team.hear(GRACE_S)) is not None:
            if told == GO_HOME:
                return
        log.exception("rank %d cannot go on: the job ends", team.rank)
        team.abort()


class Worker:
    """The engine of another rank."""

    def __init__(self, team: Team, engines: Mapping[str, Any]) -> None:
        self.team, self.engines = team, engines

    def obey(self, told: dict[str, Any]) -> bool:
        """Do what was told; returns whether there is more to come."""
        do = told.pop("do")
        if do == DISMISS:
            return False
        getattr(self, f"_{do}")(**told)
        return True

    def _start(
        self, name: str, parameters: Any, context: Any, state: Any, geometries: Any, pods: int, improved: bool, **news: Any
    ) -> None:
        made = self.engines[name]
        self.stores: dict[int, Share] = {}
        self.held = Reconstruction({}, {}, PodTable(pods), geometries=geometries, improved=improved)
        self.engine: Engine = made(made.Parameters.model_validate(parameters))
        self._learn(**news)
        use(context["device"], self.team.place)
        self.engine.start(self.held, self.stores, Context(**context, ranks=self.team), state)

    def _extend(self, rows: Rows, **news: Any) -> None:
        self._learn(rows=rows, **news)
        self.engine.extend(rows)

    def _revise(self, what: str, rows: Rows, **news: Any) -> None:
        self._learn(rows=rows, counts=what == "frame", **news)
        self.engine.revise(rows, what)
        if what == "withdrawn":  # as the run does on rank 0, when its engine has seen what they were
            self.held.pods.withdraw(rows)

    def _configure(self, parameters: Any) -> None:
        self.engine.configure(type(self.engine).Parameters.model_validate(parameters))

    def _complete(self) -> None:
        self.engine.complete()

    def _iterate(self, iterations: int, rows: Rows | None) -> None:
        self.engine.iterate(iterations, rows)

    def _average(self) -> None:
        self.engine.average()

    def _restart(self) -> None:
        self.engine.restart()

    def _snapshot(self, parts: tuple[str, ...]) -> None:
        self.engine.snapshot(parts)

    def _simulated(self) -> None:
        for _ in self.engine.simulated():  # type: ignore[attr-defined]
            pass

    def _finish(self) -> None:
        self.engine.finish()

    # ------------------------------------------------------------------ what was told

    def _learn(
        self,
        rows: Rows,
        new: bool,
        table: Mapping[str, NDArray[Any]],
        storages: list[dict[str, Any]],
        stores: Mapping[int, Mapping[str, Any]],
        ways: tuple[list[Any], Mapping[int, list[int]]] | None = None,
        dispersion: Any = None,
        counts: bool = False,
    ) -> None:
        pods = self.held.pods
        if new:
            pods.append(*(table[name] for name in ("address", "remainder", "weight", "frame", "index", "depth")))
        for name in PodTable.REVISABLE:
            getattr(pods, name)[rows] = table[name]
        for told in storages:
            self._place(**told)
        if ways is not None:
            for number, order in ways[1].items():
                self.held.propagators[number] = tuple(ways[0][k] for k in order)
            self.held.probe_dispersion[:], self.held.object_dispersion[:] = dispersion
        for number, told_store in stores.items():
            known = self.stores.get(number)
            if known is None:
                self.stores[number] = Share(**{**told_store, "dtype": np.dtype(told_store["dtype"])})
            else:
                known.mask, known.weights = told_store["mask"], told_store["weights"]
        if new or counts:
            self._take(rows, again=not new)

    def _place(self, kind: str, name: str, whole: Storage | None = None, more: Any = None) -> None:
        """A storage as rank 0 has it."""
        held = getattr(self.held, kind)
        mine = held.get(name)
        if mine is None:
            held[name] = whole
        elif more is not None:
            mine.data = _joined(mine.data, more)
        elif whole is not None:  # engines hold the storage, and keep its data on their device
            mine.data = np.asarray(whole.data, like=mine.data)
            mine.offset, mine.begun = whole.offset, whole.begun
            if isinstance(mine, Volume) and isinstance(whole, Volume):
                mine.first = whole.first

    def _take(self, rows: Rows, *, again: bool) -> None:
        """Frames of this rank; a row's slot is where they lie here."""
        pods = self.held.pods
        for scan, part in pieces(pods, mine(self.team, rows), self.stores):
            store = self.stores[scan]
            found = np.empty((len(part), *store.shape), store.dtype)
            self.team.receive(found)
            if not again:
                pods.frame[part, 1] = store.put(found)
                continue
            for slot, frame in zip(pods.frame[part, 1].tolist(), found, strict=True):
                store.slab(slot // store.slab_frames)[slot % store.slab_frames] = frame


def _joined(data: Any, more: NDArray[Any]) -> Any:
    made = np.empty_like(data, shape=(len(data) + len(more), *data.shape[1:]))
    made[: len(data)] = data
    made[len(data) :] = np.asarray(more, like=data)
    return made
