"""What a SimScan computes: beam, object and positions put together, one frame at a time through the detector."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.chance import generator
from ptystream.model.geometry import Geometry
from ptystream.model.probe import Given, starting_probe
from ptystream.model.sample import FullSampleParameters
from ptystream.model.specimen import starting_object
from ptystream.transport import Surroundings
from ptystream.verbosity import level

from .camera import Camera
from .exposure import Experiment, blurred, canvas
from .simscan import SimParameters, extended

PHOTONS = 1e8
"""In the beam where `illumination.photons` is None."""
MAX_OBJECT_PIXELS = 1 << 28


class SimSimulation:
    """Frames of one SimScan. Raises `ValueError` for parameters that do not fit each other."""

    def __init__(self, parameters: Any, channel: str, around: Surroundings) -> None:
        self.p: Any = parameters
        self._label = channel.partition("/")[0]
        self._channel = channel
        self.seed = around.seed if self.p.seed is None else self.p.seed
        self._log = logging.getLogger(f"{__name__}.{self._label}")
        self._log.setLevel(level(self.p.verbose_level))
        self.geometry = geometry_of(self.p)
        self.true_m = self._true_positions()
        self.positions_m = self._told_positions()
        self._camera = Camera(self.p.detector)
        self.dtype = self._camera.dtype
        y, x = np.broadcast_to(self.p.frame_size or self.geometry.shape, 2)
        self.shape = (int(y), int(x))
        self._valid = self._camera.valid(self.shape)
        self.experiment = self._experiment()
        self._log.info(
            "%s: %d positions, beam of %s, object of %s, %s frames of %s",
            channel,
            len(self.true_m),
            self.experiment.probe.shape,
            self.experiment.object.shape,
            self.p.detector.model,
            self.shape,
        )
        if self.p.plot:
            from .figure import save

            path = around.home / f"{self._label}_simulation.png"
            save(path, self, self.p.propagation == "nearfield")
            self._log.info("%s: picture: %s", channel, path)

    def frame(self, number: int) -> NDArray[Any]:
        """Counts of one frame, keyed by (seed, scan, frame)."""
        random = generator(self.seed, f"detector of {self._channel}", number)
        made = self._camera.counts(self.intensity(number), random, poisson=self.p.add_poisson_noise, valid=self._valid)
        lost = int(np.count_nonzero((made == np.iinfo(self.dtype).max) & self._valid))
        if lost:
            self._log.warning("%s: frame %d: %d pixels are saturated", self._channel, number, lost)
        self._log.debug("%s: frame %d", self._channel, number)
        return made

    def intensity(self, number: int) -> NDArray[np.float64]:
        """Expected photons on the detector, (y, x) of `shape`, the beam in the middle."""
        seen = self.experiment.intensity(number)
        if self.p.psf is not None:
            seen = blurred(seen, self.p.psf)
        return fitted(seen, self.shape)

    def _true_positions(self) -> NDArray[np.float64]:
        places = self.p.planned()
        if places is None:
            places = self.p.xy.positions(self.seed)
        if places is None or not len(places):
            raise ValueError("data.xy: gives no position")
        return np.asarray(places, np.float64)[: None if self.p.planned() is not None else self.p.num_frames]

    def _told_positions(self) -> NDArray[np.float64]:
        """What an encoder would have said."""
        count = len(self.true_m)
        noise = generator(self.seed, f"positions of {self._channel}").uniform(-1.0, 1.0, (count, 2)) * self.p.pos_noise
        told = self.true_m + extended(self.p.pos_scale, count) * noise + extended(self.p.pos_drift, count)
        return np.asarray(told)

    def _experiment(self) -> Experiment:
        p, geometry = self.p, self.geometry
        pixel = geometry.pixel_size_m
        assert pixel is not None
        places = self.true_m / np.asarray(pixel)
        given = Given(float(p.illumination.photons or PHOTONS), self._label, self.seed)
        probe = starting_probe(p.illumination, geometry, p.num_probe_modes, given)
        near = angular_spectrum(geometry, float(p.distance)) if p.propagation == "nearfield" else None
        offset, size = canvas(places, geometry.shape)
        if size[0] * size[1] * p.num_object_modes > MAX_OBJECT_PIXELS:
            raise ValueError(f"data.xy: the positions need an object of {size} pixels; bring them closer")
        middle = (places.min(axis=0) + places.max(axis=0)) / 2
        sample = _sample(p.sample, geometry, p.num_object_modes, offset, size, np.rint(middle).astype(int), self)
        return Experiment(probe, sample, offset, places, near)


def geometry_of(parameters: SimParameters) -> Geometry:
    """Geometry of the frame that is computed, before binning."""
    side = parameters.side()
    parameters.simulated_pixel_m()  # says what is missing
    assert parameters.psize is not None
    y, x = np.broadcast_to(np.asarray(parameters.psize, float), 2)
    made = Geometry((side, side), parameters.energy, parameters.distance, (float(y), float(x)))
    if parameters.acc_voltage is not None:
        made = replace(made, energy_kev=None, voltage_kv=parameters.acc_voltage)
    return replace(made, near=True) if parameters.propagation == "nearfield" else made


def _sample(
    parameters: FullSampleParameters,
    geometry: Geometry,
    modes: int,
    offset: tuple[int, int],
    size: tuple[int, int],
    middle: NDArray[np.int64],
    simulation: SimSimulation,
) -> NDArray[np.complex128]:
    """The object (mode, y, x) on the canvas of all positions: what is modelled in its middle, `fill` around it."""
    box = (int(middle[0]), int(middle[1])), size
    made = starting_object(parameters, geometry, modes, box=box, label=simulation._label, seed=simulation.seed)
    shares = made.shares or (1.0,) * modes
    whole = np.array([np.full(size, complex(parameters.fill) * share) for share in shares])
    placed = isinstance(parameters.model, str)  # pictures fill the box, and a result knows where it was
    first = np.asarray(made.offset) + (0 if placed else middle) - offset
    low, high = np.maximum(first, 0), np.minimum(first + made.data.shape[1:], size)
    if (low < high).all():
        there, here = low - first, high - first
        whole[:, low[0] : high[0], low[1] : high[1]] = made.data[:, there[0] : here[0], there[1] : here[1]]
    return whole


def angular_spectrum(geometry: Geometry, distance: float) -> NDArray[np.complex128]:
    """Transfer function of `distance` in free space, zero frequency at [0, 0]; waves that do not travel are left out."""
    assert geometry.wavelength_m and geometry.pixel_size_m
    y, x = (
        np.fft.fftfreq(n, pixel) * geometry.wavelength_m for n, pixel in zip(geometry.shape, geometry.pixel_size_m, strict=True)
    )
    square = 1.0 - y[:, None] ** 2 - x[None] ** 2
    phase = 2.0 * np.pi * distance / geometry.wavelength_m * (np.sqrt(np.maximum(square, 0.0)) - 1.0)
    return np.asarray(np.exp(1j * phase) * (square > 0))


def fitted(image: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Cut, or filled up with 0, about pixel n // 2."""
    made = np.zeros(shape)
    source, target = [], []
    for have, want in zip(image.shape, shape, strict=True):
        low, high = max(-(have // 2), -(want // 2)), min(have - have // 2, want - want // 2)
        source.append(slice(have // 2 + low, have // 2 + high))
        target.append(slice(want // 2 + low, want // 2 + high))
    made[target[0], target[1]] = image[source[0], source[1]]
    return made
