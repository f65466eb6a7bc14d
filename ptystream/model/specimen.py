"""The starting object: flat, an earlier result, a first picture from the frames, or a simulated specimen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from ptystream.model import previous, refraction
from ptystream.model.blur import widths
from ptystream.model.diversity import FWHM, OBJECT_MODES, diffuser, direction, powers, shifted
from ptystream.model.geometry import KEV_METRES, Geometry
from ptystream.model.pictures import PICTURES
from ptystream.model.sample import FullSampleParameters, ProcessParameters, SampleDiversityParameters, SampleParameters
from ptystream.scan.parameters import MAX_ARRAY_BYTES


@dataclass(frozen=True, slots=True)
class Canvas:
    """A starting object: layers (layer, y, x), and lattice coordinates of its first pixel."""

    data: NDArray[np.complex128]
    offset: tuple[int, int]
    shares: tuple[float, ...] = ()
    """Factor on `fill` for each layer."""


def starting_object(
    parameters: SampleParameters,
    geometry: Geometry,
    modes: int,
    *,
    box: tuple[tuple[int, int], tuple[int, int]],
    label: str,
    seed: int = 0,
    factor: float = 1.0,
    seen: tuple[NDArray[np.complex128], NDArray[np.bool_], tuple[int, int]] | None = None,
) -> Canvas:
    """The object that a run begins with.

    `box`: (lattice coordinates of the middle, (y, x) pixels) of pictures; `seen`: transmission of the frames, where it is
    known, and its offset, for 'stxm'; `factor`: energy relative to the geometry's. Raises `ValueError` for what does not fit
    the geometry.
    """
    fill = complex(parameters.fill)
    if not isinstance(parameters, FullSampleParameters):
        return Canvas(np.full((modes, *geometry.view), fill), _middle(geometry.view))
    model = parameters.model
    if model is None:
        canvas = Canvas(np.full((1, *geometry.view), fill), _middle(geometry.view))
    elif isinstance(model, str) and model == "recon":
        found = previous.read(parameters.recon.rfile, "obj", None, label)
        previous.same_pixel(found, geometry.pixel_size_m, "sample.recon")
        canvas = Canvas(found.data, (-round(found.center[0]), -round(found.center[1])))
    elif isinstance(model, str) and model == "stxm":
        if seen is None:
            raise ValueError("sample.model: 'stxm': needs frames")
        canvas = Canvas(np.where(seen[1], seen[0], fill)[None], seen[2])
    else:
        drawn = isinstance(model, str)
        picture = PICTURES[model](box[1], seed) if isinstance(model, str) else np.asarray(model)
        layers = picture.reshape(-1, *picture.shape[-2:]) if picture.ndim >= 2 else picture.reshape(1, 1, -1)
        canvas = _processed(parameters.process, layers, geometry, factor, drawn=drawn)
        if drawn:
            canvas = Canvas(canvas.data, (canvas.offset[0] + box[0][0], canvas.offset[1] + box[0][1]))
    return _diverse(canvas, modes, parameters.diversity, geometry.pixel_size_m, seed)


def _middle(shape: tuple[int, int]) -> tuple[int, int]:
    return -(shape[0] // 2), -(shape[1] // 2)


def _processed(
    p: ProcessParameters | None, layers: NDArray[np.generic], geometry: Geometry, factor: float, *, drawn: bool
) -> Canvas:
    """Layers (layer, y, x) as a transmission, as `process` says."""
    data = np.array(layers, complex)
    if p is None:
        return Canvas(data, _middle((data.shape[1], data.shape[2])))
    real = not drawn and not np.iscomplexobj(layers)
    if drawn and p.physical:  # a picture's darkness is how much matter there is
        data = -np.log(np.maximum(np.abs(data), 1e-6)).astype(complex)
    if p.zoom is not None:
        scale = np.broadcast_to(np.asarray(p.zoom, float), 2)
        if data.nbytes * scale.prod() > MAX_ARRAY_BYTES:
            raise ValueError(f"sample.process.zoom: {p.zoom}: makes an array of more than {MAX_ARRAY_BYTES} bytes")
        parts = [zoom(part, (1.0, *scale), order=3) for part in (data.real, data.imag)]
        data = parts[0] + 1j * parts[1]
    if p.smoothing and (p.physical or "smoothing" in p.model_fields_set):
        sigma = widths((0.0, p.smoothing / FWHM, p.smoothing / FWHM), data.shape)
        data = gaussian_filter(data.real, sigma) + 1j * gaussian_filter(data.imag, sigma)
    if p.physical:
        data = _passed(p, data, geometry, factor, real=real)
    y, x = _middle((data.shape[1], data.shape[2]))
    return Canvas(data, (y + p.offset[0], x + p.offset[1]))


def _passed(
    p: ProcessParameters, data: NDArray[np.complex128], geometry: Geometry, factor: float, *, real: bool
) -> NDArray[np.complex128]:
    """exp(i k t n) of a thickness profile or a projected index."""
    if geometry.energy_kev is None:
        raise ValueError("sample.process: a thickness needs data.energy")
    energy = geometry.energy_kev * factor
    k = 2 * np.pi * energy / KEV_METRES
    if p.formula is None and p.ref_index is None:  # the array is the index along the way through the sample
        return np.asarray(np.exp(1j * k * (data if p.thickness is None else data * p.thickness)))
    index = complex(*(p.ref_index or ())) if p.formula is None else refraction.index(p.formula, p.density, energy)
    t = np.abs(data.real) if real else np.abs(data)
    if p.thickness is not None:
        t = t / max(float(t.max()), 1e-30) * p.thickness
    return np.asarray(np.exp(1j * k * t * index))


def _diverse(
    canvas: Canvas, modes: int, parameters: SampleDiversityParameters | None, pixel: tuple[float, float] | None, seed: int
) -> Canvas:
    """Further modes: the first one times noise, moved, with the powers asked for."""
    if len(canvas.data) >= modes:
        return Canvas(canvas.data[:modes], canvas.offset)
    if parameters is not None and parameters.shift is not None and pixel is None:
        raise ValueError("sample.diversity.shift: metres need data.energy, data.distance and data.psize")
    first, layers = canvas.data[0], list(canvas.data)
    for mode in range(len(layers), modes):
        layer = first
        if parameters is not None:
            layer = layer * diffuser((first.shape[0], first.shape[1]), parameters.noise, seed, OBJECT_MODES, mode)
            if parameters.shift is not None and pixel is not None:
                y, x = (d * parameters.shift / p for d, p in zip(direction(mode), pixel, strict=True))
                layer = shifted(layer, (y, x))
        layers.append(layer)
    if len(canvas.data) > 1:  # modes that are given keep their power
        return Canvas(np.array(layers), canvas.offset)
    shares = np.sqrt(powers(modes, 1.0 if parameters is None else parameters.power))
    return Canvas(np.array(layers) * shares[:, None, None], canvas.offset, tuple(float(s) for s in shares))
