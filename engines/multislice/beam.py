"""The probe that a reconstruction begins with, where none is given, and what the page adds to one.

Patterns are centred here, as the page has them; probes are (subscan, mode, y, x) in real space, centred on pixel N // 2, and
hold the photons of a pattern: Σ|P|² over modes. Transforms are orthonormal.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from ptystream.model.aberrations import chi
from ptystream.parallel import ALONE
from ptystream.scan.memory import allowed_bytes

from .coherence import MORE, chances, modes
from .hermite import hermite_modes
from .optics import ANGSTROM, band
from .page.arrays import APERTURE

log = logging.getLogger(__name__)

COPIES = 4
"""Arrays as large as a probe that making its modes holds at a time."""
FIRST = 1000
"""Frames of which the mean pattern is taken, at most."""

Wave = NDArray[np.complex128]
Total: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]
"""Array → its sum over all ranks."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How patterns lie in the model."""

    pattern: tuple[int, int]
    """(y, x) of what the detector gives."""
    pixel_m: tuple[float, float]
    """Of the reconstruction."""
    wavelength_m: float
    cutoff: float
    """Band limit, as of `optics.band`."""
    bin: int = 1
    """`upsample_pattern`."""
    pad: int = 0
    """Pixels of a pattern on each side that the model has and the detector has not."""
    near: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of the model."""
        y, x = ((n + 2 * self.pad) * self.bin for n in self.pattern)
        return y, x

    def frequency(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(y (y, 1), x (1, x)), 1/metres, zero at [0, 0]."""
        y, x = (np.asarray(np.fft.fftfreq(n, p), np.float64) for n, p in zip(self.shape, self.pixel_m, strict=True))
        return y[:, None], x[None]

    def limit(self) -> NDArray[np.float64]:
        """The band limit, zero frequency at [0, 0]. Shape (y, x)."""
        return band(self.shape, self.pixel_m, self.cutoff)


# ---------------------------------------------------------------------- the mean pattern


def mean_of(frames: Any, frame: Frame, tilts: Any = None, valid: Any = None, total: Total = ALONE.total) -> NDArray[np.float64]:
    """Mean of the first patterns (frame, y, x), centred; each is first moved back by its `tilts` (frame, 2: y, x; radians).

    `valid`: where pixels count, of the frames' shape or one that spreads to it; one that never does is 0. `total`: sum over all
    who have a part of the frames.
    """
    seen = np.asarray(frames[:FIRST], float)
    weight = np.broadcast_to(np.ones(1) if valid is None else np.asarray(valid, float)[:FIRST], seen.shape)
    seen = seen * weight
    if tilts is not None and np.any(tilts) and not frame.near:
        # exp(2πi/λ x t) on a wave moves its spectrum by t/λ, which is so many pixels of the model's frequencies
        fine = np.asarray(frame.shape) * np.asarray(frame.pixel_m) / frame.wavelength_m / frame.bin
        pixels = np.broadcast_to(np.asarray(tilts, float)[:FIRST], (len(seen), 2)) * fine
        y, x = (np.fft.fftfreq(n) for n in seen.shape[1:])
        ramps = np.exp(2j * np.pi * (pixels[:, 0, None, None] * y[:, None] + pixels[:, 1, None, None] * x))
        seen, weight = (np.fft.ifft2(np.fft.fft2(each) * ramps).real for each in (seen, weight))
    light, count = total(np.stack([seen.sum(axis=0), weight.sum(axis=0)]))
    return np.asarray(np.maximum(np.divide(light, count, out=np.zeros_like(light), where=count > 1e-3), 0.0))


def applied_tilts(tilts: Any, mode: int) -> NDArray[np.float64]:
    """What `tilts` (frame, 6) under `tilt_mode` move patterns by: before and after, where they are applied. Shape (frame, 2)."""
    given = np.atleast_2d(np.asarray(tilts, float))
    return np.asarray(given[:, 0:2] * float(mode in (2, 4)) + given[:, 4:6] * float(mode in (1, 3, 4)))


def of_signals(signals: Any, masks: Any, total: Total = ALONE.total) -> NDArray[np.float64]:
    """A pattern from what virtual detectors saw: Σ mask × mean signal, not below 0. `signals`: (frame, mask); `masks` centred."""
    seen = np.asarray(signals[:FIRST], float).reshape(min(len(signals), FIRST), len(masks))
    told = total(np.append(seen.sum(axis=0), len(seen)))
    mean = told[:-1] / told[-1]
    return np.maximum(np.tensordot(mean, np.asarray(masks, float), axes=(0, 0)), 0.0)


