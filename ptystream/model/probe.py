"""The starting probe: a model behind an aperture, propagated to the sample, scaled to photons, and made into modes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from ptystream.model import previous
from ptystream.model.diversity import DIFFUSER, FWHM, PROBE_MODES, diffuser, direction, powers, shifted
from ptystream.model.geometry import Geometry
from ptystream.model.illumination import ApertureParameters, DiversityParameters, IlluminationParameters
from ptystream.model.pictures import PICTURES

AIRY = 2.4393
"""Diameter of the first dark ring of a round lens' focus, in units of wavelength × focal length / diameter."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a starting probe may need besides its parameters."""

    photons: float
    label: str
    seed: int = 0
    factor: float = 1.0
    """Energy relative to the geometry's."""
    mean: NDArray[np.complex128] | None = None
    """For 'stxm': the mean frame, taken back to the sample, (y, x)."""


def starting_probe(parameters: IlluminationParameters, geometry: Geometry, modes: int, given: Given) -> NDArray[np.complex128]:
    """The probe at the sample, (mode, y, x), Σ|P|² = `photons`, centred on pixel N // 2.

    Raises `ValueError` for a model that does not fit the frame, and for lengths in metres without a known pixel size.
    """
    probe = _propagated(parameters, geometry, _model(parameters, geometry, given), given)
    if probe.shape[0] < modes:
        probe = _diverse(probe, modes, parameters.diversity, geometry.pixel_size_m, given.seed)
    probe = probe[:modes]
    total = float((np.abs(probe) ** 2).sum())
    if not (math.isfinite(total) and total > 0):
        raise ValueError("illumination: the starting probe is empty; check aperture.size and the model")
    return np.asarray(probe * math.sqrt(given.photons / total))


def _model(parameters: IlluminationParameters, geometry: Geometry, given: Given) -> NDArray[np.complex128] | None:
    """The wave before the aperture, (mode, y, x); None for a flat one."""
    model, shape = parameters.model, geometry.view
    if model is None:
        return None
    if isinstance(model, str) and model == "recon":
        found = previous.read(parameters.recon.rfile, "probe", parameters.recon.label, given.label)
        previous.same_pixel(found, geometry.pixel_size_m, "illumination.recon")
        return previous.centred(found.data, shape)
    if isinstance(model, str) and model == "stxm":
        if given.mean is None:
            raise ValueError("illumination.model: 'stxm': needs frames")
        return given.mean[None]
    if isinstance(model, str):
        return PICTURES[model](shape, given.seed)[None]
    probe = np.asarray(model, complex)
    probe = probe.reshape(-1, *probe.shape[-2:]) if probe.ndim >= 2 else probe[None, None]
    if probe.shape[1:] != shape:
        raise ValueError(f"illumination.model: shape {probe.shape[1:]}: must be {shape}, the prepared frame's")
    return probe


def _propagated(
    parameters: IlluminationParameters, geometry: Geometry, wave: NDArray[np.complex128] | None, given: Given
) -> NDArray[np.complex128]:
    """Through aperture and lens to the sample; a wave that is given keeps what it is where nothing of that is asked for."""
    p, way = parameters.aperture, parameters.propagation
    pixel, wavelength = geometry.pixel_size_m, geometry.wavelength_m
    lengths = p.size is not None or np.any(p.offset) or way.focussed or way.parallel
    if lengths and (pixel is None or wavelength is None):
        raise ValueError(
            "illumination: lengths in metres need data.energy, data.distance and data.psize; give those, or a `model` array"
        )
    wavelength = None if wavelength is None else wavelength / given.factor
    step = pixel or (1.0, 1.0)
    shape = (_enlarged(geometry.view[0], way.antialiasing), _enlarged(geometry.view[1], way.antialiasing))
    plane = step
    if way.focussed and wavelength:
        plane = (wavelength * abs(way.focussed) / (shape[0] * step[0]), wavelength * abs(way.focussed) / (shape[1] * step[1]))
    opens = wave is None or bool(parameters.aperture.model_fields_set)
    wave = np.ones((1, *shape), complex) if wave is None else previous.centred(wave, shape)
    if opens:
        opening = aperture(_sized(parameters, geometry.view, step, wavelength), shape, plane)
        wave = wave * opening * diffuser(shape, p.diffuser, given.seed, DIFFUSER)
    if way.focussed and wavelength:
        y, x = _grid(shape, step)
        wave = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(wave, axes=(1, 2)), norm="ortho"), axes=(1, 2))
        wave = wave * np.exp(1j * np.pi * (y**2 + x**2) / (wavelength * way.focussed))
    if way.parallel and wavelength:
        fy, fx = (np.fft.fftfreq(n, s) * wavelength for n, s in zip(shape, step, strict=True))
        cosine = np.sqrt(np.maximum(0.0, 1 - fy[:, None] ** 2 - fx[None] ** 2))
        wave = np.fft.ifft2(np.fft.fft2(wave) * np.exp(2j * np.pi * way.parallel / wavelength * (cosine - 1)))
    made = previous.centred(np.asarray(wave), geometry.view)
    if parameters.model is None or way.focussed or way.parallel:  # what is modelled becomes what we hold
        made = made * geometry.curvature()
    return made


def _sized(
    parameters: IlluminationParameters, view: tuple[int, int], step: tuple[float, float], wavelength: float | None
) -> ApertureParameters:
    """The aperture, its size that of the wanted spot where one is given."""
    p, way = parameters.aperture, parameters.propagation
    if way.spot_size is not None and way.focussed and wavelength is not None:
        rings = 2.0 if p.form == "rect" else AIRY
        return p.model_copy(update={"size": rings * wavelength * abs(way.focussed) / way.spot_size})
    if p.size is None and not way.focussed:
        return p.model_copy(update={"size": (view[0] * step[0] / 3, view[1] * step[1] / 3)})
    return p


def _enlarged(side: int, factor: float) -> int:
    return side + 2 * math.ceil(side * (factor - 1) / 2)


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
    probe: NDArray[np.complex128],
    modes: int,
    parameters: DiversityParameters | None,
    pixel: tuple[float, float] | None,
    seed: int,
) -> NDArray[np.complex128]:
    """Further modes: the first one times noise, moved, with the powers asked for."""
    first, layers = probe[0], list(probe)
    if parameters is not None and parameters.shift is not None and pixel is None:
        raise ValueError("illumination.diversity.shift: metres need data.energy, data.distance and data.psize")
    for mode in range(len(probe), modes):
        layer = first
        if parameters is not None:
            layer = layer * diffuser((first.shape[0], first.shape[1]), parameters.noise, seed, PROBE_MODES, mode)
            if parameters.shift is not None and pixel is not None:
                y, x = (d * parameters.shift / p for d, p in zip(direction(mode), pixel, strict=True))
                layer = shifted(layer, (y, x))
        layers.append(layer)
    shares = powers(modes, 1.0 if parameters is None else parameters.power)
    sizes = [math.sqrt(p / max(float((np.abs(q) ** 2).sum()), 1e-30)) for p, q in zip(shares, layers, strict=True)]
    return np.array([q * s for q, s in zip(layers, sizes, strict=True)])
