"""The starting object: what a user may set about it."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import numpy as np
from pydantic import ValidationInfo, field_validator, model_validator

from ptystream.model import previous, refraction
from ptystream.model.diversity import check_noise
from ptystream.model.illumination import ModelParameter
from ptystream.params.base import Branch, parameter
from ptystream.params.home import located


class SampleParameters(Branch):
    """Initial object."""

    also: ClassVar[tuple[str, ...]] = ("str",)
    """What may be written instead of the branch."""

    fill: complex = parameter(1.0)
    """Initial sample value

    The sample is initialized with this value everywhere, and so are pixels that come into view later. 0 only around a `model`:
    behind an object of 0 there is no light, and no update would ever change that."""

    @model_validator(mode="after")
    def _light(self) -> Self:
        if self.fill == 0 and getattr(self, "model", None) is None:
            raise ValueError(f"fill: {self.fill:g}: no light would ever pass the object; 1 is an empty sample")
        return self


class SampleReconParameters(Branch):
    """Parameters to load from previous reconstruction"""

    rfile: str = parameter("\\*.ptyr")
    r"""Path to a ``.ptyr`` compatible file, below `io.home`"""


class StxmParameters(Branch):
    """STXM analysis parameters"""

    label: str | None = parameter(None)
    """Scan label of diffraction that is to be used for probe estimate

    ``None``, own scan label is used. A scan named here must have begun: where it has not, the own frames are used."""


class ProcessParameters(Branch):
    """Model processing parameters: from a picture or a thickness profile to a transmission."""

    offset: tuple[int, int] = parameter((0, 0), validated=(0.0, None))
    """Offset between center of object array and scan pattern

    Pixels (y, x) by which the array's middle lies below and right of physical zero, not below 0."""

    zoom: float | tuple[float, float] | None = parameter(None, validated=(0.0, None))
    """Zoom value for object simulation.

    If ``None``, leave the array untouched. Otherwise the modeled or loaded image will be resized by cubic splines; one number
    or (y, x)."""

    formula: str | None = parameter(None)
    """Chemical formula

    e.g. ``'Au'`` or ``'NaCl'`` or ``'H2O'``: the array is then a thickness profile of this matter. Refractive index from
    xraydb's tables, offline."""

    density: float | None = parameter(1.0)
    """Density in [g/ccm]

    Only used if `formula` is not None. None or not above 0: the tabulated one."""

    thickness: float | None = parameter(1e-6)
    """Maximum thickness of sample

    If ``None``, the absolute values of loaded source array will be used. Metres."""

    ref_index: tuple[float, float] | None = parameter((0.5, 0.0), validated=(0.0, None))
    """Assigned refractive index, tuple of format (real, complex)

    If ``None``, treat source array as projection of refractive index a+bj for (a, b). If a refractive index
    is provided the array's absolute value will be used to scale the refractive index. It is the difference from 1: the wave
    becomes exp(i k t (a + bj)); a negative real part, as X-rays have, comes from `formula`, which takes precedence.

    An array counts as thickness where this or `formula` is given, and is otherwise the transmission itself: the default would
    mean some ten thousand radians. (ptypy starts even a flat object with a phase from its default.)"""

    smoothing: int | None = parameter(2, validated=(0.0, None))
    """Smoothing scale

    Smooth the projection with gaussian kernel of this full width at half maximum in pixels: what counts as thickness, and any
    array where this parameter is given. None or 0: no smoothing."""

    @field_validator("offset", "zoom", "ref_index", "smoothing")
    @classmethod
    def _above(cls, value: float | tuple[float, ...] | None) -> float | tuple[float, ...] | None:
        if value is not None and not all(v >= 0 and math.isfinite(v) for v in np.atleast_1d(value)):
            raise ValueError("must not be below 0")
        return value

    @field_validator("zoom")
    @classmethod
    def _zoom(cls, value: float | tuple[float, float] | None) -> float | tuple[float, float] | None:
        if value is not None and not all(0 < v <= 100 for v in np.atleast_1d(value)):
            raise ValueError("must be above 0, and at most 100")
        return value

    @field_validator("thickness")
    @classmethod
    def _thickness(cls, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError("must not be below 0 (metres)")
        return value

    @model_validator(mode="after")
    def _formula(self) -> Self:
        if self.formula is not None:
            refraction.check(self.formula, self.density)
        return self

    @property
    def physical(self) -> bool:
        """Whether an array is a thickness profile or a projected index."""
        return self.formula is not None or "ref_index" in self.model_fields_set


class SampleDiversityParameters(Branch):
    """How further object modes differ from the first."""

    noise: tuple[float, ...] | None = parameter(None)
    """Noise in the generated modes of the illumination

    Can be either:
    - ``None`` : no noise
    - ``2-tuple`` : noise in phase (amplitude (rms), minimum feature size)
    - ``4-tuple`` : noise in phase & modulus (rms, mfs, rms_mod, mfs_mod)

    Radians, and pixels. Always the same for the same root `seed`."""

    power: float | tuple[float, ...] = parameter(0.1)
    """Power of modes relative to main mode (zero-layer)

    One number per further mode; the last one is repeated. All modes together have the power of the object."""

    shift: float | None = parameter(None)
    """Lateral shift of modes relative to main mode

    Metres, as of the illumination's modes. (ptypy declares this parameter and does not use it.)"""

    @field_validator("noise")
    @classmethod
    def _noise(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        check_noise(value)
        return value

    @field_validator("power")
    @classmethod
    def _power(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if not all(v >= 0 and math.isfinite(v) for v in np.atleast_1d(value)):
            raise ValueError("must not be below 0")
        return value


class FullSampleParameters(SampleParameters):
    """Initial object modelization."""

    model: ModelParameter = parameter(None)
    """Type of initial object model

    One of:
    - ``None`` : `fill` everywhere
    - ``'recon'`` : load model from previous reconstruction, see `recon`
    - ``'stxm'`` : from the run's first frames, modulus from their photons and phase from their centres of mass
    - ``'flower'``, ``'tree'``, ``'moon'`` : a drawn picture over the part of the sample that the first frames see; its darkness
      is the thickness where `process` makes it one

    An array (y, x) or (mode, y, x), nested list, or file 'name.npy', 'name.npz:array' or 'name.h5:/dataset', in object pixels,
    its middle at physical zero; `fill` around it. It is processed according to `process`. Any other text is an error."""

    recon: SampleReconParameters = SampleReconParameters()
    """Parameters to load from previous reconstruction"""

    stxm: StxmParameters = StxmParameters()
    """STXM analysis parameters"""

    process: ProcessParameters | None = ProcessParameters()
    """Model processing parameters

    Can be ``None``, i.e. no processing. Works on arrays and pictures."""

    diversity: SampleDiversityParameters | None = SampleDiversityParameters()
    """Probe mode(s) diversity parameters

    Can be ``None`` i.e. no diversity: all modes start alike, with equal power."""

    @field_validator("recon")
    @classmethod
    def _recon(cls, value: SampleReconParameters, info: ValidationInfo) -> SampleReconParameters:
        model = info.data.get("model")
        if isinstance(model, str) and model == "recon":
            value = value.model_copy(update={"rfile": located(value.rfile)})
            previous.check(value.rfile, "obj")
        return value