def prepared(pattern: Any, p: Any, shape: tuple[int, int]) -> NDArray[np.float64]:
    """`mean_pattern` as it is given, brought to patterns of this shape as the data are: flip, shift, bin, multiplier.

    One that has that shape already where patterns are binned is only multiplied. Raises `ValueError`.
    """
    given = np.asarray(pattern, float)
    raw = (shape[0] * p.data_bin, shape[1] * p.data_bin)
    if given.ndim != 2 or given.shape not in (raw, shape) or not np.isfinite(given).all() or (given < 0).any():
        raise ValueError(f"mean_pattern: shape {given.shape}: must be that of the patterns, {raw}, finite and not below 0")
    if given.shape == raw:
        given = given[::-1] if p.flip_ky else given
        given = moved(given, *p.data_shift_vector)
        given = given.reshape(shape[0], p.data_bin, shape[1], p.data_bin).sum(axis=(1, 3))
    return given * float(p.data_multiplier)


def moved(image: NDArray[Any], y: int, x: int) -> NDArray[Any]:
    """Moved by whole pixels; what moves in from beyond the edge is 0."""
    found = np.zeros_like(image)
    source = tuple(slice(max(0, -d), max(0, n - max(0, d))) for d, n in zip((y, x), image.shape, strict=True))
    target = tuple(slice(max(0, d), max(0, n + min(0, d))) for d, n in zip((y, x), image.shape, strict=True))
    found[target] = image[source]
    return found


