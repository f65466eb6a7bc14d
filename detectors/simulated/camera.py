"""What a detector makes of photons: efficiency, scintillator, blur, dark current, read-out noise, saturation, gaps, counts."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from ptystream.params.base import Branch, parameter

from .exposure import blurred

CAMERAS: dict[str, dict[str, Any]] = {
    "GenericCCD16bit": {"modules": (1, 1), "module_shape": (2048, 2048), "full_well": 65535.0, "bits": 16},
    "GenericCCD32bit": {"modules": (1, 1), "module_shape": (2048, 2048), "full_well": 2.0**32, "bits": 32},
    "FLI_PL1001": {
        "modules": (1, 1),
        "module_shape": (1024, 1024),
        "full_well": 5e5,
        "shot_noise": 9.0,
        "adu": 10.0,
        "bits": 16,
    },
    "FRELON_TAPER": {
        "modules": (1, 1),
        "module_shape": (2048, 2048),
        "qe": 0.6,
        "sci_qe": 10.0,
        "sci_psf": 1.2,
        "full_well": 5.5e5,
        "shot_noise": 15.0,
        "adu": 9.0,
        "bits": 16,
    },
    **{
        name: {"modules": modules, "module_shape": (195, 487), "gaps": (17, 7), "full_well": 2.0**20, "bits": 32}
        for name, modules in {
            "PILATUS_300K": (3, 1),
            "PILATUS_1M": (5, 2),
            "PILATUS_2M": (8, 3),
            "PILATUS_6M": (12, 5),
        }.items()
    },
}
"""What the named models say in place of the defaults below. Modules and gaps of the Pilatus are the manufacturer's."""

DEFAULTS: dict[str, Any] = {"gaps": (0, 0), "qe": 1.0, "sci_qe": None, "sci_psf": 0.0, "psf": 0.0, "shot_noise": 0.0}
DEFAULTS |= {"dark_current": 0.0, "adu": 1.0}


