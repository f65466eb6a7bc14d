"""One picture of a run, as it came from the session, and as one message to a browser."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ptystream.publish.display import Display
from ptystream.publish.schema import describe_display

_SERIAL = itertools.count(1)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Picture:
    """A display-ready snapshot: its header as `docs/reference/snapshots.md` has it, and its arrays by name, in their order."""

    run: str
    header: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    serial: int = field(default_factory=lambda: next(_SERIAL))
    """No other picture of this process has it."""

    @staticmethod
    def of(shown: Display) -> Picture:
        """What is to be shown; nothing is copied."""
        header, arrays = describe_display(shown)
        return Picture(shown.about.run, header, dict(zip((entry["name"] for entry in header["arrays"]), arrays, strict=True)))

    @property
    def nbytes(self) -> int:
        """Of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())


def framed(header: Mapping[str, Any], body: bytes) -> bytes:
    """A message: u32 length of the JSON header (little endian), the header padded with spaces to a multiple of 8, the body."""
    text = json.dumps(header).encode()
    text += b" " * (-(4 + len(text)) % 8)
    return b"".join((struct.pack("<I", len(text)), text, body))
