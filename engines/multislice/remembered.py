"""What a checkpoint holds of the optimiser, and the optimiser that goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .descent import Descent
from .memory import Pair


def noted(descent: Descent, get: Callable[[Any], Any]) -> dict[str, Any]:
    """Of a descent, on the host: what `remember` takes. `get`: from where pairs lie to the host."""
    history = descent.history
    pairs = {
        str(k): {"s": {n: get(v) for n, v in pair.s.items()}, "y": {n: get(v) for n, v in pair.y.items()}, "rho": pair.rho}
        for k, pair in enumerate(history.pairs)
    }
    return {"pairs": pairs, "scale": dict(history.scale), "rejected": descent.rejected, "held": dict(descent.held)}


def remember(descent: Descent, state: Mapping[str, Any], bring: Callable[[Any], Any]) -> None:
    """Let a new descent know what `noted` has noted; `bring`: from the host to where pairs lie."""
    history = descent.history
    history.scale = {str(name): float(scale) for name, scale in state.get("scale", {}).items()}
    for _, held in sorted(state.get("pairs", {}).items(), key=lambda item: int(item[0])):
        s, y = ({name: bring(np.asarray(v)) for name, v in held[part].items()} for part in ("s", "y"))
        history.pairs.append(Pair(s, y, float(held["rho"])))
    descent.rejected = int(state.get("rejected", 0))
    descent.held = {str(name): int(left) for name, left in state.get("held", {}).items()}
