"""What a user may set about a rocking-curve scan."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from pydantic import ValidationInfo, field_validator, model_validator

from ptystream.model import previous
from ptystream.model.illumination import (
    ApertureParameters,
    IlluminationParameters,
    ModelParameter,
    PropagationParameters,
    ReconParameters,
)
from ptystream.model.parameters import ScanModelParameters, short
from ptystream.model.sample import SampleParameters
from ptystream.params.base import Branch, parameter
from ptystream.params.home import located


class BraggIlluminationParameters(Branch):
    """The beam: a wave in the plane across it (row, column), spread along the beam into the volume.

    Rows of that plane are one pixel r1 · cos θ high, columns one pixel r2 wide."""

    also: ClassVar[tuple[str, ...]] = ("str",)
    """What may be written instead of the branch."""

    aperture: ApertureParameters = ApertureParameters()
    """Beam aperture parameters"""

    model: ModelParameter = parameter(None)
    """Type of illumination model

    One of:
    - ``None`` : a flat wave before the aperture
    - ``'recon'`` : the volume of a previous reconstruction, see `recon` Parameters
    - ``'moon'``, ``'flower'``, ``'tree'`` : a drawn picture

    An array (row, column) of any size, a nested list, or a file: the wave in the plane across the beam, about its middle.
    'stxm' is an error: a rocking curve is no picture of the beam."""

    photons: float | None = parameter(None, lower=0.0)
    """Number of photons in the incident illumination

    A value specified here will take precedence over calculated statistics from the loaded data: those of the brightest of the
    run's first rocking curves."""

    propagation: PropagationParameters = PropagationParameters()
    """Parameters for propagation after aperture plane"""

    recon: ReconParameters = ReconParameters()
    """Parameters to load from previous reconstruction"""

    size: float | None = parameter(None)
    """Initial probe size

    The probe is initialized as a flat circle. Diameter in metres across the beam: short for `aperture.size`. None: a third of
    the frame."""

    @field_validator("size")
    @classmethod
    def _size(cls, value: float | None) -> float | None:
        if value is not None and not value > 0:
            raise ValueError("must be above 0 (metres)")
        return value

    @field_validator("model")
    @classmethod
    def _model(cls, value: Any) -> Any:
        if isinstance(value, str) and value == "stxm":
            raise ValueError("a rocking curve is no picture of the beam; give an aperture or an array")
        if isinstance(value, np.ndarray) and value.ndim != 2:
            raise ValueError(f"has shape {value.shape}: must be (row, column), the wave across the beam")
        return value

    @field_validator("recon")
    @classmethod
    def _recon(cls, value: ReconParameters, info: ValidationInfo) -> ReconParameters:
        model = info.data.get("model")
        if isinstance(model, str) and model == "recon":
            value = value.model_copy(update={"rfile": located(value.rfile)})
            previous.check(value.rfile, "probe")
        return value

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.size is not None and self.aperture.size is not None:
            raise ValueError(f"size: {self.size}: and aperture.size {self.aperture.size} mean the same; give one of them")
        return self

    def across(self, third: float) -> IlluminationParameters:
        """The same for the plane across the beam; `third`: diameter of the beam where none is given, metres."""
        size = self.size if self.size is not None else self.aperture.size
        if size is None and not self.propagation.focussed:
            size = third
        given = {name: getattr(self.aperture, name) for name in self.aperture.model_fields_set}
        flat = self.model is None or self.size is not None or bool(given)
        aperture = ApertureParameters(**{**given, "size": size}) if flat else ApertureParameters()
        return IlluminationParameters(
            aperture=aperture, diversity=None, model=self.model, photons=self.photons, propagation=self.propagation
        )


class RockingParameters(Branch):
    """The reflection and the rocking curve."""

    theta_bragg: float | None = parameter(None, ours=True)
    """Bragg angle θ, degrees; must be given. (ptypy: `theta_bragg` of the loader.)"""

    n_rocking_positions: int | None = parameter(None, ours=True)
    """Angles of a rocking curve; must be given. A curve enters the reconstruction when all of them are there."""

    rocking_step: float | None = parameter(None, ours=True)
    """Step of the rocking angle, degrees; must be given."""

    tolerance: float = parameter(1e-8, lower=0.0, ours=True)
    """Frames whose positions agree to this, metres on each axis, belong to one rocking curve; it gets their mean."""

    @field_validator("theta_bragg")
    @classmethod
    def _theta(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 90:
            raise ValueError("must be above 0 and below 90 degrees")
        return value

    @field_validator("n_rocking_positions")
    @classmethod
    def _angles(cls, value: int | None) -> int | None:
        if value is not None and not 2 <= value <= 4096:
            raise ValueError("must be from 2 to 4096")
        return value

    @field_validator("rocking_step")
    @classmethod
    def _step(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 10:
            raise ValueError("must be above 0 and below 10 degrees")
        return value


class Bragg3dParameters(ScanModelParameters):
    """Bragg ptychography in three dimensions: a rocking curve at each position of the beam; engine: DM_3dBragg.

    Positions are (angle, x, z, y): channels `angle`, `x`, `z` and `y` of the positions' source."""

    name: str = parameter("Bragg3dModel")
    """Name of the model."""

    rocking: RockingParameters = RockingParameters()
    """The reflection and the rocking curve."""

    illumination: BraggIlluminationParameters = BraggIlluminationParameters()
    """Container for probe initialization model

    Instead of the branch also the path of a ``.ptyr`` file, or an array: then that is the `model`."""

    sample: SampleParameters = SampleParameters()
    """Container for sample initialization model

    Instead of the branch also a number: then that is `fill`."""

    @field_validator("illumination", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """A file or an array in the place of a branch."""
        return short(value)

    @field_validator("sample", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """A number, or its text, in the place of a branch."""
        return {"fill": value} if isinstance(value, str | int | float | complex) else value

    @field_validator("propagation")
    @classmethod
    def _far(cls, value: str) -> str:
        if value != "farfield":
            raise ValueError("a rocking curve samples the far field; only 'farfield'")
        return value

    @field_validator("resample")
    @classmethod
    def _once(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError("not for rocking curves: must be 1")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in ("theta_bragg", "n_rocking_positions", "rocking_step"):
            if getattr(self.rocking, name) is None:
                raise ValueError(f"rocking.{name}: None: must be given")
        for name in ("probe", "object"):
            if getattr(self.share, name) is not None:
                raise ValueError(f"share.{name}: {getattr(self.share, name)!r}: rocking curves share nothing with other scans")
        return self
