"""The latest snapshots as the engine held them, for those who want the numbers and not the picture."""

from __future__ import annotations

from collections import OrderedDict

from ptystream.publish.snapshot import Snapshot

EXACT_BYTES = 256 << 20
"""Bytes of all together; the newest is kept whatever its size."""


class Exact:
    """By the serial number of the picture made of each. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Snapshot] = OrderedDict()
        self._bytes = 0

    def keep(self, serial: int, snapshot: Snapshot) -> None:
        """Add the newest; of what is too much the oldest goes."""
        self._kept[serial] = snapshot
        self._bytes += size_of(snapshot)
        while self._bytes > EXACT_BYTES and len(self._kept) > 1:
            self._bytes -= size_of(self._kept.popitem(last=False)[1])

    def get(self, serial: int) -> Snapshot | None:
        """None where it is gone."""
        return self._kept.get(serial)

    @property
    def serials(self) -> tuple[int, ...]:
        """Of those that are there, the oldest first."""
        return tuple(self._kept)


def size_of(snapshot: Snapshot) -> int:
    """Bytes of its images."""
    images = [*snapshot.probe.values(), *snapshot.object.values()]
    return sum(image.data.nbytes for image in images) + sum(seen.nbytes for seen in snapshot.coverage.values())
