"""What ptypy's clients find under `Ptycho`: plain values, from the last snapshot and the configuration. It is only looked at.

Nothing in it leads to the engine: a question costs the reconstruction nothing, and sees a whole state of one moment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.interaction.paths import Function, PathError
from ptystream.params.load import Configuration
from ptystream.publish.snapshot import Image, Snapshot
from ptystream.results import effective, file_name
from ptystream.run import Run

MAX_INFOS = 1000
"""Entries of `iter_info` that are shown, the newest."""
FRESH_S = 0.1
"""How old the parameters may be that are shown."""
NAME = "Ptycho"
"""What the one object is called that can be asked for."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A snapshot, and what ptypy's clients want to know of its run besides."""

    snapshot: Snapshot
    started: float
    """When the run began, seconds since the epoch."""
    infos: list[dict[str, Any]]
    """The run's own `iter_info`, to which the engine's thread appends; entries that are there do not change."""
    length: int
    """How many of them belong to the snapshot."""
    keys: Mapping[str, Any]
    """Series and angle, for file names."""


class InForce(Mapping[str, Any]):
    """Every parameter with the value in force, as somebody looks at it: it may have been set meanwhile."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._held: dict[str, Any] = {}
        self._since = -FRESH_S

    @property
    def _values(self) -> dict[str, Any]:
        if time.monotonic() - self._since >= FRESH_S:
            self._held, self._since = effective(self._configuration), time.monotonic()
        return self._held

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Infos(Sequence[dict[str, Any]]):
    """The newest entries of `iter_info`. Their arrays are lists, because a message has room for 1000 arrays."""

    def __init__(self, infos: list[dict[str, Any]], length: int) -> None:
        self._infos, self._range = infos, range(max(0, length - MAX_INFOS), length)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        held = self._infos[self._range[place]]
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in held.items()}


class Namespace:
    """Keeps the last snapshot, and shows it as ptypy's objects. `offer` is for the engine's thread, `view` for any."""

    def __init__(self, configuration: Configuration) -> None:
        root = configuration.root
        self._parameters = InForce(configuration)
        self._home, self._plots, self._results = Path(root.io.home), root.io.autoplot.imfile, root.io.rfile
        self._dumps, self._run = root.io.autosave.rfile, configuration.name
        self._lock = threading.Lock()
        self._seen: Seen | None = None
        self._stopped: float | None = None
        self._stopped_at = 0.0
        self._number = 0
        self._view: tuple[int, Mapping[str, Any]] | None = None
        self.wanted = False
        """Whether somebody is connected, and snapshots are to be made."""
        self.ring: Callable[[], None] = lambda: None
        """Called when there is a newer state."""

    def offer(self, run: Run, snapshot: Snapshot) -> None:
        """Show this state from now on."""
        infos = run.iter_info
        seen = Seen(snapshot, run.started, infos, len(infos), run.series.keys())
        with self._lock:
            self._seen = seen
            self._number += 1
        self.ring()

    def finish(self) -> None:
        """The session is over: `runtime` has 'allstop' from now on."""
        with self._lock:
            if self._stopped is None:
                self._stopped, self._stopped_at = time.time(), time.monotonic()
            self._number += 1
        self.ring()

    def stopped_s(self) -> float:
        """Seconds since `finish`; 0 before."""
        return 0.0 if self._stopped is None else time.monotonic() - self._stopped_at

    @property
    def number(self) -> int:
        """Counts the states that were shown; 0: none yet."""
        return self._number

    def view(self) -> tuple[int, Mapping[str, Any]]:
        """The present state's number, and the tree of it: {'Ptycho': {'p', 'probe', 'obj', 'runtime', 'paths'}}."""
        with self._lock:
            number, seen, stopped, held = self._number, self._seen, self._stopped, self._view
        if held is None or held[0] != number:  # made beside the lock: the engine's thread never waits for it
            self._view = held = number, {NAME: self._made(seen, stopped)}
        return held

    def _made(self, seen: Seen | None, stopped: float | None) -> Mapping[str, Any]:
        made: dict[str, Any] = {
            "p": self._parameters,
            "runtime": self._runtime(seen, stopped),
            "paths": self._paths(seen),
        }
        probes = {} if seen is None else seen.snapshot.probe
        objects = {} if seen is None else seen.snapshot.object
        for part, held in (("probe", probes), ("obj", objects)):
            storages = {name: storage(name, image, probe=part == "probe") for name, image in held.items()}
            made[part] = {"ID": part, "S": storages, "storages": storages}
        return made

    def _runtime(self, seen: Seen | None, stopped: float | None) -> dict[str, Any]:
        """As ptypy's: 'start' when there is something to see, 'iter_info' when something was iterated, 'allstop' at the end."""
        made: dict[str, Any] = {"run": self._run if seen is None else seen.snapshot.run}
        if seen is not None:
            made["state"], made["ledger"] = seen.snapshot.state, dict(seen.snapshot.ledger)
            if seen.snapshot.object:
                made["start"] = made["allstart"] = time.asctime(time.localtime(seen.started))
                if seen.length:
                    made["iter_info"] = Infos(seen.infos, seen.length)
        if stopped is not None:
            made["stop"] = made["allstop"] = time.asctime(time.localtime(stopped))
        return made

    def _paths(self, seen: Seen | None) -> dict[str, Any]:
        """File names for a state of the run: `plot_file(Ptycho.runtime)` and the like."""
        patterns = {"plot_file": self._plots, "auto_file": self._dumps, "recon_file": self._results}
        return {name: Function(self._named(pattern, seen)) for name, pattern in patterns.items()}

    def _named(self, pattern: str | None, seen: Seen | None) -> Callable[[Any], str | None]:
        def ask(runtime: Any) -> str | None:
            if not isinstance(runtime, Mapping) or not isinstance(run := runtime.get("run"), str):
                raise PathError("is asked with Ptycho.runtime")
            infos, keys = runtime.get("iter_info"), {} if seen is None else seen.keys
            info = {**infos[-1], **keys} if infos else dict(keys)
            return None if pattern is None else str(self._home / file_name(pattern, run, info))

        return ask


def storage(name: str, image: Image, *, probe: bool) -> dict[str, Any]:
    """A probe or an object as ptypy names its properties: data (layer, y, x); psize (y, x), metres, 1 where it is not known;
    center (y, x), the pixel of physical zero; origin, metres."""
    size = np.array(image.pixel_size_m or (1.0, 1.0), float)
    center = np.array([n // 2 for n in image.data.shape[-2:]] if probe else [-n for n in image.offset], float)
    shape = [int(n) for n in image.data.shape]
    return {"ID": name, "data": image.data, "shape": shape, "psize": size, "center": center, "origin": -center * size}