class DetectorParameters(Branch):
    """The detector

    Its name alone stands for the branch: `detector: PILATUS_1M`. What is given beside `model` replaces that detector's own. A
    frame's middle is where the `beam` hits; pixels that saturate, lie in a gap or beyond the detector's edge come as 'no data'
    (the largest value of the data's type), and are masked."""

    also: ClassVar[tuple[str, ...]] = ("str",)
    """What may be written instead of the branch."""

    model: Literal[
        "GenericCCD16bit",
        "GenericCCD32bit",
        "FLI_PL1001",
        "FRELON_TAPER",
        "PILATUS_300K",
        "PILATUS_1M",
        "PILATUS_2M",
        "PILATUS_6M",
    ] = parameter("PILATUS_300K", ours=True)
    """Which detector."""

    modules: tuple[int, int] | None = parameter(None, ours=True)
    """Rows and columns of modules; None: the model's."""

    module_shape: tuple[int, int] | None = parameter(None, ours=True)
    """Pixels (y, x) of a module; None: the model's."""

    gaps: tuple[int, int] | None = parameter(None, ours=True)
    """Pixels without data between rows and between columns of modules; None: the model's."""

    beam: tuple[int, int] | None = parameter(None, ours=True)
    """Pixel (y, x) of the detector that the beam hits, gaps counted; None: the middle, or where that is a gap the middle of the
    next module."""

    qe: float | None = parameter(None, ours=True)
    """Quantum efficiency: part of the photons that are detected, 0 to 1; None: the model's."""

    sci_qe: float | None = parameter(None, ours=True)
    """Quanta of light that a scintillator makes of one detected photon; None: the model's, 0: no scintillator."""

    sci_psf: float | None = parameter(None, ours=True)
    """Blur of the scintillator's light, standard deviation in pixels; None: the model's."""

    psf: float | tuple[float, float] | None = parameter(None, ours=True)
    """Blur of the detector, standard deviation in pixels, one number or (y, x); None: the model's."""

    dark_current: float | None = parameter(None, ours=True)
    """Charges without light, the mean per pixel and exposure; None: the model's. They have noise of their own where
    `add_poisson_noise` is set."""

    shot_noise: float | None = parameter(None, ours=True)
    """Noise of the read-out, standard deviation in charges; None: the model's. What would fall below 0 is 0."""

    full_well: float | None = parameter(None, ours=True)
    """Charges from which on a pixel is saturated; None: the model's."""

    adu: float | None = parameter(None, ours=True)
    """Charges per count; None: the model's. Counts are whole, to the nearest."""

    bits: Literal[8, 16, 32] | None = parameter(None, ours=True)
    """Bits of a count; None: the model's."""

    @field_validator("modules", "module_shape", "full_well", "adu")
    @classmethod
    def _above(cls, value: Any) -> Any:
        if value is not None and not all(math.isfinite(v) and v > 0 for v in np.atleast_1d(value)):
            raise ValueError("must be above 0")
        return value

    @field_validator("gaps", "sci_qe", "sci_psf", "psf", "dark_current", "shot_noise")
    @classmethod
    def _not_below(cls, value: Any) -> Any:
        if value is not None and not all(math.isfinite(v) and v >= 0 for v in np.atleast_1d(value)):
            raise ValueError("must be 0 or above")
        return value

    @field_validator("qe")
    @classmethod
    def _qe(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value <= 1:
            raise ValueError("must be above 0, and 1 at most")
        return value


class Camera:
    """One detector. Stateless: the generator that is passed makes every random choice."""

    def __init__(self, parameters: DetectorParameters) -> None:
        given = {name: value for name, value in parameters.model_dump().items() if value is not None}
        self.p: dict[str, Any] = {**DEFAULTS, **CAMERAS[parameters.model], **given}
        self.dtype = np.dtype(f"uint{self.p['bits']}")

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of the whole detector, gaps included."""
        y, x = (n * side + (n - 1) * gap for n, side, gap in zip(*self._modules(), strict=True))
        return y, x

    @property
    def beam(self) -> tuple[int, int]:
        """Pixel (y, x) that the beam hits."""
        if "beam" in self.p:
            return int(self.p["beam"][0]), int(self.p["beam"][1])
        y, x = (_middle(whole, side, gap) for whole, side, gap in zip(self.shape, *self._modules()[1:], strict=True))
        return y, x

    def valid(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Where a frame (y, x) with its middle on the beam has pixels."""
        axes = []
        for wanted, whole, side, gap, beam in zip(shape, self.shape, *self._modules()[1:], self.beam, strict=True):
            place = np.arange(wanted) - wanted // 2 + beam
            axes.append((place >= 0) & (place < whole) & (place % (side + gap) < side))
        return np.asarray(axes[0][:, None] & axes[1][None])

    def counts(
        self, photons: NDArray[np.float64], random: np.random.Generator, *, poisson: bool, valid: NDArray[np.bool_] | None = None
    ) -> NDArray[Any]:
        """Counts of a frame (y, x) of expected photons; `poisson` draws photons, light and dark charges from that
        distribution. Pixels without data have the largest value of the type. `valid` saves asking again."""
        p = self.p

        def drawn(mean: NDArray[np.float64]) -> NDArray[np.float64]:
            return random.poisson(np.minimum(mean, 1e18)).astype(np.float64) if poisson else mean

        charges = drawn(photons * p["qe"])
        if p["sci_qe"]:
            charges = drawn(blurred(charges * p["sci_qe"], p["sci_psf"]))
        charges = blurred(charges, p["psf"])
        if p["dark_current"]:
            charges = charges + drawn(np.full(charges.shape, float(p["dark_current"])))
        if p["shot_noise"]:
            charges = np.maximum(charges + random.normal(0.0, p["shot_noise"], charges.shape), 0.0)
        none = float(np.iinfo(self.dtype).max)
        counts = np.minimum(np.rint(charges / p["adu"]), none - 1)
        counts[charges >= p["full_well"]] = none
        counts[~(self.valid(photons.shape) if valid is None else valid)] = none
        return np.asarray(counts.astype(self.dtype))

    def _modules(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        return self.p["modules"], self.p["module_shape"], self.p["gaps"]


def _middle(whole: int, side: int, gap: int) -> int:
    """Middle pixel of an axis, or of the module behind it where that is a gap."""
    number, place = divmod(whole // 2, side + gap)
    return whole // 2 if place < side else (number + 1) * (side + gap) + side // 2
