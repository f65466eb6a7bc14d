"""The brightest pixel of whole objects while windows of them are updated: found anew without a look at all pixels."""

from __future__ import annotations

from collections.abc import Sequence

from ptystream.reconstruction import Reconstruction

from .backend import Backend
from .pieces import Piece, Seen, layers_seen

Window = tuple[slice, slice]
Bright = tuple[float, int, int]
"""(Σ|O|² of the brightest pixel of an object, its row and column in the array)."""


class Brightest:
    """Follows the objects through one iteration: `peaks` is to be asked after every batch."""

    def __init__(self, on: Backend, reconstruction: Reconstruction) -> None:
        self.on, self.reconstruction = on, reconstruction
        self._held: dict[Seen, Bright] = {}

    def peaks(self, pieces: Sequence[Piece]) -> dict[Seen, float]:
        """The largest Σ|O|² of each whole object, over those of its layers that the pods of a group see."""
        wanted = {view for piece in pieces for _, pods in piece.probe_groups for view in layers_seen(piece.tile, pods)}
        windows = {number: self._windows(pieces, number) for number, _ in wanted | set(self._held)}
        for view in wanted | set(self._held):
            self._held[view] = self._brightest_of(view, windows[view[0]])
        return {view: self._held[view][0] for view in wanted}

    def _brightest_of(self, view: Seen, windows: Sequence[Window]) -> Bright:
        """The brightest pixel after these windows were updated: searched in them, and everywhere only if it was in one."""
        held = self._held.get(view)
        if held is None or self.on.resident:
            return self._search(view, (slice(None), slice(None)))
        inside = any(y.start <= held[1] < y.stop and x.start <= held[2] < x.stop for y, x in windows)
        found = [self._search(view, window) for window in windows]
        best = max(found, key=lambda bright: bright[0], default=held)
        if best[0] >= held[0]:
            return best
        return self._search(view, (slice(None), slice(None))) if inside else held

    def _search(self, view: Seen, part: Window) -> Bright:
        data = list(self.reconstruction.objects.values())[view[0]].data
        power = sum(data[layer][part].real ** 2 + data[layer][part].imag ** 2 for layer in view[1])
        y, x = divmod(int(power.argmax()), power.shape[1])
        return float(power[y, x]), (part[0].start or 0) + y, (part[1].start or 0) + x

    def _windows(self, pieces: Sequence[Piece], number: int) -> list[Window]:
        """Windows of an object that a batch sees, in its array."""
        offset, found = list(self.reconstruction.objects.values())[number].offset, []
        for piece in pieces if not self.on.resident else ():
            pods = [seen[0] for (seen_object, _), seen in piece.object_groups if seen_object == number]
            height, width = piece.residual.shape[-2:]
            for row, column in piece.tile.pods[pods[0]].corner.tolist() if pods else ():
                y, x = row - offset[0], column - offset[1]
                found.append((slice(y, y + height), slice(x, x + width)))
        return found
