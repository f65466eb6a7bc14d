"""What is known of one run: its documents so far, and where in them each quantity was found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..wire import WireError
from .columns import Columns
from .locators import QUANTITIES, Locator, LocatorsParameters, UnitError

MAX_DESCRIPTORS = 256
MAX_PER_EVENT = 1 << 16
"""Frames or samples of one event."""
STANDARD = ("energy", "distance", "psize", "center", "num_frames", "saturation", "mask", "flat", "at_once")
"""Metadata with a meaning for the core: what the start document says under these names is no such thing unless a locator
says so."""


@dataclass(slots=True)
class Descriptor:
    """One EventDescriptor."""

    uid: str
    stream: str
    data_keys: Mapping[str, Mapping[str, Any]]
    configuration: Mapping[str, Any]

    @property
    def images(self) -> list[str]:
        """Data keys that are pictures."""
        return [key for key, told in self.data_keys.items() if is_image(told.get("shape"))]

    def per_event(self, key: str) -> int:
        """Frames, or samples, of one event."""
        shape = self.data_keys[key].get("shape") or []
        lengths = [n for n in shape if isinstance(n, int)]
        count = math.prod(lengths[:-2]) if is_image(shape) else lengths[0] if len(lengths) == 1 else 1
        if not 0 < count <= MAX_PER_EVENT:
            raise WireError("wrong_shape", f"data key {key!r:.60} has shape {shape!r:.60}")
        return count


@dataclass(slots=True)
class Run:
    """One run."""

    uid: str
    start: Mapping[str, Any] | None
    descriptors: dict[str, Descriptor] = field(default_factory=dict)
    readings: dict[str, tuple[Any, str | None]] = field(default_factory=dict)
    """First reading of each key of the baseline → (value, unit)."""
    main: Descriptor | None = None
    """Descriptor of the stream that frames and positions are in."""
    frames: str | None = None
    """Data key of the frames, where they are taken from here."""
    columns: Columns | None = None
    channels: dict[str, tuple[str, float, float, int]] = field(default_factory=dict)
    """Channel → (data key, scale, offset, readings of one event that become one sample)."""
    per_event: int = 1
    """Samples of one event."""
    found: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """Quantity → (locator, value or data key)."""
    told: bool = False
    """Whether its start has been said."""
    next_event: int | None = None
    """Sequence number expected next."""
    missed: int = 0

    def candidates(self, where: Locator) -> tuple[Any, str | None] | None:
        """(raw value, unit in the documents) of a constant that a locator finds; None where it finds nothing."""
        if where.kind == "const":
            return where.path, None
        if where.kind == "start":
            value: Any = self.start
            for name in where.path.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
            return None if value is None else (value, None)
        if where.kind == "baseline":
            return self.readings.get(where.path)
        if where.kind == "config":
            device, _, key = where.path.partition(":")
            for descriptor in self.descriptors.values():
                told = descriptor.configuration.get(device)
                if isinstance(told, Mapping) and isinstance(told.get("data"), Mapping):
                    for name in (key, f"{device}-{key}", f"{device}_{key}"):
                        if told["data"].get(name) is not None:
                            return told["data"][name], unit_of(told.get("data_keys"), name)
        return None

    def key_of(self, where: Locator) -> str | None:
        """Data key of the main stream that a locator means; None where it is not there, or means no data key."""
        key: Any = where.path
        if where.kind == "hint":
            try:
                key = self.start["hints"]["dimensions"][int(where.path)][0][0]  # type: ignore[index]
            except (TypeError, KeyError, IndexError, ValueError):
                return None
        elif where.kind != "event":
            return None
        return key if self.main is not None and isinstance(key, str) and key in self.main.data_keys else None

    def constant(self, places: LocatorsParameters, quantity: str) -> Iterator[WireError]:
        """Find a quantity that is the same for all frames; what is there and cannot be used is told."""
        for where in places.of(quantity):
            told = self.candidates(where)
            if told is None:
                continue
            try:
                raw = float(told[0]) if where.kind == "const" else told[0]
                value = where.value(raw, told[1], QUANTITIES[quantity])
            except UnitError as error:
                yield WireError("unit_missing", f"{quantity}: {where.text}: {error}")
            except ValueError as error:
                yield WireError("bad_value", f"{quantity}: {error}")
            else:
                self.found[quantity] = (where.text, value.tolist() if value.size > 1 else float(value[0]))
                return

    def metadata(self) -> dict[str, Any]:
        """For `ScanStarted`: the plain entries of the start document, and what was found, in our units."""
        plain = {
            key: value
            for key, value in (self.start or {}).items()
            if isinstance(value, (str, int, float)) and len(str(value)) < 1000 and key not in STANDARD
        }
        told: dict[str, Any] = dict(list(plain.items())[:200])
        for key in ("energy", "distance", "psize"):
            if key in self.found:
                value = self.found[key][1]
                if not np.all(np.asarray(value) > 0):
                    continue
                told[key] = tuple(value) if isinstance(value, list) else value
        if "center_y" in self.found and "center_x" in self.found:
            told["center"] = (self.found["center_y"][1], self.found["center_x"][1])
        number = self.found.get("num_frames", ("", 0))[1]
        if isinstance(number, float) and number > 0 and number == int(number):
            told["num_frames"] = int(number) * (self.main.per_event(self.frames) if self.main and self.frames else 1)
        return told


def is_image(shape: Any) -> bool:
    """Whether a data key's shape is that of frames."""
    lengths = shape if isinstance(shape, (list, tuple)) else ()
    return len(lengths) >= 2 and all(isinstance(n, int) for n in lengths) and lengths[-1] > 1 and lengths[-2] > 1


def unit_of(data_keys: Any, key: str) -> str | None:
    """The unit that a data key tells."""
    told = data_keys.get(key) if isinstance(data_keys, Mapping) else None
    unit = told.get("units") if isinstance(told, Mapping) else None
    return unit if isinstance(unit, str) else None
