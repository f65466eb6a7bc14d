"""StemScan: 4D-STEM of a thick sample of atoms on a lattice, simulated while it runs."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import field_validator, model_validator

from ptystream.model.aberrations import MOST
from ptystream.model.electrons import electron_wavelength
from ptystream.params.base import parameter
from ptystream.scan.memory import allowed_bytes
from ptystream.transport import Surroundings

from ..zmq.protocol import NativeDecoder
from .microscope import Microscope, places_of
from .stream import SimulatedParameters, SimulatedTransport

MAX_FRAMES = 1 << 22
BYTES_A_PIXEL = 64
"""Memory per pixel of a slice while the sample is drawn."""
BYTES_A_COUNT = 4
"""Memory per pixel of a pattern while all are made."""
BYTES_AN_ATOM = 400
"""Memory per atom of a slice."""


class StemParameters(SimulatedParameters):
    """Microscope, raster and sample; lengths in metres.

    `distance` and `psize` follow from `acc_voltage`, `pixel` and `shape` where they are not given: one metre, and the detector's
    pixel that gives `pixel` on the sample.
    """

    shape: int | tuple[int, int] | None = parameter(64)
    """Side of the patterns, pixels."""

    acc_voltage: float | None = parameter(60.0, lower=0.1, upper=3000.0, ours=True)
    """Acceleration voltage, kV."""

    pixel: float = parameter(0.2e-10, ours=True)
    """Pixel of the wave on the sample, metres: patterns reach to λ / 2 pixels."""

    semiangle: float = parameter(30e-3, ours=True)
    """Half angle of the cone in which the beam converges, radians."""

    aberrations: list[float] = parameter([-100e-10], ours=True)
    """Aberrations of the probe, metres, in the order C10, C12a, C12b, C21a, C21b, C23a, C23b, C30, …"""

    electrons: float = parameter(1e4, ours=True)
    """In the beam, per frame."""

    add_poisson_noise: bool = parameter(True)
    """Whether electrons are counted one by one; without, counts are what is expected, rounded."""

    steps: int | tuple[int, int] = parameter((32, 32), ours=True)
    """Points of the raster, one number or (rows, columns)."""

    step: float | tuple[float, float] = parameter(0.5e-10, ours=True)
    """From one point to the next, metres, one number or (y, x)."""

    rotation: float = parameter(0.0, ours=True)
    """By how much the raster is turned against the patterns, degrees, as `raster.rotation` is. Positions are told along the
    patterns' axes."""

    snake: bool = parameter(False, ours=True)
    """Whether every second row is scanned backwards."""

    flyback: int = parameter(0, lower=0, upper=10000, ours=True)
    """Frames behind each row while the beam goes back."""

    descan: tuple[float, float, float, float] = parameter((0.0, 0.0, 0.0, 0.0), ours=True)
    """By how many pixels (y, x) patterns wander from the first row to the last, and (y, x) from the first point of a row to the
    last; in the middle of the raster they lie straight."""

    slices: int = parameter(4, lower=1, upper=1000, ours=True)
    """Layers of atoms."""

    slice_distance: float = parameter(10e-10, ours=True)
    """From one to the next, metres."""

    lattice: float = parameter(3e-10, ours=True)
    """Side of the square cell of columns, metres; a lighter column (0.6 of the potential) is in its middle."""

    potential: float = parameter(280e-30, ours=True)
    """Volume integral of an atom's potential, V m³: 280e-30 is about that of silicon."""

    width: float = parameter(0.35e-10, ours=True)
    """Standard deviation of an atom's potential, metres."""

    displacement: float = parameter(0.08e-10, ours=True)
    """Standard deviation of atoms from their places in y and x, metres."""

    vacancies: float = parameter(0.1, lower=0.0, upper=1.0, ours=True)
    """Part of the atoms that is missing."""

    @model_validator(mode="before")
    @classmethod
    def _geometry(cls, given: Any) -> Any:
        """What is not given of the set-up follows from the pixel."""
        if not isinstance(given, dict):
            return given
        told = {name: given.get(name, cls.model_fields[name].default) for name in ("acc_voltage", "pixel", "shape")}
        try:
            side = int(min(np.ravel(told["shape"])))
            wavelength = electron_wavelength(float(told["acc_voltage"]))
            psize = wavelength / (side * float(told["pixel"]))
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            return given  # the fields themselves say what is wrong
        if not (math.isfinite(psize) and psize > 0):
            return given
        made = {"distance": 1.0, "psize": psize}
        kept = {"acc_voltage": told["acc_voltage"]} | given
        return kept if any(name in given for name in made) else made | kept

    @field_validator("pixel", "semiangle", "electrons", "slice_distance", "lattice", "width")
    @classmethod
    def _positive(cls, value: float) -> float:
        if not (math.isfinite(value) and value > 0):
            raise ValueError("must be above 0")
        return value

    @field_validator("displacement", "potential", "rotation")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("must be finite")
        return value

    @field_validator("descan")
    @classmethod
    def _wanders(cls, value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        if not np.isfinite(value).all():
            raise ValueError("must be four finite numbers (pixels)")
        return value

    @field_validator("aberrations")
    @classmethod
    def _known(cls, value: list[float]) -> list[float]:
        if not 1 <= len(value) <= MOST or not np.isfinite(value).all():
            raise ValueError(f"must be 1 to {MOST} finite numbers (metres)")
        return value

    @field_validator("steps", "step")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if not all(math.isfinite(v) and v > 0 for v in np.ravel(value)):
            raise ValueError("must be above 0")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.acc_voltage is None:
            raise ValueError("acc_voltage: None: electrons are simulated: give their voltage (kV)")
        pixel = self.pixel_m()
        if pixel is not None and max(abs(p / self.pixel - 1) for p in pixel) > 1e-3:
            raise ValueError(
                f"pixel: {self.pixel:g} m: acc_voltage, distance, psize and shape make it {pixel[0]:g} m: leave these out"
            )
        rows, columns = np.broadcast_to(self.steps, 2).tolist()
        if rows * (columns + self.flyback) > MAX_FRAMES:
            raise ValueError(f"steps: {rows} x {columns}: more than {MAX_FRAMES} frames")
        if self.shape is not None and self.positions_theory is None:
            reach = np.array([rows, columns]) * np.broadcast_to(self.step, 2) / self.pixel
            self.affordable((float(np.hypot(*reach)) + self.side(), float(np.hypot(*reach)) + self.side()))
        return self

    def affordable(self, size: tuple[float, float]) -> None:
        """Raises `ValueError` where a sample of `size` pixels would not fit into memory."""
        cells = math.prod(n * self.pixel / self.lattice + 4 for n in size)
        needed = size[0] * size[1] * (BYTES_A_PIXEL + 16 * self.slices) + 2 * cells * (BYTES_AN_ATOM + 24 * self.slices)
        if needed > allowed_bytes():
            text = f"a sample of {size[0]:.4g} x {size[1]:.4g} pixels in {self.slices} slices of {2 * cells:.3g} atoms"
            text += f" takes {needed:.3g} bytes"
            raise ValueError(f"steps: {text}, of {allowed_bytes():.3g} allowed")

    def metadata(self) -> dict[str, Any]:
        """See `SimulatedParameters`."""
        told = {name: value for name, value in super().metadata().items() if value is not None}
        return told | {"acc_voltage": self.acc_voltage}


class StemBeamline:
    """A `StemScan` as a beamline of `detectors.simulated.simulator.run`: what `ptystream simulate --stem` sends."""

    def __init__(
        self, frames: int = 1024, side: int = 64, rate_hz: float = 100.0, seed: int = 0, given: dict[str, Any] | None = None
    ) -> None:
        """`given`: parameters of `StemScan`; then `frames` and `side` are left, and `seed` where they have one. Raises
        `ValueError` (pydantic's for the parameters) for what cannot be, and where patterns of all frames take too much memory."""
        rows = math.ceil(math.sqrt(frames))
        asked = {"shape": side, "steps": (math.ceil(frames / rows), rows), "num_frames": frames}
        self.parameters = StemParameters.model_validate(asked if given is None else given)
        self.rate_hz, self.seed = rate_hz, seed if self.parameters.seed is None else self.parameters.seed
        self.frames_per_message, self.samples_per_frame, self.encoder_noise_m = 1, 1, 0.0
        self.scan_id, self.pixel_m = "simulated", self.parameters.pixel
        self.frames, self.side = len(places_of(self.parameters)), self.parameters.side()
        needed = BYTES_A_COUNT * self.frames * self.side**2
        if needed > allowed_bytes():  # they are made before the first is sent
            raise ValueError(f"steps: {self.frames} patterns take {needed:.3g} bytes, of {allowed_bytes():.3g} allowed")
        self.microscope = Microscope(self.parameters, self.seed, self.scan_id)

    def positions_m(self) -> Any:
        """Where the beam is, (frame, 2), (y, x)."""
        return self.microscope.positions_m

    def probe(self) -> Any:
        """(y, x), Σ|P|² = electrons."""
        return self.microscope.probe

    def object(self) -> Any:
        """(slice, y, x)."""
        return self.microscope.object

    def pattern(self, number: int, truth: Any = None) -> Any:
        """Counts of one frame, (y, x)."""
        return np.minimum(self.microscope.frame(number), 65534).astype(np.uint16)

    def geometry(self) -> dict[str, Any]:
        """Parameters of `scans.*.data` that give the pixel."""
        p = self.parameters
        return {"acc_voltage": p.acc_voltage, "distance": p.distance, "psize": p.psize}

    def told(self) -> dict[str, Any]:
        """What a reconstruction needs to know of microscope and raster."""
        p, names = (
            self.parameters,
            ("semiangle", "aberrations", "steps", "step", "slices", "slice_distance", "electrons"),
        )
        return {name: getattr(p, name) for name in names}


class StemScan:
    """4D-STEM of a sample of several slices, every number of which is known."""

    Parameters: ClassVar[type[SimulatedParameters]] = StemParameters
    unsimulated: ClassVar[str] = (
        "makes its frames itself: `ptystream live` needs nothing else; on a wire: `ptystream simulate --stem`"
    )
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
        around = around or Surroundings()
        seed = around.seed if parameters.seed is None else parameters.seed
        return SimulatedTransport(
            channel,
            lambda: Microscope(parameters, seed, channel),
            decoder,
            block=max(around.frames_per_block, parameters.min_frames),
            metadata=parameters.metadata(),
        )
