"""The starting probe: what a user may set about it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import AfterValidator, ValidationInfo, field_validator, model_validator

from ptystream.model import previous
from ptystream.model.diversity import check_noise
from ptystream.model.pictures import PICTURES
from ptystream.params.base import Branch, parameter
from ptystream.params.home import located
from ptystream.scan.parameters import load_array


def model_of(value: Any) -> Any:
    """A model's name as it is, anything else as the array that it means."""
    names = ("recon", "stxm", *PICTURES)
    if isinstance(value, str) and value in names:
        return value
    try:
        array = load_array(value)
    except ValueError as error:
        raise ValueError(f"{error}; or one of {', '.join(names)}") from error
    if array is not None and not np.isfinite(array).all():
        raise ValueError("holds numbers that are not finite: give every pixel a value")
    return array


ModelParameter = Annotated[np.ndarray | list[Any] | str | None, AfterValidator(model_of)]
"""'recon', 'stxm', the name of a picture, or an array as `ArrayParameter`."""


class ApertureParameters(Branch):
    """Beam aperture parameters."""

    rotate: float = parameter(0.0)
    """Rotate aperture by this value, in radians, from the columns' axis to the rows'."""

    central_stop: float | None = parameter(None, lower=0.0, upper=1.0)
    """size of central stop as a fraction of aperture.size

    If not None: places a central beam stop in aperture. The value given here is the fraction of the beam stop compared to
    `size`"""

    diffuser: tuple[float, ...] | None = parameter(None)
    """Noise in the transparen part of the aperture

    Can be either:
    - ``None`` : no noise
    - ``2-tuple`` : noise in phase (amplitude (rms), minimum feature size)
    - ``4-tuple`` : noise in phase & modulus (rms, mfs, rms_mod, mfs_mod)

    Radians, and pixels of the aperture plane. Always the same for the same root `seed`."""

    edge: float = parameter(2.0)
    """Edge width of aperture (in pixels!)"""

    form: Literal["circ", "rect"] | None = parameter("circ")
    """One of None, 'rect' or 'circ'

    One of:
    - ``None`` : no aperture, this may be useful for nearfield
    - ``'rect'`` : rectangular aperture
    - ``'circ'`` : circular aperture"""

    offset: float | tuple[float, float] = parameter(0.0)
    """Offset between center of aperture and optical axes

    May also be a tuple (vertical,horizontal) for size in case of an asymmetric offset. In metres of the aperture plane."""

    size: float | tuple[float, float] | None = parameter(None, validated=(0.0, None))
    """Aperture width or diameter

    May also be a tuple *(vertical,horizontal)* in case of an asymmetric aperture. In metres of the aperture plane; None: a
    third of the frame."""

    @field_validator("size")
    @classmethod
    def _size(cls, value: float | tuple[float, float] | None) -> float | tuple[float, float] | None:
        if value is not None and not all(side > 0 for side in np.atleast_1d(value)):
            raise ValueError("must be above 0 (metres)")
        return value

    @field_validator("diffuser")
    @classmethod
    def _diffuser(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        check_noise(value)
        return value


class PropagationParameters(Branch):
    """Parameters for propagation after aperture plane

    Propagation to focus comes before parallel propagation."""

    antialiasing: float = parameter(1.0)
    """Antialiasing factor

    Antialiasing factor used when generating the probe. (numbers larger than 2 or 3 are memory hungry) The wave is computed on
    a frame that covers so many times more of the sample, and cut out at the end: what would leave the frame on one side no
    longer comes back on the other."""

    focussed: float | None = parameter(None)
    """Propagation distance from aperture to focus

    If ``None`` or ``0`` : No focus propagation; the aperture then lies in the sample plane. Metres."""

    parallel: float | None = parameter(None)
    """Parallel propagation distance

    If ``None`` or ``0`` : No parallel propagation. Metres; downstream is positive."""

    spot_size: float | None = parameter(None, validated=(0.0, None))
    """Focal spot diameter

    If not ``None``, this parameter is used to generate the appropriate aperture size instead of `size`: for a round aperture
    the spot's diameter is that of the first dark ring, 2.44 λ f / size; for a rectangular one the distance of the first zeros,
    2 λ f / size. Metres; needs `focussed`."""

    @field_validator("antialiasing")
    @classmethod
    def _antialiasing(cls, value: float) -> float:
        if not 1.0 <= value <= 16.0:
            raise ValueError("must be from 1 to 16")
        return value

    @field_validator("spot_size")
    @classmethod
    def _spot_size(cls, value: float | None) -> float | None:
        if value is not None and not value > 0:
            raise ValueError("must be above 0 (metres)")
        return value

    @model_validator(mode="after")
    def _focus(self) -> Self:
        if self.spot_size is not None and not self.focussed:
            raise ValueError(f"spot_size: {self.spot_size}: is the spot of a focus; give `focussed` as well")
        return self


class DiversityParameters(Branch):
    """How further probe modes differ from the first."""

    noise: tuple[float, ...] | None = parameter((0.5, 1.0))
    """Noise in each non-primary mode of the illumination.

    Can be either:
    - ``None`` : no noise
    - ``2-tuple`` : noise in phase (amplitude (rms), minimum feature size)
    - ``4-tuple`` : noise in phase & modulus (rms, mfs, rms_mod, mfs_mod)

    Radians, and pixels. Always the same for the same root `seed`."""

    power: float | tuple[float, ...] = parameter(0.1, validated=(0.0, 1.0))
    """Power of modes relative to main mode (zero-layer)

    One number per further mode; the last one is repeated."""

    shift: float | None = parameter(None)
    """Lateral shift of modes relative to main mode

    Metres on the sample: mode 1 to the right, 2 to the left, 3 down, 4 up, the next four twice as far. (ptypy declares this
    parameter and does not use it.)"""

    @field_validator("power")
    @classmethod
    def _power(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if not all(0 <= power <= 1 for power in np.atleast_1d(value)):
            raise ValueError("must be from 0 to 1")
        return value

    @field_validator("noise")
    @classmethod
    def _noise(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        check_noise(value)
        return value


class ReconParameters(Branch):
    """Parameters to load from previous reconstruction"""

    label: str | None = parameter(None)
    """Scan label of diffraction that is to be used for probe estimate

    If ``None``, own scan label is used; where the file has one probe only, that one."""

    rfile: str = parameter("\\*.ptyr")
    r"""Path to a ``.ptyr`` compatible file, below `io.home`"""


class IlluminationParameters(Branch):
    """The starting probe."""

    also: ClassVar[tuple[str, ...]] = ("str",)
    """What may be written instead of the branch."""

    aperture: ApertureParameters = ApertureParameters()
    """Beam aperture parameters

    On a `model` that is an array, 'recon', 'stxm' or a picture only where something of this branch is given."""

    diversity: DiversityParameters | None = DiversityParameters()
    """Probe mode(s) diversity parameters

    Can be ``None`` i.e. no diversity: all modes start alike, with equal power."""

    model: ModelParameter = parameter(None)
    """Type of illumination model

    One of:
    - ``None`` : a flat wave before the aperture
    - ``'recon'`` : load model from previous reconstruction, see `recon` Parameters
    - ``'stxm'`` : the mean of the run's first frames, taken back to the sample with a flat phase
    - ``'moon'``, ``'flower'``, ``'tree'`` : a drawn picture that fills the frame

    An array (y, x) or (mode, y, x), a nested list, or a file 'name.npy', 'name.npz:array' or 'name.h5:/dataset'. It is
    considered as incoming wavefront and will be propagated according to `propagation` with an optional `aperture` applied
    before. Any other text is an error."""

    photons: float | None = parameter(None, lower=0.0)
    """Number of photons in the incident illumination

    A value specified here will take precedence over calculated statistics from the loaded data: those of the brightest of the
    run's first frames."""

    propagation: PropagationParameters = PropagationParameters()
    """Parameters for propagation after aperture plane"""

    recon: ReconParameters = ReconParameters()
    """Parameters to load from previous reconstruction"""

    @field_validator("recon")
    @classmethod
    def _recon(cls, value: ReconParameters, info: ValidationInfo) -> ReconParameters:
        model = info.data.get("model")
        if isinstance(model, str) and model == "recon":
            value = value.model_copy(update={"rfile": located(value.rfile)})
            previous.check(value.rfile, "probe")
        return value
