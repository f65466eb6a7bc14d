"""Engines compiled before the first frame comes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Context
from ptystream.model.scan_model import ScanModel
from ptystream.reconstruction import PodTable, Reconstruction
from ptystream.run_state import EngineEntry
from ptystream.scan.block import Block


class Sample:
    """Two all but empty frames, to compile on."""

    slab_frames, limit = 2, 65535.0

    def __init__(self, shape: tuple[int, int], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.mask = np.ones(shape, np.uint8)
        self.weights: NDArray[np.float32] | None = None
        self._slab = np.ones((2, *shape), dtype)
        self._slab.reshape(2, -1)[:, 0] = 1 << 14  # zero frequency stands out, as engines may ask of it

    def slab(self, number: int) -> Any:
        """The only one."""
        return self._slab


def warm_up(first: ScanModel, engines: Iterable[EngineEntry], context: Context) -> None:
    """Run each engine on two empty frames of every usual count type, as the model of the first scan places them, so that nothing
    compiles when frames come."""
    for dtype in ("u2", "u4"):
        for entry in engines:
            model = first.again()
            store = Sample(first.store_shape, dtype)
            made = Reconstruction({}, {}, PodTable(model.pods))
            zero = np.zeros(2, np.int64)
            block = Block(first.label, np.arange(2), np.arange(2), np.zeros((2, 2)), np.ones(2), zero)
            model.start(made, block, store)
            model.place(made, block)
            engine = entry.make(entry.parameters)
            engine.start(made, {model.number: store}, context)
            start = int(getattr(entry.parameters, "probe_update_start", 0))
            engine.iterate(start + 1 if start < 5 else 1)
            engine.snapshot(("coverage",))
            engine.finish()
