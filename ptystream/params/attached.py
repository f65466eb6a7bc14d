"""A large array that a script hands over in memory: it is used where it lies, and told in files by its shape alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MARK = "<array in memory: "


class Attached:
    """Holds the array, or what is left of it where parameters were read from a file."""

    __slots__ = ("array", "text")

    def __init__(self, array: NDArray[Any] | None, text: str = "") -> None:
        self.array = array
        self.text = text if array is None else f"{MARK}{' × '.join(map(str, array.shape))} {array.dtype}>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array, also where it is gone; () where that is not told."""
        if self.array is not None:
            return tuple(self.array.shape)
        sizes = self.text.removeprefix(MARK).rpartition(" ")[0].split(" × ")
        return tuple(int(n) for n in sizes) if all(n.isdecimal() and len(n) < 12 for n in sizes) else ()

    def __deepcopy__(self, memo: object) -> Attached:
        return self

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attached) and self.array is other.array and self.text == other.text

    __hash__ = None  # type: ignore[assignment]


def attached(value: Any) -> Attached | None:
    """What a parameter that takes such an array means. Raises `ValueError` for a text that is none."""
    if value is None or isinstance(value, Attached):
        return value
    if isinstance(value, str):
        if value.startswith(MARK):
            return Attached(None, value)
        raise ValueError("must be an array in memory; name a file instead")
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"holds {array.dtype}: must be real numbers")
    return Attached(array)
