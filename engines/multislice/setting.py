"""What is in force in one epoch: every course of the parameters at its number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptystream.params.course import at, epochs, limits_of

from .search import Limits
from .variables import PHASE, SPECTRAL_MODULUS, SPECTRAL_PHASE

UPDATED = {
    "object": "update_obj",
    "probe": "update_probe",
    "positions": "update_probe_pos",
    "tilts": "update_tilts",
    "current": "update_beam_current",
    "aberrations": "update_aberrations_array",
    "background": "update_static_background",
}
"""Quantity → parameter that says whether it is refined."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The parameters of one epoch."""

    values: Mapping[str, Any]
    """Every parameter that is a course, by name."""
    moving: frozenset[str]
    """Quantities that are refined."""
    kinds: Mapping[str, str]
    """Those of which only a part is, as of `Variables`."""
    weights: Mapping[str, float]
    """Terms that are added to the loss, with a weight above 0."""
    limits: Limits

    @classmethod
    def of(cls, p: Any, epoch: int, there: frozenset[str], held: Mapping[str, int]) -> Setting:
        """`there`: quantities that there are; `held`: those that are not refined for the time being.

        Beyond the last epoch of the page's, where frames have come for longer, everything stays as it is in that one.
        """
        epoch = min(epoch, epochs(p.epoch_prev, p.epoch_max)[-1])
        courses = [name for name, field in type(p).model_fields.items() if limits_of(field) is not None]
        values = {name: at(getattr(p, name), epoch) for name in courses}
        moving = frozenset(name for name, switch in UPDATED.items() if values[switch] and name in there and name not in held)
        kinds = {}
        if values["phase_only_obj"] and "object" in moving:
            kinds["object"] = PHASE
        if values["tune_only_probe_phase"] and "probe" in moving:
            kinds["probe"] = SPECTRAL_PHASE
        if values["tune_only_probe_abs"] and "probe" in moving:
            kinds["probe"] = SPECTRAL_MODULUS
        weights = {name: float(value) for name, value in values.items() if is_weight(name) and value and math.isfinite(value)}
        most = math.inf if p.max_count is None else p.max_count
        limits = Limits(values["wolfe_c1_constant"], values["wolfe_c2_constant"], p.reduce_factor, p.optimism, most, p.min_step)
        return cls(values, moving, kinds, weights, limits)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for epochs in which the same loss is a function of the same variables."""
        shaping = ("loss_weight", "atv_p", "atv_q", "mixed_variance_sigma", "window", "sequence")
        values = tuple(told(self.values.get(name)) for name in shaping)
        return self.moving, tuple(self.kinds.items()), tuple(self.weights.items()), values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def told(value: Any) -> Any:
    """Equal for equal values, arrays whole: a text of one leaves its middle out."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    return tuple(map(told, value)) if isinstance(value, list | tuple) else value


def is_weight(name: str) -> bool:
    """Whether a parameter is the weight of a term of the loss."""
    return name != "loss_weight" and (name.endswith("_weight") or "_reg_weight_" in name)
