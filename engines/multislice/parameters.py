"""PyPty's page as the parameters of an engine."""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from ptystream.params.base import parameter
from ptystream.params.course import at, checked, limits_of, varies

from .page import texts
from .page.constraints import ByHandParameters, TermParameters
from .page.data import DatasetParameters, MemoryParameters, SavingParameters
from .page.optimisation import OptimisationParameters, UpdateParameters
from .page.setup import (
    BandwidthParameters,
    BeamParameters,
    CalibrationParameters,
    ExperimentParameters,
    IlluminationParameters,
    PropagationParameters,
    RefinableParameters,
)


class PyPtyParameters(
    BeamParameters,
    ByHandParameters,
    TermParameters,
    MemoryParameters,
    IlluminationParameters,
    UpdateParameters,
    OptimisationParameters,
    BandwidthParameters,
    PropagationParameters,
    RefinableParameters,
    CalibrationParameters,
    ExperimentParameters,
    SavingParameters,
    DatasetParameters,
):
    """Multislice ptychography with the parameters of PyPty's page.

    Lengths in Å, angles in radians, voltages in kV, as on the page. Parameters of the type `Course` may be expressions in the
    epoch: 'lambda x: 1e-3 * (x >= 20)'.
    """

    name: str = parameter("PyPty", ours=True)
    """Name of the engine."""

    numiter: int | None = parameter(None, lower=1, steerable=True, ours=True)
    """Epochs that are guaranteed after the last frame has come; None: `epoch_max` - `epoch_prev`."""

    numiter_contiguous: int = parameter(1, lower=1, steerable=True, ours=True)
    """Epochs without interruption

    The engine looks at new data, requests and saving only between such groups: within one the frames stay what they are."""

    average_last: int = parameter(0, lower=0, ours=True)
    """The result is the mean of probe and object over this many last epochs; 0: the last one."""

    @model_validator(mode="before")
    @classmethod
    def _epochs(cls, given: Any) -> Any:
        """Texts of Python values are read. Without `numiter` it is the epochs that are left."""
        if isinstance(given, dict):
            given = texts.read(given, cls.model_fields)
        if isinstance(given, dict) and given.get("numiter") is None:
            last, first = given.get("epoch_max", 200), given.get("epoch_prev", 0)
            if isinstance(last, int) and isinstance(first, int) and last > first:
                given = given | {"numiter": last - first}
        return given

    @model_validator(mode="after")
    def _courses(self) -> Self:
        faults = []
        for name, field in type(self).model_fields.items():
            limits = limits_of(field)
            wrong = None if limits is None else checked(name, getattr(self, name), limits, self.epoch_prev, self.epoch_max)
            if wrong is not None:
                faults.append(f"{name}: {wrong}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _wolfe(self) -> Self:
        for epoch in (self.epoch_prev, self.epoch_max):
            c1, c2 = at(self.wolfe_c1_constant, epoch), at(self.wolfe_c2_constant, epoch)
            if not 0 < c1 < c2 < 1:
                raise ValueError(f"wolfe_c1_constant {c1}, wolfe_c2_constant {c2}: must be 0 < c1 < c2 < 1")
        if self.epoch_max <= self.epoch_prev:
            raise ValueError(f"epoch_max: {self.epoch_max}: must be above epoch_prev, {self.epoch_prev}")
        weight = self.loss_weight
        if not varies(weight) and weight not in ("mean", "mean_full") and not (isinstance(weight, int | float) and weight > 0):
            raise ValueError(f"loss_weight: {weight!r}: must be a number above 0, 'mean' or 'mean_full'")
        return self
