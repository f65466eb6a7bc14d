"""A scan as one of a series, a tomogram say: which series it belongs to, and at which angle it was taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import model_validator

from ptystream.params.base import Branch, parameter

MAX_TEXT = 200


class SeriesParameters(Branch):
    """Which series a scan belongs to: told with pictures and results, and in the names of files."""

    id: str | None = parameter(None, ours=True)
    """Name of the series; None: see `id_key`."""

    id_key: str | None = parameter(None, ours=True)
    """Key under which the metadata of a source's start hold the name or number of the series; 'a.b' looks for b in a. None: no
    such key."""

    angle: float | None = parameter(None, ours=True)
    """Angle of the sample, degrees; None: see `angle_key`."""

    angle_key: str | None = parameter(None, ours=True)
    """Key under which the metadata of a source's start hold the angle, degrees; as `id_key`. None: the median reading of the
    first frames, where a channel measures it (`positions.channels.angle`)."""

    @model_validator(mode="after")
    def _once(self) -> Self:
        for name in ("id", "angle"):
            if getattr(self, name) is not None and getattr(self, f"{name}_key") is not None:
                raise ValueError(f"{name}_key: {getattr(self, f'{name}_key')!r}: `{name}` is given; leave one of them out")
        return self


@dataclass(frozen=True, slots=True)
class Series:
    """What is known of a scan's place in a series."""

    id: str | None = None
    angle: float | None = None
    """Degrees."""

    def __bool__(self) -> bool:
        return self.id is not None or self.angle is not None

    def keys(self) -> dict[str, Any]:
        """For the names of files; what is not known is left out."""
        return {k: v for k, v in {"series": self.id, "angle": self.angle}.items() if v is not None}


def series_of(p: SeriesParameters, metadata: Iterable[Mapping[str, Any]], measured: float | None = None) -> Series:
    """What configuration, metadata of the sources (the first that has a key counts), or the channel say."""
    starts = list(metadata)
    name = p.id if p.id_key is None else _found(p.id_key, starts)
    text = str(name)[:MAX_TEXT] or None if isinstance(name, (str, int, float)) and not isinstance(name, bool) else None
    if p.angle is not None:
        return Series(text, p.angle)
    angle = measured if p.angle_key is None else _found(p.angle_key, starts)
    try:
        number = math.nan if angle is None or isinstance(angle, bool) else float(angle)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    return Series(text, number if math.isfinite(number) else None)


def _found(key: str, starts: Iterable[Mapping[str, Any]]) -> Any:
    for start in starts:
        value: Any = start
        for part in (key,) if key in start else key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None
