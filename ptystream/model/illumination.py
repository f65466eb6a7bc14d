"""The starting probe: a model or an aperture, propagated to the sample, scaled to photons, and made into modes."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator
from scipy.ndimage import gaussian_filter
from scipy.special import erf

from ptystream.model.geometry import Geometry
from ptystream.params.base import Branch, parameter
from ptystream.scan.parameters import ArrayParameter, load_array

FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian of unit standard deviation."""


class ApertureParameters(Branch):
    """Beam aperture parameters."""

    rotate: float = parameter(0.0)
    """Rotate aperture by this value, in radians."""

    central_stop: float | None = parameter(None, lower=0.0, upper=1.0)
    """Size of central stop as a fraction of aperture.size; None: no stop."""

    edge: float = parameter(2.0)
    """Edge width of aperture (in pixels), to suppress aliasing."""

    form: Literal["circ", "rect"] | None = parameter("circ")
    """One of None, 'rect' or 'circ': no aperture, a rectangular or a circular one."""

    offset: float | tuple[float, float] = parameter(0.0)
    """Offset between center of aperture and optical axes, in metres of the aperture plane; one number or (vertical,
    horizontal)."""

    size: float | tuple[float, float] | None = parameter(None, validated=(0.0, None))
    """Aperture width or diameter, in metres of the aperture plane; one number or (vertical, horizontal). None: a third of
    the frame."""

    @field_validator("size")
    @classmethod
    def _size(cls, value: float | tuple[float, float] | None) -> float | tuple[float, float] | None:
        if value is not None and not all(side > 0 for side in np.atleast_1d(value)):
            raise ValueError("must be above 0 (metres)")
        return value


class PropagationParameters(Branch):
    """Parameters for propagation after aperture plane."""

    focussed: float | None = parameter(None)
    """Propagation distance from aperture to focus, metres; None: the aperture lies in the sample plane."""

    parallel: float | None = parameter(None)
    """Parallel propagation distance, metres; None or 0: none. Forward propagation is positive."""


class DiversityParameters(Branch):
    """How further probe modes differ from the first."""

    noise: tuple[float, float] | None = parameter((0.5, 1.0))
    """Noise in each non-primary mode of the illumination: (rms of a phase, minimum feature size in pixels)."""

    power: float | tuple[float, ...] = parameter(0.1, validated=(0.0, 1.0))
    """Power of modes relative to main mode (zero-layer); the last value is repeated."""

    @field_validator("power")
    @classmethod
    def _power(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if not all(0 <= power <= 1 for power in np.atleast_1d(value)):
            raise ValueError("must be from 0 to 1")
        return value


class IlluminationParameters(Branch):
    """The starting probe."""

    aperture: ApertureParameters = ApertureParameters()
    """Beam aperture parameters"""

    diversity: DiversityParameters | None = DiversityParameters()
    """Probe mode(s) diversity parameters; None: all modes start alike, with equal power."""

    model: ArrayParameter = parameter(None)
    """Type of illumination model

    None: a flat wave before the aperture. An array (y, x) or (mode, y, x), a nested list, or a file 'name.npy', 'name.npz:array'
    or 'name.h5:/dataset'. Any other text is an error."""

    photons: float | None = parameter(None, lower=0.0)
    """Number of photons in the incident illumination; None: those of the brightest of the run's first frames."""

    propagation: PropagationParameters = PropagationParameters()
    """Parameters for propagation after aperture plane; without effect on a `model` that is an array."""


def starting_probe(
    parameters: IlluminationParameters, geometry: Geometry, modes: int, photons: float, seed: int = 0
) -> NDArray[np.complex128]:
    """The probe at the sample, (mode, y, x), Σ|P|² = `photons`, centred on pixel N // 2.

    Raises `ValueError` for a model that does not fit the frame, and for lengths in metres without a known pixel size.
    """
    given = load_array(parameters.model, "illumination.model")
    if given is not None:
        probe = np.asarray(given, complex)
        probe = probe.reshape(-1, *probe.shape[-2:])
        if probe.shape[1:] != geometry.shape:
            raise ValueError(f"illumination.model: shape {probe.shape[1:]}: must be {geometry.shape}, the prepared frame's")
    else:
        probe = _from_aperture(parameters, geometry)[None]
    if len(probe) < modes:
        probe = _diverse(probe, modes, parameters.diversity, seed)
    probe = probe[:modes]
    total = float((np.abs(probe) ** 2).sum())
    if total <= 0:
        raise ValueError("illumination: the starting probe is empty; check aperture.size and the model")
    return np.asarray(probe * math.sqrt(photons / total))


def _from_aperture(parameters: IlluminationParameters, geometry: Geometry) -> NDArray[np.complex128]:
    p, focus, shape = parameters.aperture, parameters.propagation.focussed, geometry.shape
    pixel, wavelength = geometry.pixel_size_m, geometry.wavelength_m
    lengths = p.size is not None or np.any(p.offset) or focus or parameters.propagation.parallel
    if lengths and (pixel is None or wavelength is None):
        raise ValueError(
            "illumination: lengths in metres need data.energy, data.distance and data.psize; give those, or a `model` array"
        )
    plane = pixel or (1.0, 1.0)
    if focus and pixel and wavelength:
        plane = (wavelength * abs(focus) / (shape[0] * pixel[0]), wavelength * abs(focus) / (shape[1] * pixel[1]))
    wave = aperture(p, shape, plane).astype(complex)
    if focus and wavelength:
        y, x = _grid(shape, pixel or (1.0, 1.0))
        wave = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(wave), norm="ortho"))
        wave = wave * np.exp(1j * np.pi * (y**2 + x**2) / (wavelength * focus))
    distance = parameters.propagation.parallel
    if distance and wavelength and pixel:
        fy, fx = (np.fft.fftfreq(n, s) * wavelength for n, s in zip(shape, pixel, strict=True))
        cosine = np.sqrt(np.maximum(0.0, 1 - fy[:, None] ** 2 - fx[None] ** 2))
        wave = np.fft.ifft2(np.fft.fft2(wave) * np.exp(2j * np.pi * distance / wavelength * (cosine - 1)))
    return np.asarray(wave)


