"""SimScan: a scan of any beam over any sample with any detector, simulated while it runs."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, field_validator, model_validator

from ptystream.model.illumination import IlluminationParameters
from ptystream.model.sample import FullSampleParameters
from ptystream.params.base import parameter
from ptystream.scan.parameters import load_array
from ptystream.transport import Surroundings
from ptystream.verbosity import level

from ..zmq.protocol import NativeDecoder
from .camera import DetectorParameters
from .stream import SimulatedParameters, SimulatedTransport
from .xy import XyParameters

MAX_SIDE = 1 << 13


def psf_of(value: Any) -> Any:
    """A width or two as they are, anything else as the kernel that it means."""
    if value is None or isinstance(value, (int, float)) or (isinstance(value, (tuple, list)) and np.ndim(value) == 1):
        return value
    return load_array(value)


class SimParameters(SimulatedParameters):
    """What is simulated: beam, sample, pattern and detector."""

    illumination: IlluminationParameters = IlluminationParameters()
    """Illumination parameters

    The beam, as the starting probe of a scan model is described; None for `photons` is 1e8 here. A text is the path of a
    `.ptyr` file whose probe it is. 'stxm' is an estimate from frames and cannot be simulated."""

    sample: FullSampleParameters = FullSampleParameters()
    """The sample, as the starting object of a scan model is described, its middle in the middle of the pattern; `fill` around
    it. A text is the path of a `.ptyr` file whose object it is. 'stxm' is an estimate from frames and cannot be simulated."""

    xy: XyParameters = XyParameters()
    """The scan pattern"""

    detector: DetectorParameters = DetectorParameters()
    """The detector, or its name"""

    num_probe_modes: int = parameter(1, lower=1, upper=64, ours=True)
    """Incoherent modes of the beam; `illumination.diversity` says how they differ."""

    num_object_modes: int = parameter(1, lower=1, upper=64, ours=True)
    """Incoherent modes of the sample; `sample.diversity` says how they differ."""

    add_poisson_noise: bool = parameter(False)
    """Decides whether the scan should have poisson noise or not

    Noise of the photons, of a scintillator's light and of the dark current; that of the read-out belongs to the detector.
    (ptypy's simulation has it whatever this says.)"""

    pos_noise: float = parameter(1e-10)
    """Uniformly distributed noise in xy experimental positions

    Positions are told wrong by up to this in either direction of either axis (metres) times `pos_scale`; frames are those of the
    true ones."""

    pos_scale: float | list[float] = parameter(0.0)
    """Amplifier for noise.

    Will be extended to match number of positions. Maybe used to only put nois on individual points. One number for all, or one
    for each position; the last one is repeated."""

    pos_drift: float | list[float | tuple[float, float]] = parameter(0.0)
    """Drift or offset paramter

    Noise independent drift. Will be extended like pos_scale. Added to the positions that are told, metres, one number or (y, x)
    each."""

    frame_size: float | tuple[float, float] | None = parameter(None)
    """Final frame size when saving

    Pixels (one number or (y, x)) of the frames that come from the detector, cut or filled up with darkness about the beam. If
    None, no cropping/padding happens: `shape` pixels."""

    psf: Annotated[float | tuple[float, float] | np.ndarray | list[Any] | str | None, AfterValidator(psf_of)] = parameter(None)
    """Parameters for gaussian convolution or convolution kernel after propagation

    Use it for simulating partial coherence. Standard deviation in pixels (one number or (y, x)), or a kernel (y, x), an array
    or file, which is scaled to sum 1."""

    verbose_level: int = parameter(1)
    """Verbose level when simulating

    0 to 5, as the root's `verbose_level`."""

    plot: bool = parameter(True)
    """Save a picture of beam, sample, positions and a frame as `<label>_simulation.png` below `io.home`. (ptypy opens windows
    and pauses.)"""

    propagation: Literal["farfield", "nearfield"] = parameter("farfield")
    """farfield or nearfield

    From the sample to the detector. Near field: angular spectrum over `distance`, pixels on the sample are the detector's."""

    def frame_shape(self) -> tuple[int, int] | None:
        """See `SimulatedParameters`."""
        if self.frame_size is None:
            return super().frame_shape()
        y, x = np.broadcast_to(np.asarray(self.frame_size, int), 2).tolist()
        return y, x

    @field_validator("illumination", "sample", mode="before")
    @classmethod
    def _file(cls, value: Any) -> Any:
        return {"model": "recon", "recon": {"rfile": value}} if isinstance(value, str) else value

    @field_validator("illumination", "sample")
    @classmethod
    def _estimate(cls, value: Any) -> Any:
        if isinstance(value.model, str) and value.model == "stxm":
            raise ValueError("model: 'stxm' is an estimate from frames; a simulation makes them, so say what it shall show")
        if getattr(value, "stxm", None) is not None and value.stxm.label is not None:
            raise ValueError(f"stxm.label: {value.stxm.label!r}: whose frames to estimate from; a simulation estimates nothing")
        return value

    @field_validator("detector", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("psf")
    @classmethod
    def _psf(cls, value: Any) -> Any:
        array = np.zeros(1) if value is None else np.asarray(value, float)
        kernel = array.ndim == 2 and array.size > 0 and array.sum() > 0
        if not (np.isfinite(array).all() and (array >= 0).all() and (kernel or array.ndim == 0 or array.shape in ((1,), (2,)))):
            raise ValueError("must be a width in pixels, two of them, or a kernel (y, x), none below 0")
        return value

    @field_validator("frame_size")
    @classmethod
    def _frame_size(cls, value: Any) -> Any:
        if value is not None and not all(1 <= v <= MAX_SIDE and v == round(v) for v in np.atleast_1d(value)):
            raise ValueError(f"must be whole numbers of pixels from 1 to {MAX_SIDE}")
        return value

    @field_validator("pos_noise")
    @classmethod
    def _pos_noise(cls, value: float) -> float:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError("must be 0 or above (metres)")
        return value

    @field_validator("pos_scale", "pos_drift")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise ValueError("give one number at least")
        return value

    @field_validator("verbose_level")
    @classmethod
    def _known(cls, value: int) -> int:
        level(value)
        return value

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.planned() is None and self.xy.override is None and self.xy.model is None:
            raise ValueError("xy.model: None: choose 'round', 'raster' or 'spiral', or give positions in xy.override")
        if isinstance(self.psf, np.ndarray) and self.shape is not None and max(self.psf.shape) > 2 * self.side():
            raise ValueError(f"psf: a kernel of {self.psf.shape}: at most {2 * self.side()} pixels, twice the frame's side")
        return self


class SimScan:
    """A scan that is simulated: beam, sample, pattern and detector as its parameters say."""

    Parameters = SimParameters
    unsimulated: ClassVar[str] = "makes its frames itself: `ptystream live` needs nothing else"
    gives_positions = False
    surroundings = True

    @staticmethod
    def decoder(parameters: Any, channel: str) -> NativeDecoder:
        """Who understands the messages."""
        return NativeDecoder()

    @staticmethod
    def transport(
        parameters: Any, channel: str, decoder: NativeDecoder, around: Surroundings | None = None
    ) -> SimulatedTransport:
        """Where they come from: made here."""
        from .simulation import SimSimulation

        around = around or Surroundings()
        return SimulatedTransport(
            channel,
            lambda: SimSimulation(parameters, channel, around),
            decoder,
            block=max(around.frames_per_block, parameters.min_frames),
            metadata=parameters.metadata(),
        )


def extended(value: Any, count: int) -> NDArray[np.float64]:
    """One number, or one (or a pair) for each of the first positions, as (count, 2); the last is repeated."""
    rows = [np.broadcast_to(np.asarray(v, float), 2) for v in (value if isinstance(value, list) else [value])]
    return np.array([rows[min(k, len(rows) - 1)] for k in range(count)]).reshape(count, 2)
