"""PyPty's page as the parameters of an engine."""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from ptystream.params.base import parameter
from ptystream.params.course import at, checked, epochs, limits_of, varies

from ..parameters import MOST_CONTIGUOUS, MOST_ITERATIONS
from .page import texts, values
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
    epoch: 'lambda x: 1e-3 * (x >= 20)'. Epochs while frames arrive count too; from `epoch_max` on what held in the epoch before
    it goes on.
    """

    name: str = parameter("PyPty", ours=True)
    """Name of the engine."""

    numiter: int | None = parameter(None, lower=1, steerable=True, most=MOST_ITERATIONS, ours=True)
    """Epochs that are guaranteed after the last frame has come; None: `epoch_max` - `epoch_prev`."""

    numiter_contiguous: int = parameter(1, lower=1, steerable=True, most=MOST_CONTIGUOUS, ours=True)
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
            if limits is None:
                continue
            given, own = getattr(self, name), values.CHECKS.get(name, lambda value: None)
            wrong = checked(name, given, limits, self.epoch_prev, self.epoch_max, own)
            if wrong is not None:
                faults.append(f"{name}: {wrong}")
        faults += values.arrays(self) + values.lonely(self)
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _wolfe(self) -> Self:
        if self.epoch_max <= self.epoch_prev:
            raise ValueError(f"epoch_max: {self.epoch_max}: must be above epoch_prev, {self.epoch_prev}")
        if self.numiter is None:  # set so while a session runs
            raise ValueError("numiter: None: give the number of epochs")
        given = self.wolfe_c1_constant, self.wolfe_c2_constant
        for epoch in epochs(self.epoch_prev, self.epoch_max) if any(map(varies, given)) else (self.epoch_prev,):
            c1, c2 = (at(course, epoch) for course in given)
            if not 0 < c1 < c2 < 1:
                raise ValueError(f"wolfe_c1_constant {c1}, wolfe_c2_constant {c2}: must be 0 < c1 < c2 < 1")
        return self
