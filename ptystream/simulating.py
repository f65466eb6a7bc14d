"""The detector side of a configuration: every source that its own plug-in can play, on the wire that a session would listen to.

A plug-in that can has `simulator(parameters, channel, rehearsal)`, which makes a `Simulator` or raises `Unsimulated`; `rehearsal`
is the simulated scan, from the entry point 'rehearsal' of the group `ptystream.simulators`. One that cannot may say why, as
`unsimulated`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import entry_points
from types import TracebackType
from typing import Any, Protocol, Self

from ptystream.params.errors import ConfigurationError, Fault
from ptystream.params.load import Configuration, ScanConfiguration, SourceConfiguration
from ptystream.plan import geometry_of
from ptystream.security import is_loopback

LOOK_S = 0.2
"""How often a thread that has ended is noticed."""


class Unsimulated(ValueError):
    """A parameter with which a source cannot be simulated."""

    def __init__(self, name: str, value: Any, remedy: str) -> None:
        super().__init__(f"{name}: {value!r}: {remedy}")
        self.name, self.value, self.remedy = name, value, remedy


class Simulator(Protocol):
    """One source's part of a simulated scan. A context manager."""

    address: str
    """Where it listens, or connects to."""

    def wait(self, stopped: threading.Event) -> None:
        """Wait until somebody listens, where that can be known. Raises `TimeoutError`."""

    def run(self, number: int, began_ns: int, stopped: threading.Event) -> None:
        """Send acquisition `number`, which begins at `began_ns`."""

    def finish(self) -> None:
        """Wait until everything was taken, where that can be known."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""


class Simulation:
    """All simulators of a configuration. A context manager; raises `ConfigurationError` with all that cannot be simulated."""

    def __init__(self, configuration: Configuration, *, frames: int | None = None, rate_hz: float = 100.0, seed: int = 0) -> None:
        self._faults: list[Fault] = []
        self._stack = ExitStack()
        self.stopped = threading.Event()
        self.simulators: dict[str, Simulator] = {}
        """By channel; a simulator that serves two is there once."""
        self._rehearsals: dict[str, Any] = {}
        rehearsing = next(iter(entry_points(group="ptystream.simulators", name="rehearsal"))).load()
        try:
            for scan in configuration.scans:
                self._scan(scan, configuration, rehearsing, {"frames": frames, "rate_hz": rate_hz, "seed": seed})
            if self._faults:
                raise ConfigurationError(self._faults)
        except BaseException:
            self._stack.close()
            raise

    def _scan(self, scan: ScanConfiguration, configuration: Configuration, rehearsing: Any, asked: Mapping[str, Any]) -> None:
        if not scan.sources:
            return  # it follows another one, with the next acquisition of that one's sources
        path = f"scans.{scan.label}"
        geometry = geometry_of(scan)
        if geometry.near or scan.model.volumes:
            what = ("propagation", "nearfield") if geometry.near else ("name", scan.model.__name__)
            self._faults.append(Fault(f"{path}.{what[0]}", what[1], "is not simulated: far field and two dimensions are"))
            return
        raster = scan.data.parameters.raster
        lacking = {
            "pad": geometry.pad,
            "data.signals": geometry.signals,
            "data.raster.flyback": 0 if raster is None else raster.flyback,
        }
        if any(lacking.values()):
            for name, value in lacking.items():
                if value:
                    self._faults.append(Fault(f"{path}.{name}", value, "is not simulated: leave it out of a rehearsal"))
            return
        pixel = geometry.pixel_size_m
        if pixel is not None and abs(pixel[0] - pixel[1]) > 1e-3 * pixel[0]:
            self._faults.append(Fault(f"{path}.data.psize", scan.data.parameters.psize, "square pixels are simulated"))
            return
        p, rule = scan.data.parameters, configuration.root.live.epochs
        told = {name: getattr(p, name) for name in ("energy", "distance", "psize")}
        told["psize"] = told["psize"][0] if isinstance(told["psize"], tuple) else told["psize"]
        try:
            rehearsal = rehearsing.Rehearsal.of(
                p,
                None if scan.positions is None else scan.positions.parameters,
                1.0 if pixel is None else pixel[0],
                told,
                metadata={rule.partition(":")[2]: "{}"} if rule.startswith("metadata:") else {},
                **asked,
            )
        except ValueError as error:
            self._refuse(f"{path}.data", error)
            return
        self._rehearsals[scan.label] = rehearsal
        served: set[tuple[str, str]] = set()
        for kind, source in scan.sources.items():
            where = f"{path}.data" if kind == "data" else f"{path}.data.{kind.replace('also.', 'also[')}{']' * ('.' in kind)}"
            place = getattr(source.parameters, "address", None)
            if isinstance(place, str):
                if (source.name, place) in served:
                    continue  # one publisher has everything
                served.add((source.name, place))
            self._source(source, f"{scan.label}/{kind}", where, rehearsal)

    @property
    def frames(self) -> dict[str, int]:
        """How many each scan has."""
        return {label: rehearsal.beamline.frames for label, rehearsal in self._rehearsals.items()}

    def _source(self, source: SourceConfiguration, channel: str, path: str, rehearsal: Any) -> None:
        make = getattr(source.plugin, "simulator", None)
        if make is None:
            why = getattr(source.plugin, "unsimulated", "is not simulated")
            self._faults.append(Fault(f"{path}.name", source.name, why))
            return
        for address in self._addresses(source.parameters):
            if not is_loopback(address):
                remedy = "is simulated on this machine alone: put tcp://127.0.0.1:… into a copy of the configuration"
                self._faults.append(Fault(f"{path}.address", address, remedy))
                return
        try:
            self.simulators[channel] = self._stack.enter_context(make(source.parameters, channel, rehearsal))
        except ValueError as error:
            self._refuse(path, error)
        except OSError as error:
            self._faults.append(Fault(path, None, f"{error}: what listens there already?"))

    @staticmethod
    def _addresses(parameters: Any) -> tuple[str, ...]:
        if hasattr(parameters, "host"):
            return (f"tcp://{parameters.host}:{parameters.port}",)
        address = getattr(parameters, "address", None)
        return tuple(getattr(parameters, "addresses", None) or ((address,) if isinstance(address, str) else ()))

    def _refuse(self, path: str, error: ValueError) -> None:
        if isinstance(error, Unsimulated):
            self._faults.append(Fault(f"{path}.{error.name}", error.value, error.remedy))
        else:
            self._faults.append(Fault(path, None, str(error)))

    def run(self, scans: int = 1, first: int = 1, on_begin: Callable[[int], None] | None = None) -> None:
        """Wait until everybody listens, then send scan after scan, numbered from `first`. Raises what a simulator raised."""
        for rehearsal in self._rehearsals.values():
            rehearsal.frames()  # they are computed now, and not while they are to be sent
        self._together(lambda one: one.wait(self.stopped))
        for number in range(first, first + scans):
            if self.stopped.is_set():
                return
            if on_begin is not None:
                on_begin(number)
            began = time.time_ns()
            self._together(lambda one, number=number, began=began: one.run(number, began, self.stopped))  # type: ignore[misc]
        self._together(lambda one: None if self.stopped.is_set() else one.finish())

    def _together(self, act: Callable[[Simulator], object]) -> None:
        """For every simulator in a thread of its own."""
        failures: list[BaseException] = []

        def body(one: Simulator) -> None:
            try:
                act(one)
            except BaseException as error:
                failures.append(error)
                self.stopped.set()

        threads = [threading.Thread(target=body, args=(one,), name=name, daemon=True) for name, one in self.simulators.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not (self.stopped.is_set() and not failures):
                thread.join(LOOK_S)
            if self.stopped.is_set():
                thread.join(2.0)
        if failures:
            raise failures[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stopped.set()
        self._stack.__exit__(kind, error, trace)
