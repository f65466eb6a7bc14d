"""A RunEngine's part of a simulated scan: the documents of a step scan, with every quantity where the configuration looks for it.

`simulator.py` has a real RunEngine; here there is none, so that the names, units and places are those of any configuration.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ptystream.simulating import Unsimulated

from ..simulated.rehearsal import LAG_S, Rehearsal
from ..simulated.serving import Serving, Timed, plain_sender
from ..units import factor_of
from .locators import CHANNELS, QUANTITIES, Locator
from .payload import packed

UNITS = {"length": "um", "energy": "keV", "angle": "deg", "number": ""}


def simulator(parameters: Any, channel: str, rehearsal: Rehearsal) -> Serving:
    """What publishes a simulated scan's documents; frames are in them where `channel` is that of frames. Raises `Unsimulated`."""
    p = parameters
    if p.via != "zmq":
        raise Unsimulated("via", p.via, "is not simulated; 'zmq' is")

    def made(number: int, began_ns: int) -> Timed:
        for due, name, document in Documents(p, channel.endswith("/data"), rehearsal, number, began_ns).all():
            yield due, [packed(name, document, p.prefix.encode())]

    return Serving(plain_sender(p, "pub"), made)


class Documents:
    """The documents of one run."""

    def __init__(self, parameters: Any, with_frames: bool, rehearsal: Rehearsal, number: int, began_ns: int) -> None:
        self.p, self._rehearsal, self._number, self._began = parameters, rehearsal, number, began_ns / 1e9
        self._image = (self.p.frames or "camera") if with_frames else None
        self._start: dict[str, Any] = {}
        self._data: dict[str, tuple[dict[str, Any], Any]] = {}
        """Data key → (its description, readings (event, …))."""
        self._configuration: dict[str, dict[str, Any]] = {}
        self._baseline: dict[str, tuple[dict[str, Any], Any]] = {}
        self._readings()
        self._constants()

    def _readings(self) -> None:
        p, rehearsal = self.p, self._rehearsal
        if self._image is not None:
            stack = rehearsal.frames()
            told = {"source": "simulated", "dtype": "array", "dtype_numpy": "<u2", "shape": list(stack.shape[1:])}
            self._data[self._image] = told, stack
            places = rehearsal.beamline.positions_m()
            values, per = {"y": places[:, 0], "x": places[:, 1]}, 1
        else:
            samples, names, per = rehearsal.samples(p), p.channels, p.samples_per_frame
            columns = {role: samples.channels[name] for role in CHANNELS if (name := getattr(names, role)) is not None}
            values = {role: column.reshape(-1, per) if per > 1 else column for role, column in columns.items()}
        for role, column in values.items():
            for where in p.find.of(role):
                if where.kind not in ("event", "hint"):
                    continue
                key = where.path if where.kind == "event" else f"axis_{where.path}"
                told = {"source": "simulated", "dtype": "number" if per == 1 else "array", "shape": [] if per == 1 else [per]}
                self._data[key] = {**told, "units": _unit(where, role)}, _reading(where, role, column)
                if where.kind == "hint":
                    dimensions = self._start.setdefault("hints", {}).setdefault("dimensions", [])
                    dimensions += [[["time"], p.stream]] * (int(where.path) + 1 - len(dimensions))
                    dimensions[int(where.path)] = [[key], p.stream]
                break

    def _constants(self) -> None:
        known = self._rehearsal.geometry
        y, x = self._rehearsal.center()
        values = {**known, "center_y": float(y), "center_x": float(x), "num_frames": float(self._rehearsal.beamline.frames)}
        for quantity, value in values.items():
            where = next((place for place in self.p.find.of(quantity) if place.kind in ("start", "config", "baseline")), None)
            if where is None or value is None:
                continue
            reading = float(_reading(where, quantity, np.array(value)))
            told = {"source": "simulated", "dtype": "number", "shape": [], "units": _unit(where, quantity)}
            if where.kind == "start":
                self._in_start(where.path.split("."), int(reading) if reading == int(reading) else reading)
            elif where.kind == "baseline":
                self._baseline[where.path] = told, reading
            else:
                device, _, key = where.path.partition(":")
                held = self._configuration.setdefault(device, {"data": {}, "timestamps": {}, "data_keys": {}})
                held["data"][key], held["timestamps"][key], held["data_keys"][key] = reading, self._began, told

    def _in_start(self, path: list[str], value: Any) -> None:
        inside = self._start
        for name in path[:-1]:
            inside = inside.setdefault(name, {})
        inside[path[-1]] = value

    def all(self) -> Iterator[tuple[float, str, dict[str, Any]]]:
        """(when it is due, seconds since the scan began; kind; document)."""
        uid, rate = str(self._number), self._rehearsal.rate_hz
        more = {**self._rehearsal.names(self._number), **self.p.only}
        start = {"plan_name": "simulated", "scan_id": self._number, **self._start, **more}
        lag = 0.0 if self._image is not None else LAG_S
        yield lag, "start", {**start, "uid": uid, "time": self._began}
        if self._baseline:
            described = self._descriptor(uid, "baseline", {key: told for key, (told, _) in self._baseline.items()})
            yield lag, "descriptor", described
            yield lag, "event", self._event(described, 1, {key: value for key, (_, value) in self._baseline.items()}, 0.0)
        described = self._descriptor(uid, self.p.stream, {key: told for key, (told, _) in self._data.items()})
        yield lag, "descriptor", described
        count = min((len(values) for _, values in self._data.values()), default=0)
        each = self._rehearsal.beamline.frames / max(1, count)
        for k in range(count):
            due = (k + 1) * each / rate
            yield due, "event", self._event(described, k + 1, {key: values[k] for key, (_, values) in self._data.items()}, due)
        over = {"uid": str(uuid.uuid4()), "run_start": uid, "time": time.time(), "exit_status": "success"}
        yield count * each / rate, "stop", {**over, "num_events": {self.p.stream: count}}

    def _descriptor(self, uid: str, stream: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        told = {"run_start": uid, "uid": str(uuid.uuid4()), "name": stream, "time": self._began}
        own = self._configuration if stream == self.p.stream else {}
        return {**told, "data_keys": dict(keys), "configuration": own, "object_keys": {}, "hints": {}}

    def _event(self, descriptor: Mapping[str, Any], number: int, data: Mapping[str, Any], due_s: float) -> dict[str, Any]:
        told = {"uid": str(uuid.uuid4()), "descriptor": descriptor["uid"], "seq_num": number, "time": self._began + due_s}
        return {**told, "data": dict(data), "timestamps": dict.fromkeys(data, self._began + due_s), "filled": {}}


def _unit(where: Locator, quantity: str) -> str:
    """The unit that a document tells for a quantity."""
    return where.unit or UNITS[QUANTITIES[quantity]]


def _reading(where: Locator, quantity: str, value: Any) -> Any:
    """What stands in a document so that `where` makes `value` of it."""
    dimension = QUANTITIES[quantity]
    return (value - where.offset) / (factor_of(_unit(where, quantity), dimension) * where.scale)
