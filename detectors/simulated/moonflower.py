"""MoonFlowerScan and QuickScan: scans that need neither a detector nor a file, for trying out and for measuring speed."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator, model_validator

from ptystream.chance import generator
from ptystream.model.pictures import flower, moon
from ptystream.params.base import parameter
from ptystream.scan.memory import allowed_bytes
from ptystream.scan.positions import raster_scan, round_scan, spiral_scan
from ptystream.transport import Surroundings

from ..zmq.protocol import NativeDecoder
from .exposure import Experiment, blurred, canvas
from .stream import SimulatedParameters, SimulatedTransport
from .xy import MAX_FRAMES

COUNTS = np.dtype(np.uint32)
PIXEL_COUNTS = 1e7
"""Counts of the one lit pixel of a QuickScan."""
DRAWING_BYTES = 120
"""Memory per pixel while the flower is drawn."""


class QuickParameters(SimulatedParameters):
    """Frames for measuring speed."""

    num_frames: int = parameter(100)
    """Maximum number of frames to be prepared

    The square that the pattern is cut to takes some of the outermost: 92 of 100, 153 of 165. If `positions_theory` are
    provided, those are the positions."""

    shape: int | tuple[int, int] | None = parameter(64)
    """Shape of the region of interest cropped from the raw data

    Side of the simulated frame in pixels, before rebinning. Where two numbers differ the smaller is taken for both."""

    density: float = parameter(0.05)
    """Position distance in fraction of illumination frame

    The spacing of the pattern is this times the width of the frame on the sample."""

    @model_validator(mode="after")
    def _small_enough(self) -> Self:
        if self.planned() is None and self.num_frames > MAX_FRAMES:
            raise ValueError(
                f"num_frames: {self.num_frames}: that many positions take {16 * self.num_frames} bytes; at most {MAX_FRAMES}"
            )
        return self

    @field_validator("density")
    @classmethod
    def _density(cls, value: float) -> float:
        if not (math.isfinite(value) and value > 0):
            raise ValueError("must be above 0 (a fraction of the frame's width)")
        return value


class MoonFlowerParameters(QuickParameters):
    """A flower in the light of the moon."""

    shape: int | tuple[int, int] | None = parameter(128)
    """Shape of the region of interest cropped from the raw data

    Side of the simulated frame in pixels, before rebinning. Where two numbers differ the smaller is taken for both."""

    density: float = parameter(0.2)
    """Position distance in fraction of illumination frame

    The spacing of the pattern is this times the width of the frame on the sample."""

    model: Literal["round", "raster", "spiral"] = parameter("round")
    """The scan pattern

    'round': shells; 'spiral': an Archimedean spiral; both are cut to a square. 'raster': the smallest square of rows and
    columns that holds `num_frames` positions, row after row."""

    photons: float = parameter(1e8)
    """Total number of photons for Poisson noise

    In the beam, per frame."""

    psf: float = parameter(0.0)
    """Point spread function of the detector

    Standard deviation of a Gaussian in detector pixels; 0: none."""

    add_poisson_noise: bool = parameter(True)
    """Decides whether the scan should have poisson noise or not

    Without it counts are the expected photons, cut to whole numbers."""

    block_wait_count: int = parameter(0)
    """Signals a WAIT to the model after this many blocks.

    A block is `frames_per_block` frames (`min_frames` where that is more). A WAIT lasts `block_wait_s`; no frame is lost. 0:
    never."""

    block_wait_s: float = parameter(0.5, lower=0.0, ours=True)
    """How long a WAIT lasts, seconds: no frame comes meanwhile, and the engine iterates on what it has."""

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        if self.shape is not None and self.psf > self.side():
            raise ValueError(f"psf: {self.psf:g}: is wider than the frame of {self.side()} pixels")
        if self.shape is not None and self.planned() is None:
            across = self.side() * (1.0 + self.density * (math.sqrt(self.num_frames) + 1.0))
            fits((across, across), f"num_frames: {self.num_frames}: with density {self.density:g}")
        return self

    @field_validator("block_wait_count")
    @classmethod
    def _block_wait_count(cls, value: int) -> int:
        if value < 0:
            raise ValueError("must be 0 (no WAIT) or above")
        return value

    @field_validator("photons")
    @classmethod
    def _photons(cls, value: float) -> float:
        if not (math.isfinite(value) and 0 < value < 1e15):
            raise ValueError("must be above 0, and below 1e15")
        return value

    @field_validator("psf")
    @classmethod
    def _psf(cls, value: float) -> float:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError("must be 0 (none) or above (pixels)")
        return value


def fits(size: tuple[float, float], what: str) -> None:
    """Raises `ValueError` with `what` it is about where an object of `size` pixels cannot be drawn."""
    needed = DRAWING_BYTES * size[0] * size[1]
    if needed > allowed_bytes():
        pixels = f"{size[0]:.4g} x {size[1]:.4g} pixels"
        raise ValueError(f"{what}: drawing an object of {pixels} takes {needed:.3g} bytes, of {allowed_bytes():.3g} allowed")


def pattern(model: str, spacing_m: tuple[float, float], frames: int) -> NDArray[np.float64]:
    """Positions of at most `frames` exposures, (frame, 2), (y, x) in metres."""
    if model == "raster":
        columns = math.ceil(math.sqrt(frames))
        return raster_scan((columns, columns), spacing_m)[:frames]
    steps = round(math.sqrt(frames) + 1)
    # In units of the spacing, because pixels need not be square on the sample; the frame's width then is not either.
    unit = round_scan(1.0, steps // 2 + 1) if model == "round" else spiral_scan(1.0, float(steps))
    inside = (np.abs(unit) <= steps / 2).all(axis=1)
    return np.asarray(unit[inside][:frames] * np.asarray(spacing_m))


class QuickSimulation:
    """Frames with one lit pixel: nothing to compute, so what is measured is the way through the house."""

    def __init__(self, parameters: Any, seed: int, label: str) -> None:
        self.p, self._seed, self._label = parameters, seed, label
        side = self.p.side()
        self.shape, self.dtype = (side, side), COUNTS
        self.pixel_m = self.p.simulated_pixel_m()
        theory = self.p.planned()
        if theory is None:
            spacing = (self.pixel_m[0] * side * self.p.density, self.pixel_m[1] * side * self.p.density)
            theory = pattern(getattr(self.p, "model", "round"), spacing, self.p.num_frames)
        self.positions_m: NDArray[np.float64] = np.asarray(theory, np.float64)

    def frame(self, number: int) -> NDArray[np.uint32]:
        """Counts, (y, x); noise is keyed by (seed, scan, frame)."""
        mean = self.intensity(number)
        if self.p.add_poisson_noise:
            counts = generator(self._seed, f"photons of {self._label}", number).poisson(mean)
        else:
            counts = mean.astype(np.int64)
        return np.asarray(np.minimum(counts, np.iinfo(COUNTS).max - 1).astype(COUNTS))

    def intensity(self, number: int) -> NDArray[np.float64]:
        """Expected counts, (y, x), zero frequency in the middle."""
        image = np.zeros(self.shape)
        image[self.shape[0] // 2, self.shape[1] // 2] = PIXEL_COUNTS
        return image


class MoonFlowerSimulation(QuickSimulation):
    """A structured probe scanned over a flower, in the far field."""

    def __init__(self, parameters: Any, seed: int, label: str) -> None:
        super().__init__(parameters, seed, label)
        places = self.positions_m / np.asarray(self.pixel_m)
        offset, size = canvas(places, self.shape)
        fits(size, "data.positions_theory")
        probe = moon(self.shape, seed)
        probe = probe * np.sqrt(self.p.photons / (np.abs(probe) ** 2).sum())
        self.experiment = Experiment(probe[None], flower(size, seed)[None], offset, places)

    def intensity(self, number: int) -> NDArray[np.float64]:
        """Expected photons, (y, x), zero frequency in the middle, blurred by `psf`."""
        return blurred(self.experiment.intensity(number), self.p.psf)


class MoonFlowerScan:
    """Test scan: a flower in the light of the moon, simulated while it runs."""

    Parameters: type[SimulatedParameters] = MoonFlowerParameters
    unsimulated: ClassVar[str] = "makes its frames itself: `ptystream live` needs nothing else"
    gives_positions = False
    surroundings = True
    simulation: type[QuickSimulation] = MoonFlowerSimulation

    @staticmethod
    def decoder(parameters: Any, channel: str) -> NativeDecoder:
        """Who understands the messages."""
        return NativeDecoder()

    @classmethod
    def transport(
        cls, parameters: Any, channel: str, decoder: NativeDecoder, around: Surroundings | None = None
    ) -> SimulatedTransport:
        """Where they come from: made here."""
        around = around or Surroundings()
        seed = around.seed if parameters.seed is None else parameters.seed
        return SimulatedTransport(
            channel,
            lambda: cls.simulation(parameters, seed, channel),
            decoder,
            block=max(around.frames_per_block, parameters.min_frames),
            blocks=getattr(parameters, "block_wait_count", 0),
            wait_s=getattr(parameters, "block_wait_s", 0.0),
            metadata=parameters.metadata(),
        )


class QuickScan(MoonFlowerScan):
    """Scan of frames with one lit pixel, for measuring speed."""

    Parameters: type[SimulatedParameters] = QuickParameters
    simulation: type[QuickSimulation] = QuickSimulation
    default_name = "MoonFlowerScan"
    """As the parameter's reference has it; a configuration names its source."""