def aperture(parameters: ApertureParameters, shape: tuple[int, int], pixel_m: tuple[float, float]) -> NDArray[np.float64]:
    """Transmission of the aperture, (y, x): edges are error functions of `edge` pixels."""
    if parameters.form is None:
        return np.ones(shape)
    offset = np.broadcast_to(np.asarray(parameters.offset, float), 2) / pixel_m
    y, x = _grid(shape, (1.0, 1.0))
    y, x = y - offset[0], x - offset[1]
    cos, sin = math.cos(parameters.rotate), math.sin(parameters.rotate)
    y, x = cos * y - sin * x, sin * y + cos * x
    if parameters.size is None:
        v, h = shape[0] / 3, shape[1] / 3
    else:
        v, h = np.broadcast_to(np.asarray(parameters.size, float), 2) / pixel_m
    edge = max(parameters.edge, 1e-6)

    def opening(scale: float) -> NDArray[np.float64]:
        vs, hs = v * scale, h * scale
        if parameters.form == "circ":
            inside = 0.5 - np.sqrt((y / vs) ** 2 + (x / hs) ** 2)
            return np.asarray(0.5 * erf(FWHM * inside * math.sqrt(vs * hs) / edge) + 0.5)
        sides = [0.5 * erf(FWHM * (s / 2 - np.abs(t)) / edge) + 0.5 for s, t in ((vs, y), (hs, x))]
        return np.asarray(sides[0] * sides[1])

    whole = opening(1.0)
    return whole if not parameters.central_stop else whole * (1 - opening(parameters.central_stop))


def _grid(shape: tuple[int, int], pixel: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = ((np.arange(n) - n // 2) * s for n, s in zip(shape, pixel, strict=True))
    return np.broadcast_to(y[:, None], shape), np.broadcast_to(x[None], shape)


def _diverse(
    probe: NDArray[np.complex128], modes: int, parameters: DiversityParameters | None, seed: int
) -> NDArray[np.complex128]:
    """Further modes: the first one times a random phase, with the powers asked for."""
    first = probe[0]
    layers = list(probe)
    for mode in range(len(probe), modes):
        layer = first
        if parameters is not None and parameters.noise is not None:
            random = np.random.Generator(np.random.Philox(key=[seed, mode]))
            rms, feature = parameters.noise
            noise = gaussian_filter(random.normal(0.0, 1.0, first.shape), feature / FWHM)
            layer = first * np.exp(1j * rms * noise / max(float(noise.std()), 1e-12))
        layers.append(layer)
    given = (1.0,) * modes if parameters is None else (1.0, *np.atleast_1d(np.asarray(parameters.power, float)))
    powers = np.array([given[min(k, len(given) - 1)] for k in range(modes)])
    sizes = [math.sqrt(p / max(float((np.abs(q) ** 2).sum()), 1e-30)) for p, q in zip(powers, layers, strict=True)]
    return np.array([q * s for q, s in zip(layers, sizes, strict=True)])