def widened(pattern: NDArray[np.float64], frame: Frame) -> NDArray[np.float64]:
    """A centred pattern on the model's pixels: cubic interpolation over u² (which keeps the photons), zeros around."""
    if frame.bin > 1:
        at = [n // 2 + (np.arange(n * frame.bin) - n * frame.bin // 2) / frame.bin for n in pattern.shape]
        fine = map_coordinates(pattern, np.meshgrid(*at, indexing="ij"), order=3, mode="nearest")
        fine = np.maximum(fine, 0.0)
        pattern = fine * (pattern.sum() / max(fine.sum(), 1e-300))
    return np.pad(pattern, frame.pad * frame.bin)


# ---------------------------------------------------------------------- the probe


def starting(p: Any, frame: Frame, pattern: NDArray[np.float64] | None, counts: float | None) -> Wave:
    """The probe, (subscan, mode, y, x), as the page's parameters `p` describe it. Raises `ValueError`.

    `pattern`: the mean of the data, centred, which is taken where neither `probe` nor `mean_pattern` is given (None where there
    are no data); `counts`: photons of a mean pattern, to which the probe is scaled, None where nobody knows. With
    `skip_preprocessing` a given probe is taken as it is.
    """
    given = p.probe
    named = isinstance(given, str)
    if given is not None and not named:
        waves = adopted(given, frame, keep=bool(p.skip_preprocessing))
        if as_bright_as_given(p):
            counts = None
    elif named:
        waves = _of_mask(p, frame)
    else:
        waves = _of_pattern(p, frame, pattern)
    if counts is not None:
        waves = scaled(waves, counts)
    name, count = modes_of(p)
    held = count + (MORE if p.mc_n_modes is not None else 0)
    if (need := COPIES * 16 * max(len(waves), subscans(p)) * held * math.prod(frame.shape)) > allowed_bytes():
        raise ValueError(f"{name}: {count} modes of {frame.shape} pixels take {need >> 20} MiB: that is more than there is")
    waves = limited(modulated(p, frame, waves), frame)
    return np.repeat(waves, subscans(p), axis=0) if len(waves) == 1 else waves


def subscans(p: Any) -> int:
    """Probes that there are."""
    return 1 if p.probe_marker is None else int(np.max(p.probe_marker)) + 1


def modes_of(p: Any) -> tuple[str, int]:
    """(the parameter that gives a probe its modes, how many)."""
    if p.mc_n_modes is not None:
        return "mc_n_modes", int(p.mc_n_modes)
    orders = (0, 0) if p.n_hermite_probe_modes is None else tuple(p.n_hermite_probe_modes)
    if orders != (0, 0):
        return "n_hermite_probe_modes", math.prod(order + 1 for order in orders)
    return "defocus_spread_modes", 1 if p.defocus_spread_modes is None else int(np.size(p.defocus_spread_modes))


def as_bright_as_given(p: Any) -> bool:
    """Whether a probe is given and not scaled to the photons of the data: nor where there are none, in a simulation."""
    return isinstance(p.probe, np.ndarray) and bool(p.skip_preprocessing or p.data_simulation_flag)


def _of_mask(p: Any, frame: Frame) -> Wave:
    if p.aperture_mask is None:
        raise ValueError(f"probe: {APERTURE!r}: give the aperture as aperture_mask, (y, x) of {frame.shape}")
    mask = np.asarray(p.aperture_mask, complex)
    if mask.ndim != 2 or not mask.any():
        raise ValueError(f"aperture_mask: shape {mask.shape}: must be (y, x) with an opening")
    return wave_of(placed(mask, frame.shape), frame)


def _of_pattern(p: Any, frame: Frame, pattern: NDArray[np.float64] | None) -> Wave:
    if p.mean_pattern is not None:
        pattern = prepared(p.mean_pattern, p, frame.pattern)
    if pattern is None:
        raise ValueError("probe: none is given, nor a mean_pattern, and there are no data to make it from")
    if not pattern.any():
        raise ValueError("probe: none is given, and the mean pattern is dark everywhere")
    threshold = float(p.estimate_aperture_based_on_binary)
    if threshold > 0:
        open_ = pattern > threshold * pattern.mean()
        if not open_.any():
            raise ValueError(f"estimate_aperture_based_on_binary: {threshold:g}: no pixel is so bright; take less")
        pattern = open_.astype(float)
    return wave_of(np.sqrt(widened(pattern, frame)), frame)


def wave_of(modulus: Any, frame: Frame) -> Wave:
    """Far field: the wave of this spectrum (centred, (y, x)); near field: it is the wave. Shape (1, 1, y, x)."""
    found = np.asarray(modulus, complex)
    return (found if frame.near else back(found))[None, None]


def adopted(given: Any, frame: Frame, *, keep: bool = False) -> Wave:
    """A probe of the page, (y, x[, mode[, subscan]]), in our layout and of the model's size. Raises `ValueError`.

    In the far field its spectrum is padded or cropped (the pixel changes, the window stays), in the near field the wave itself.
    `keep`: it must have the size already.
    """
    probe = np.asarray(given, complex)
    if not 2 <= probe.ndim <= 4 or not probe.size or not np.isfinite(probe).all():
        raise ValueError(f"probe: shape {probe.shape}: must be (y, x, mode) or (y, x, mode, subscan), and finite")
    whole = probe.reshape(probe.shape + (1,) * (4 - probe.ndim)).transpose(3, 2, 0, 1)
    if probe.shape[:2] == frame.shape:
        return whole.copy()
    if keep:
        raise ValueError(f"probe: {whole.shape[2:]} pixels: must be {frame.shape} where skip_preprocessing is set")
    return placed(whole, frame.shape) if frame.near else back(placed(forth(whole), frame.shape))


def placed(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Cropped, or zeros around, about pixel N // 2. Shape (…, y, x)."""
    found = np.zeros((*image.shape[:-2], *shape), image.dtype)
    source, target = [], []
    for have, want in zip(image.shape[-2:], shape, strict=True):
        low, high = max(-(have // 2), -(want // 2)), min(have - have // 2, want - want // 2)
        source.append(slice(have // 2 + low, have // 2 + high))
        target.append(slice(want // 2 + low, want // 2 + high))
    found[..., target[0], target[1]] = image[..., source[0], source[1]]
    return found


def scaled(waves: Wave, counts: float) -> Wave:
    """With so many photons in each subscan, all modes together. Raises `ValueError` for a probe of zeros."""
    power = (np.abs(waves) ** 2).sum(axis=(1, 2, 3), keepdims=True)
    if not (power > 0).all():
        raise ValueError("probe: is 0 everywhere")
    return np.asarray(waves * np.sqrt(counts / power))


def modulated(p: Any, frame: Frame, waves: Wave) -> Wave:
    """With what the page adds, in its order: defocus, aberrations, transfer function, modes. Photons stay what they are."""
    q = frame.frequency()
    phase = np.zeros(frame.shape)
    if p.extra_probe_defocus:
        phase += chi([p.extra_probe_defocus * ANGSTROM], q, frame.wavelength_m)
    if p.aberrations is not None and np.size(p.aberrations):
        phase += chi(np.ravel(p.aberrations).astype(float) * ANGSTROM, q, frame.wavelength_m)
    if p.beam_ctf is not None:
        ctf = np.asarray(p.beam_ctf, float)
        if ctf.ndim != 2 or not np.isfinite(ctf).all() or any(a > b for a, b in zip(ctf.shape, frame.shape, strict=True)):
            raise ValueError(f"beam_ctf: shape {ctf.shape}: must be (y, x), at most {frame.shape}, and finite")
        phase += np.fft.ifftshift(placed(ctf, frame.shape))
    if phase.any():
        waves = filtered(waves, np.exp(-1j * phase))
    if p.mc_n_modes is not None:
        waves = partly_coherent(p, waves, frame)
    if p.defocus_spread_modes is not None:
        waves = defocused_modes(waves, np.ravel(p.defocus_spread_modes).astype(float) * ANGSTROM, frame)
    if p.n_hermite_probe_modes is not None:
        kept = limited(waves, frame)
        orders = tuple(p.n_hermite_probe_modes)
        waves = scaled_like(limited(hermite_modes(kept, orders), frame), kept)  # polynomials reach beyond the limit
    return waves


def defocused_modes(waves: Wave, defoci_m: NDArray[np.float64], frame: Frame) -> Wave:
    """The first mode of each subscan, once for each defocus, with equal shares of all its photons."""
    if not len(defoci_m) or not np.isfinite(defoci_m).all():
        raise ValueError("defocus_spread_modes: must be one or more finite numbers (Å)")
    first = scaled_like(waves[:, :1], waves)
    plates = np.exp(-1j * chi(defoci_m[:, None], frame.frequency(), frame.wavelength_m))
    return np.asarray(filtered(first, plates) / np.sqrt(len(defoci_m)))


def partly_coherent(p: Any, waves: Wave, frame: Frame) -> Wave:
    """The strongest modes of the first mode of each subscan with a source of finite size and a spread of focus."""
    (y, x), limit, waves = frame.frequency(), frame.limit() > 0, limited(waves, frame)
    turns = np.stack([(part + np.zeros(frame.shape))[limit] for part in (2 * np.pi * y, 2 * np.pi * x)])
    defocus = chi([1.0], frame.frequency(), frame.wavelength_m)[limit]
    for name, side, pixel in zip(("spatial_coh_y_A", "spatial_coh_x_A"), frame.shape, frame.pixel_m, strict=True):
        if 6 * getattr(p, name) * ANGSTROM > side * pixel:
            given, most = getattr(p, name), side * pixel / ANGSTROM / 6
            raise ValueError(f"{name}: {given:g} Å: must be {most:.3g} or less, a sixth of the window that the probe lies in")
    widths = tuple(width * ANGSTROM for width in (p.spatial_coh_y_A, p.spatial_coh_x_A, p.focal_spread))
    points = chances(widths, p.spatial_coh_xy, p.n_mc_samples)
    found = np.zeros((len(waves), p.mc_n_modes, *frame.shape), complex)
    shares = []
    for probe, spectra in zip(waves, found, strict=True):
        spectra[:, limit], share = modes(np.fft.fft2(probe[0])[limit], np.vstack([turns, defocus]), points, p.mc_n_modes)
        shares.append(share)
    log.info("mc_n_modes: %d modes have %.4g %% of the beam's photons", p.mc_n_modes, 100 * min(shares))
    return scaled_like(np.asarray(np.fft.ifft2(found)), waves)


def scaled_like(waves: Wave, other: Wave) -> Wave:
    """With the photons that another probe has in each subscan."""
    had, has = ((np.abs(each) ** 2).sum(axis=(1, 2, 3), keepdims=True) for each in (other, waves))
    return np.asarray(waves * np.sqrt(np.divide(had, has, out=np.zeros_like(had), where=has > 0)))


def limited(waves: Wave, frame: Frame) -> Wave:
    """Within the band limit."""
    return filtered(waves, frame.limit())


def filtered(waves: Wave, factor: NDArray[Any]) -> Wave:
    """A factor on the spectrum, zero frequency at [0, 0]."""
    return np.asarray(np.fft.ifft2(np.fft.fft2(waves) * factor))


def forth(waves: Wave) -> Wave:
    """Centred wave to centred spectrum."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(waves, axes=axes), norm="ortho"), axes=axes)


def back(spectra: Wave) -> Wave:
    """Centred spectrum to centred wave."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectra, axes=axes), norm="ortho"), axes=axes)
