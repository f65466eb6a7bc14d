"""What a user may set about a scan besides its data: the trees of the scan models."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import SerializeAsAny, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, field_validator

from ptystream.model.illumination import IlluminationParameters
from ptystream.model.sample import FullSampleParameters, SampleParameters
from ptystream.model.spectrum import CoherenceParameters
from ptystream.params.base import Branch, parameter

SHORT = (str, list, np.ndarray)
"""What may stand in the place of a branch `illumination` or `sample`: the path of a .ptyr file, or what `model` takes."""


def short(value: Any) -> Any:
    """The branch of `Full` that a file or an array in its place means; anything else as it is."""
    if isinstance(value, str) and value.endswith((".ptyr", ".pty")):
        return {"model": "recon", "recon": {"rfile": value}}
    return {"model": value} if isinstance(value, SHORT) else value


class ShareParameters(Branch):
    """What a scan has in common with another scan of the same run."""

    probe: str | None = parameter(None, ours=True)
    """Label of the scan whose probe this scan uses, with that scan's `illumination`; None: its own. Frame, pixel, probe modes
    and energies must be the same."""

    object: str | None = parameter(None, ours=True)
    """Label of the scan whose object this scan sees, with that scan's `sample`; None: its own. Pixel, object modes and (where
    the object has dispersion) energies must be the same."""


class ScanModelParameters(Branch):
    """Parameters of every scan model."""

    tags: tuple[str, ...] = parameter(("dummy",))
    """Comma seperated string tags describing the data input

    'empty': the beam without a sample, or with one that does not move: positions are ignored, and every frame sees the object
    at physical zero. Other tags are kept with the result and mean nothing."""

    propagation: Literal["farfield", "nearfield"] = parameter("farfield")
    """Propagation type

    Either "farfield" or "nearfield". In the near field the pixel on the sample is the detector's: for a diverging beam give
    its effective pixel and distance (psize / M, z / M with the magnification M)."""

    ffttype: Literal["scipy", "numpy", "fftw"] = parameter("scipy")
    """FFT library

    Choose from "numpy", "scipy" or "fftw"; on a GPU always its own. All scans of a run use that of the first."""

    resample: int | None = parameter(1)
    """Resampling fraction of the image frames w.r.t. diffraction frames

    A resampling of 2 means that the image frame is to be sampled (in the detector plane) twice
    as densely as the raw diffraction data. A detector pixel is the sum of the fine ones in it. In the far field the frame then
    covers twice as much of the sample at the same pixel; in the near field the pixel on the sample is half as large. None: 1.
    (ptypy takes the mean and loses photons.)"""

    pad: int = parameter(0, lower=0, ours=True)
    """Pixels of the prepared frame, on each side, that the model has and the detector has not

    What is scattered beyond the detector is then part of the model: in the far field the pixel on the sample is
    λ z / ((N + 2 pad) psize). Taken by PyPty alone."""

    margin: int = parameter(0, lower=0, upper=4096, ours=True)
    """Room around the object, pixels on each side of what the frames see."""

    share: ShareParameters = ShareParameters()
    """What a scan has in common with another scan of the same run."""

    @field_validator("tags", mode="before")
    @classmethod
    def _tags(cls, value: Any) -> Any:
        return tuple(tag.strip() for tag in value.split(",")) if isinstance(value, str) else value

    @field_validator("resample")
    @classmethod
    def _resample(cls, value: int | None) -> int | None:
        if value is not None and not 1 <= value <= 16:
            raise ValueError("must be from 1 to 16")
        return value


class AnyIllumination(Branch):
    """Container for probe initialization model"""

    also: ClassVar[tuple[str, ...]] = ("str",)


class AnySample(Branch):
    """Container for sample initialization model"""

    also: ClassVar[tuple[str, ...]] = ("str",)


class BareParameters(ScanModelParameters):
    """What all scan models share; a scan itself is one of the others, such as Full or Vanilla."""

    illumination: AnyIllumination = AnyIllumination()
    """Container for probe initialization model"""

    sample: AnySample = AnySample()
    """Container for sample initialization model"""


class VanillaIlluminationParameters(Branch):
    """Illumination parameters."""

    also: ClassVar[tuple[str, ...]] = ("str",)
    """What may be written instead of the branch."""

    size: float | None = parameter(None)
    """Initial probe size

    The probe is initialized as a flat circle with the photons of the brightest frame. Diameter in metres; None: a third of the
    frame."""

    @field_validator("size")
    @classmethod
    def _size(cls, value: float | None) -> float | None:
        if value is not None and not value > 0:
            raise ValueError("must be above 0 (metres)")
        return value


class VanillaParameters(ScanModelParameters):
    """One probe, one object."""

    name: str = parameter("Vanilla")
    """Name of the model."""

    illumination: SerializeAsAny[VanillaIlluminationParameters] = VanillaIlluminationParameters()
    """Illumination parameters

    Instead of the branch also the path of a ``.ptyr`` file, or an array or text that `scan.Full.illumination.model` takes: the
    probe then begins as that model, with the photons of the brightest of the run's first frames."""

    sample: SerializeAsAny[SampleParameters] = SampleParameters()
    """Initial object

    Instead of the branch also the path of a ``.ptyr`` file, or an array or text that `scan.Full.sample.model` takes."""

    @field_validator("illumination", "sample", mode="wrap")
    @classmethod
    def _short(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """A file or an array in the place of a branch is what it is for `Full`."""
        if not isinstance(value, SHORT):
            return handler(value)
        branch = IlluminationParameters if info.field_name == "illumination" else FullSampleParameters
        try:
            return branch.model_validate(short(value))
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


class FullParameters(ScanModelParameters):
    """Probe and object modes, energies, and modelled beginnings of probe and object."""

    name: str = parameter("Full")
    """Name of the model."""

    coherence: CoherenceParameters = CoherenceParameters()
    """Coherence parameters"""

    resolution: float | None = parameter(None, lower=0.0)
    """Will force the reconstruction to adapt to the given resolution, this might lead to cropping/padding in diffraction space
    which could reduce performance.

    Half-period resolution given in [m]: the pixel on the sample, exactly. None: the one that follows from the detector. Far
    field only."""

    illumination: IlluminationParameters = IlluminationParameters()
    """Illumination parameters

    Instead of the branch also the path of a ``.ptyr`` file, or an array: then that is the `model`."""

    sample: FullSampleParameters = FullSampleParameters()
    """Initial object modelization parameters

    Instead of the branch also the path of a ``.ptyr`` file, or an array: then that is the `model`."""

    @field_validator("illumination", "sample", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """A file or an array in the place of a branch."""
        return short(value)

    @field_validator("resolution")
    @classmethod
    def _resolution(cls, value: float | None) -> float | None:
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError("must be above 0 (metres)")
        return value
