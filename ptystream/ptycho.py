"""`Ptycho`: one reconstruction from a script, as those write it who come from ptypy. A session runs underneath."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ptystream.launch import launch
from ptystream.parallel import team
from ptystream.params.load import load, plugins, tree_of
from ptystream.params.plain import Param, merged, plain
from ptystream.plan import make_plan
from ptystream.reconstruction import Storage, described
from ptystream.results import result_of
from ptystream.run import Run
from ptystream.session import Session, SessionError
from ptystream.storage import ptyr
from ptystream.transport import Transport

__all__ = ["Container", "Param", "Ptycho", "StorageView"]


class StorageView:
    """One probe or object: an array that knows its place. `np.asarray(view)` is its data."""

    def __init__(self, name: str, storage: Storage, *, probe: bool) -> None:
        self.ID = name
        self.data: NDArray[np.complexfloating[Any, Any]] = storage.data
        """Shape (layer, y, x)."""
        self.psize = np.array(storage.pixel_size_m or (1.0, 1.0), float)
        """Pixel size (y, x), metres; 1 where it is not known."""
        place = [n // 2 for n in storage.shape] if probe else [-o for o in storage.offset]
        self.center = np.array(place, float)
        """Pixel of physical zero, (y, x)."""
        self.origin = -self.center * self.psize
        """Place of the first pixel, metres."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `data`."""
        return tuple(self.data.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.data, dtype) if copy else np.asarray(self.data, dtype)

    def grids(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Places (y, x) of all pixels, metres, each of the shape of `data`."""
        lines = [np.arange(n) * p + o for n, p, o in zip(self.shape[-2:], self.psize, self.origin, strict=True)]
        y, x = np.meshgrid(*lines, indexing="ij")
        return np.broadcast_to(y, self.shape), np.broadcast_to(x, self.shape)

    def __repr__(self) -> str:
        return f"<{self.ID}: {' × '.join(str(n) for n in self.shape)} {self.data.dtype}>"


class Container(Mapping[str, StorageView]):
    """Probes or objects by name. With one of them, `np.asarray(container)` and `container.data` are its array."""

    def __init__(self, held: Mapping[str, Storage], *, probe: bool) -> None:
        self.storages = {name: StorageView(name, storage, probe=probe) for name, storage in held.items()}
        """Name → view."""

    @property
    def S(self) -> dict[str, StorageView]:  # noqa: N802
        """The same as `storages`."""
        return self.storages

    @property
    def data(self) -> NDArray[np.complexfloating[Any, Any]]:
        """Of the only storage. Raises `ValueError` where there are several."""
        if len(self.storages) != 1:
            raise ValueError(f"there are {len(self.storages)}: name one of {', '.join(self.storages)}")
        return next(iter(self.storages.values())).data

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.data, dtype) if copy else np.asarray(self.data, dtype)

    def __repr__(self) -> str:
        return f"<{', '.join(repr(view)[1:-1] for view in self.storages.values())}>"

    def __getitem__(self, name: str) -> StorageView:
        return self.storages[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.storages)

    def __len__(self) -> int:
        return len(self.storages)


class Ptycho:
    """A reconstruction: `Ptycho(parameters).run()`, then `.probe`, `.obj` and `.runtime`.

    `parameters` is a nested dict, a `Param`, any nested namespaces, or the name of a YAML, JSON or TOML file; `more`
    are laid over its top level. `level`, as in ptypy, says how far the constructor goes: up to 3 the parameters are
    checked, from 4 on the engines are compiled too, from 5 on everything is run.

    Where an MPI launcher has started several processes, only the first comes back from here: the others work for it and exit
    with it. Raises `ConfigurationError` with everything that is wrong with the parameters.
    """

    def __init__(self, parameters: Any = None, level: int = 2, *, transports: Mapping[str, Transport] | None = None, **more: Any):
        """`transports`, by channel, stand in for the configured sources."""
        team()
        name = Path(parameters).name.split(".")[0] if isinstance(parameters, (str, Path)) else _script()
        self.configuration = load(merged(tree_of({} if parameters is None else parameters), plain(more)), name=name)
        self.p = Param()
        """The parameters as they were given."""
        self.p.update(plain(self.configuration.given), convert=True)
        self.results: list[Path] = []
        """Files that were written."""
        self._transports = transports
        self._on_document: list[Callable[[str, dict[str, Any]], object]] = []
        self._session: Session | None = None
        self._loaded: ptyr.Result | None = None
        if level >= 4:
            plan = make_plan(self.configuration, transports=transports)
            plan.warm_up()
        if level >= 5:
            self.run()

    @classmethod
    def load_run(cls, path: str | Path) -> Ptycho:
        """A result of ours with `.probe`, `.obj` and `.runtime`; its `run()` does it again from its parameters."""
        result = ptyr.read(path)
        made = cls(result.parameters)
        made._loaded, made.results = result, [Path(path)]
        return made

    def run(self) -> Ptycho:
        """Take the data, reconstruct and save; returns when all is done.

        Ctrl-c saves what is there and raises `KeyboardInterrupt`. Raises `SessionError` where a part died, and where no frame
        could be used.
        """
        try:
            interrupted = launch(
                self.configuration,
                Console(stderr=True),
                transports=self._transports,
                on_session=self._watch,
                on_document=self._told if self._on_document else None,
            )
        finally:
            self.results = [] if self._session is None else list(self._session.results)
        if interrupted:
            raise KeyboardInterrupt
        run = None if self._session is None else self._session.current
        if self._session is not None and (run is None or run.reconstruction is None or not run.frames):
            raise SessionError(f"{self.configuration.name}: nothing was reconstructed: {self._session.fruitless_because()}")
        return self

    def subscribe(self, callback: Callable[[str, dict[str, Any]], object]) -> Callable[[], None]:
        """Before `run`: have `callback(name, document)` called for each of Bluesky's documents, in a thread of its own;
        returns what ends that."""
        self._on_document.append(callback)
        return lambda: self._on_document.remove(callback) if callback in self._on_document else None

    def _told(self, name: str, document: dict[str, Any]) -> None:
        failed: list[Exception] = []
        for callback in list(self._on_document):
            try:
                callback(name, document)
            except Exception as error:  # the others are told all the same
                failed.append(error)
        if failed:
            raise failed[0]

    def stop(self) -> None:
        """From another thread: end the run at the next look; what is there is saved."""
        if self._session is not None:
            self._session.stop()

    def _watch(self, session: Session) -> None:
        self._session, self._loaded = session, None

    @property
    def _run(self) -> Run:
        """The last run."""
        run = None if self._session is None else self._session.current
        if run is None or run.reconstruction is None:
            raise RuntimeError(f"{self.configuration.name}: nothing is reconstructed yet: call run()")
        return run

    @property
    def probe(self) -> Container:
        """Probes of the last run."""
        if self._loaded is not None:
            return Container(self._loaded.probe, probe=True)
        run = self._run
        assert run.reconstruction is not None
        return Container((run.reconstruction if run.engine is None else run.engine.snapshot()).probes, probe=True)

    @property
    def obj(self) -> Container:
        """Objects of the last run."""
        if self._loaded is not None:
            return Container(self._loaded.object, probe=False)
        run = self._run
        assert run.reconstruction is not None
        return Container((run.reconstruction if run.engine is None else run.engine.snapshot()).objects, probe=False)

    @property
    def positions(self) -> NDArray[np.float64]:
        """Positions used, (frame, 2), metres (object pixels where no pixel size is known)."""
        return self._result().positions_m

    @property
    def misfit(self) -> NDArray[np.float64]:
        """Data misfit of probe × object in each iteration: [amplitude, photon, Poisson expectation of photon]."""
        return self._result().misfit

    @property
    def runtime(self) -> Param:
        """What the last run did: `run`, `start`, `stop`, `iter_info` with an entry for each pass, as in a result file."""
        result = self._result()
        made = Param(run=result.run, start=result.started, stop=time.time(), ledger=dict(result.ledger))
        if self._session is not None:
            made.stop = self._session.ended or made.stop
        made.iter_info = [Param(info) for info in result.iter_info]
        return made

    def save_run(self, path: str | Path) -> Path:
        """Write the last run's result into another file as well."""
        return ptyr.write(path, self._result())

    def print_stats(self) -> None:
        """Print sizes and places of probes, objects and frames."""
        run = self._run
        assert run.reconstruction is not None
        print("\n".join(described(run.reconstruction)))

    def plot_overview(self, path: str | Path | None = None, layout: str | None = None) -> Any:
        """A matplotlib figure of the last run, in a layout of `io.autoplot` (None: the one given there); with `path` also into a
        file."""
        figure, layout = plugins("viewers")["figure"], layout or self.configuration.root.io.autoplot.layout
        if path is not None:
            figure.save_png(self._result(), path, layout)
        return figure.draw_result(self._result(), layout)

    def _result(self) -> ptyr.Result:
        return self._loaded or result_of(self._run, self.configuration)

    def __repr__(self) -> str:
        state = "loaded" if self._loaded else "not run" if self._session is None else str(self._session.status()["state"])
        return f"<Ptycho {self.configuration.name}: {state}>"


def _script() -> str:
    """Name of the running script up to its first dot."""
    name = Path(sys.argv[0]).name.split(".")[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else ""
    return name or "ptystream"
