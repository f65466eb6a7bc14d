"""Where in the documents a quantity is: locators, and the parameters that list them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator

from ptystream.params.base import Branch, parameter

from ..units import UnitError, converted, factor_of, is_length

KINDS = ("event", "hint", "start", "config", "baseline", "const")
QUANTITIES = {
    **{"y": "length", "x": "length", "z": "length", "angle": "angle", "dose": "number"},
    **{"energy": "energy", "distance": "length", "psize": "length"},
    **{"center_y": "number", "center_x": "number", "num_frames": "number"},
}
"""Quantity → dimension."""
CHANNELS = ("y", "x", "z", "angle", "dose")
"""Quantities that are read for every frame."""


@dataclass(frozen=True, slots=True)
class Locator:
    """One place where a quantity may be, and how its readings are turned into ours."""

    text: str
    kind: str
    path: str
    unit: str | None = None
    scale: float = 1.0
    """Sign included."""
    offset: float = 0.0
    """Added at last, in our unit."""

    def linear(self, unit: str | None, dimension: str) -> tuple[float, float]:
        """(scale, offset) that turn readings into ours; `unit` is what the document says. Raises `UnitError`."""
        return factor_of(self.unit or unit, dimension) * self.scale, self.offset

    def value(self, raw: Any, unit: str | None, dimension: str) -> NDArray[np.float64]:
        """A constant in our unit, shape (1,) or (n,). Raises `UnitError`, or `ValueError` for what is no number."""
        if isinstance(raw, (str, bytes, bool, Mapping)):
            raise ValueError(f"{self.text}: {raw!r:.60} is no number")
        try:
            numbers = np.atleast_1d(np.asarray(raw, np.float64))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.text}: {raw!r:.60} is no number") from error
        found = converted(numbers, self.unit or unit, dimension) * self.scale + self.offset
        if not 0 < found.size <= 16 or not np.isfinite(found).all():
            raise ValueError(f"{self.text}: {raw!r:.60} is no finite number")
        return found


def locator(text: str, dimension: str) -> Locator:
    """The locator that a text means: 'kind:path; unit=um; sign=-1; scale=2; offset=3 um'. Raises `ValueError`."""
    place, *options = (part.strip() for part in text.split(";"))
    kind, _, path = place.partition(":")
    if kind not in KINDS or not path:
        raise ValueError(f"{text!r}: must be one of {', '.join(f'{k}:…' for k in KINDS)}")
    if kind == "config" and not all(path.partition(":")[::2]):
        raise ValueError(f"{text!r}: must be config:device:key")
    if kind == "hint" and path not in ("0", "1", "2"):
        raise ValueError(f"{text!r}: hint:0 is the slowest axis of the scan, hint:1 the next")
    given: dict[str, str] = {}
    for option in options:
        name, equals, content = (part.strip() for part in option.partition("="))
        if name not in ("unit", "sign", "scale", "offset") or not equals or name in given:
            raise ValueError(f"{text!r}: {option!r}: options are unit=, sign=, scale= and offset=, each once")
        given[name] = content
    if kind == "const":
        path, of = _number_and_unit(path, text)
        given.setdefault("unit", of)
    unit = given.get("unit") or None
    wavelength = dimension == "energy" and is_length(unit)
    if (unit is not None or kind == "const") and not wavelength:
        factor_of(unit, dimension)
    sign, scale = (_number(given.get(name, "1"), text) for name in ("sign", "scale"))
    if abs(sign) != 1.0 or scale == 0.0:
        raise ValueError(f"{text!r}: sign must be 1 or -1, and scale not 0")
    number, of = _number_and_unit(given.get("offset", "0"), text)
    offset = _number(number, text)
    if of and dimension != "number":
        offset *= factor_of(of, dimension)
    return Locator(text, kind, path, unit, sign * scale, offset)


def _number_and_unit(text: str, whole: str) -> tuple[str, str]:
    number, _, unit = text.strip().partition(" ")
    _number(number, whole)
    return number, unit.strip()


def _number(text: str, whole: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{whole!r}: {text!r} is no finite number")
    return number


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _of(dimension: str) -> Any:
    def check(value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            locator(text, dimension)
        return value

    return AfterValidator(check)


Length = Annotated[tuple[str, ...], BeforeValidator(_listed), _of("length")]
Energy = Annotated[tuple[str, ...], BeforeValidator(_listed), _of("energy")]
Angle = Annotated[tuple[str, ...], BeforeValidator(_listed), _of("angle")]
Number = Annotated[tuple[str, ...], BeforeValidator(_listed), _of("number")]


class LocatorsParameters(Branch):
    """Where each quantity is in the documents: locators, in the order in which they are tried; none: it is not looked for.

    `event:key`, read for every frame, from events or from the file that a stream names; `hint:0`, the slowest axis in the
    start's hints (`hint:1` the next); `start:scan.distance`, in the start document; `config:device:key`, in a descriptor's
    configuration; `baseline:key`; `const:2.05 m`. Behind it, separated by semicolons, `unit=` (where the document tells
    none; a length without a unit is refused), `sign=-1`, `scale=` and `offset=` (added at last).
    """

    y: Length = parameter((), ours=True)
    """Vertical position, a length."""

    x: Length = parameter((), ours=True)
    """Horizontal position, a length."""

    z: Length = parameter((), ours=True)
    """Position along z, a length, for Bragg3dModel; under `positions` only."""

    angle: Angle = parameter((), ours=True)
    """Rocking angle, for Bragg3dModel; under `positions` only."""

    dose: Number = parameter((), ours=True)
    """Beam intensity I0; under `positions` only, with `channels.dose: dose`."""

    energy: Energy = parameter((), ours=True)
    """Photon energy; a wavelength is converted. Told as `energy`, keV."""

    distance: Length = parameter((), ours=True)
    """From the sample to the detector. Told as `distance`, metres."""

    psize: Length = parameter((), ours=True)
    """Pixel of the detector, one number or (y, x). Told as `psize`, metres."""

    center_y: Number = parameter((), ours=True)
    """Row of the beam on the detector; told with `center_x` as `center`, pixels (y, x)."""

    center_x: Number = parameter((), ours=True)
    """Column of the beam on the detector."""

    num_frames: Number = parameter(("start:num_points",), ours=True)
    """Frames that the scan will have. Told as `num_frames`, for progress."""

    def of(self, quantity: str) -> tuple[Locator, ...]:
        """The locators of a quantity, in order."""
        return tuple(locator(text, QUANTITIES[quantity]) for text in getattr(self, quantity))


__all__ = ["CHANNELS", "QUANTITIES", "Locator", "LocatorsParameters", "UnitError", "locator"]
