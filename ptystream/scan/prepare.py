"""From a raw frame to counts in a slab: validity, dark, flat, photons, crop, orientation, rebinning, zero frequency
at [0, 0].

What depends on the data (raw shape, dtype, centre) is decided once from the first frames (`decide`); a `Preparation` is
then constant and may be used by many threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.scan.parameters import PtyScanParameters, load_array

HOT_FRAMES = 32
"""Frames that a search for hot pixels needs."""

MAX_MEAN = 1e18
"""Poisson numbers are drawn up to this mean: larger ones would not fit into 64 bits."""

Segments = list[tuple[slice, slice]]


class PrepareError(ValueError):
    """A frame that cannot be prepared; `reason` is what the ledger counts."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def decide(
    parameters: PtyScanParameters, frames: Sequence[NDArray[Any]], pixels: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """Raw shape and dtype (the most frequent), whether floats are whole counts, and the centre; plain values.

    The centre of mass is the median over `frames`, so that one damaged frame does not move it. `pixels`: those that the source
    says are sound, shape of the raw frame.
    Raises `PrepareError` where there is no frame or the centre lies outside it.
    """
    if not frames:
        raise PrepareError("undecided", "no frame could be decoded")
    (shape, dtype), _ = Counter((f.shape, f.dtype.newbyteorder("=")) for f in frames).most_common(1)[0]
    chosen = [f for f in frames if (f.shape, f.dtype) == (shape, dtype)]
    if len(shape) != 2 or dtype.kind not in "uif" or 0 in shape:
        raise PrepareError("wrong_dtype", f"frames of shape {shape} and dtype {dtype}: two axes of real numbers are needed")
    whole = dtype.kind in "ui" or all(_is_whole(f) for f in chosen)
    center, wrong = parameters.center, parameters.off_frame(shape)
    if wrong is not None:
        raise PrepareError("undecided", f"data.center: {center}: {wrong}")
    if parameters.auto_center or (parameters.auto_center is None and center is None):
        dead = np.zeros(shape, np.bool_) if pixels is None or pixels.shape != shape else ~pixels
        invalid = [_invalid(f, parameters) | (f < 0) | dead for f in chosen]
        centers = [c for f, i in zip(chosen, invalid, strict=True) if (c := _center_of_mass(f, i)) is not None]
        if not centers:
            raise PrepareError("undecided", "auto_center: the first frames have no counts; give data.center")
        center = tuple(float(v) for v in np.median(centers, axis=0))  # type: ignore[assignment]
    told = stated_center(parameters, shape)
    return {
        "raw_shape": [int(n) for n in shape],
        "raw_dtype": dtype.name,
        "whole": bool(whole),
        "center": [float(c) for c in center] if told is None else told,  # type: ignore[union-attr]
    }


def stated_center(parameters: PtyScanParameters, shape: Sequence[int]) -> str | list[float] | None:
    """The centre in raw frames of `shape` where the parameters say it; None where it is found from the data."""
    center = parameters.center
    if parameters.auto_center or (parameters.auto_center is None and center is None):
        return None
    if center == "geometric":
        return [shape[0] / 2 - 0.5, shape[1] / 2 - 0.5]
    if center is None or center == "fftshift":
        return [float(shape[0] // 2), float(shape[1] // 2)]
    return center if isinstance(center, str) else [float(c) for c in center]


class Preparation:
    """How the frames of one scan are prepared. Immutable; raises `PrepareError` for settings that do not fit the
    frames."""

    def __init__(
        self,
        parameters: PtyScanParameters,
        decisions: Mapping[str, Any],
        pixels: NDArray[np.bool_] | None = None,
        dark: NDArray[np.float64] | None = None,
    ) -> None:
        """`pixels`: those that the source says are sound, shape of the raw frame; of another shape they are not used. `dark`:
        the mean of the scan's own dark frames, where it has some."""
        self.parameters = parameters
        self._pixels = pixels
        self.raw_shape: tuple[int, int] = tuple(decisions["raw_shape"])
        self.raw_dtype = np.dtype(decisions["raw_dtype"])
        self._whole = bool(decisions["whole"])
        self._transpose, self._flipud, self._fliplr = parameters.operations()
        sides = self.raw_shape if parameters.shape is None else parameters.shape
        self._side = n = sides if isinstance(sides, int) else min(sides)
        self._rebin = r = parameters.rebin or 1
        if n % r:
            raise PrepareError("undecided", f"data.rebin: {r}: does not divide the crop of {n} pixels")
        signals = parameters.signals
        if signals is not None and self.raw_shape != (1, signals):
            raise PrepareError("undecided", f"data.signals: {signals}: frames are {self.raw_shape}, (1, {signals}) is needed")
        self._picture = signals is None
        """Whether there is a middle to bring to [0, 0]."""
        self._index = self._crop_index(decisions["center"]) if signals is None else (np.arange(1), np.arange(signals))
        self._slot_segments = [_segments(self._turned(i)) for i in self._index]
        self._padded = any((i < 0).any() for i in self._index)
        self.rows = self._raw_rows()
        """Raw rows that the crop reads."""
        self.shape = (n // r, n // r) if signals is None else (1, signals)
        given, flat = (self._calibration(name) for name in ("dark", "flat"))
        dark = given if dark is None else dark
        with np.errstate(divide="ignore", invalid="ignore"):
            self._dark = None if dark is None else self._crop(dark, np.float32(0)).astype(np.float64)
            gain = np.float64(parameters.counts_per_photon) * (1.0 if flat is None else self._crop(flat, np.float32(1)))
            self._gain = None if flat is None and parameters.counts_per_photon == 1.0 else 1.0 / gain
        table = load_array(parameters.count_table, "data.count_table")
        if table is not None and table[0, 0] > 0:  # below the first row as on a line from zero
            table = np.insert(table.astype(np.float64), 0, 0.0, axis=0)
        self._counts = None if table is None else np.ascontiguousarray(table.astype(np.float64).T)
        """(measured, true) counts."""
        self.dtype = self._slab_dtype()
        self._limit = float(np.iinfo(self.dtype).max) if self.dtype.kind in "ui" else np.inf
        plain = self.dtype == self.raw_dtype and self.raw_dtype.kind == "u"
        self.is_copy = plain and self._rebin == 1 and not parameters.no_data and not parameters.noise_on_arrival()
        self.weights = self._build_weights()
        """Statistical weight of each prepared pixel, zero frequency at [0, 0], float32; None: all alike."""
        self.mask = self._build_mask(dark, flat)

    # ------------------------------------------------------------------ one frame

    def into(self, raw: NDArray[Any], out: NDArray[Any], random: np.random.Generator | None = None) -> int:
        """Write the prepared frame into `out`, shape (y, x) of a slab's row; returns how many pixels were negative.

        `random` draws the Poisson noise, where that is asked for. Invalid pixels become the largest value of the slab's dtype
        (infinity for float32). Raises `PrepareError`.
        """
        if raw.shape != self.raw_shape:
            raise PrepareError("wrong_shape", f"frame of {raw.shape}, the scan's have {self.raw_shape}")
        return self._copy(raw, out) if self.is_copy else self._convert(raw, out, random)

    def _copy(self, raw: NDArray[Any], out: NDArray[Any]) -> int:
        """Same unsigned dtype, no arithmetic: two to four copies, and one look for saturation."""
        view = self._orient(raw)
        if self._padded:
            out[...] = 0
        for rows, raw_rows in self._slot_segments[0]:
            for columns, raw_columns in self._slot_segments[1]:
                out[rows, columns] = view[raw_rows, raw_columns]
        saturation = self.parameters.saturation
        if saturation is not None and out.max() >= saturation:
            out[out >= saturation] = np.iinfo(self.dtype).max
        return 0

    def _convert(self, raw: NDArray[Any], out: NDArray[Any], random: np.random.Generator | None) -> int:
        crop = self._crop(raw, raw.dtype.type(0))
        invalid = _invalid(crop, self.parameters)
        counts = crop.astype(np.float64)
        counts[invalid] = 0.0
        if self.dtype.kind in "ui" and raw.dtype.kind == "f" and not _is_whole(counts):
            raise PrepareError("not_whole", "a frame with fractions of counts among frames of whole counts")
        if self._counts is not None:
            invalid |= counts > self._counts[0, -1]
            counts = np.interp(counts, *self._counts)
        if self._dark is not None:
            counts -= self._dark
        if self._gain is not None:
            counts *= self._gain
        negative = (counts < 0) & self._picture
        negatives = int(np.count_nonzero(negative & ~invalid))
        counts[negative | ~np.isfinite(counts)] = 0.0
        if random is not None:
            counts = random.poisson(np.minimum(counts, MAX_MEAN)).astype(np.float64)
        if self._rebin > 1:
            counts = _bins(counts, self._rebin).sum(axis=(1, 3))
            if self.parameters.rebin_mode == "mean":
                counts /= self._rebin**2
            invalid = np.asarray(_bins(invalid, self._rebin).any(axis=(1, 3)))
        counts[invalid] = self._limit
        np.minimum(counts, self._limit, out=counts)
        out[...] = self._turned(counts)
        return negatives

    def _turned(self, array: NDArray[Any]) -> NDArray[Any]:
        """With the middle of a picture at [0, 0]."""
        return np.fft.ifftshift(array) if self._picture else array

    # ------------------------------------------------------------------ geometry

    def _orient(self, raw: NDArray[Any]) -> NDArray[Any]:
        view = raw.T if self._transpose else raw
        if self._flipud:
            view = view[::-1]
        return view[:, ::-1] if self._fliplr else view

    def _crop_index(self, center: str | Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Raw row and column (after orientation) of every row and column of the crop, zero frequency at n // 2; -1:
        none."""
        wrap = isinstance(center, str)
        pixel = [0, 0] if isinstance(center, str) else [int(np.floor(c + 0.5)) for c in center]
        shape = list(self.raw_shape)
        if self._transpose:
            pixel.reverse()
            shape.reverse()
        if self._flipud:
            pixel[0] = shape[0] - 1 - pixel[0]
        if self._fliplr:
            pixel[1] = shape[1] - 1 - pixel[1]
        if wrap and self._side > min(shape):
            raise PrepareError("undecided", f"data.shape: {self._side}: frames of {self.raw_shape} wrap round; use less")
        result = []
        for c, n, shift in zip(pixel, shape, self.parameters.shift, strict=True):
            index = c - self._side // 2 - shift + np.arange(self._side)
            result.append(index % n if wrap else np.where((index >= 0) & (index < n), index, -1))
        return result[0], result[1]

    def _raw_rows(self) -> slice:
        index, n = self._index[1 if self._transpose else 0], self.raw_shape[0]
        read = index[index >= 0]
        if not len(read):
            return slice(0, 1)
        first, last = int(read.min()), int(read.max()) + 1
        turned = self._fliplr if self._transpose else self._flipud
        return slice(n - last, n - first) if turned else slice(first, last)

    def _crop(self, raw: NDArray[Any], fill: Any) -> NDArray[Any]:
        view = self._orient(raw)
        rows, columns = self._index
        crop = view[np.maximum(rows, 0)[:, None], np.maximum(columns, 0)[None, :]]
        if self._padded:
            crop[rows < 0] = fill
            crop[:, columns < 0] = fill
        return crop

    # ------------------------------------------------------------------ constant parts

    def _calibration(self, name: str) -> NDArray[Any] | None:
        array = load_array(getattr(self.parameters, name), f"data.{name}")
        if array is not None and array.shape != self.raw_shape:
            raise PrepareError("undecided", f"data.{name}: shape {array.shape}: frames have {self.raw_shape}")
        return array

    def _slab_dtype(self) -> np.dtype[Any]:
        raw, r = self.raw_dtype, self._rebin
        mean = r > 1 and self.parameters.rebin_mode == "mean"
        if (
            not self._picture
            or self._dark is not None
            or self._gain is not None
            or self._counts is not None
            or mean
            or not self._whole
        ):
            return np.dtype(np.float32)
        if raw.kind == "f" or raw.itemsize == 8:
            return np.dtype(np.uint32)
        if self.parameters.noise_on_arrival():
            return np.dtype(np.uint32)  # a count may become larger than any of the raw type
        if raw == np.int32 and r == 1:
            return np.dtype(np.int32)
        largest = int(np.iinfo(raw).max) * r * r
        fits = (t for t in (np.uint8, np.uint16, np.uint32) if np.dtype(t).itemsize >= raw.itemsize)
        return np.dtype(next((t for t in fits if np.iinfo(t).max >= largest), np.uint32))

    def _build_mask(self, dark: NDArray[Any] | None, flat: NDArray[Any] | None) -> NDArray[np.uint8]:
        valid = (self._index[0] >= 0)[:, None] & (self._index[1] >= 0)[None, :]
        if dark is not None:
            valid &= np.isfinite(self._crop(dark, np.nan if dark.dtype.kind == "f" else 0))
        if flat is not None:
            level = self._crop(flat, 0)
            valid &= np.isfinite(level) & (level > 0)
        if self._pixels is not None and self._pixels.shape == self.raw_shape:
            valid &= self._crop(self._pixels, np.False_)
        sensor = self.parameters.modules.valid(self.raw_shape)
        if sensor is not None:
            valid &= self._crop(sensor, np.False_)
        mask = load_array(self.parameters.mask, "data.mask")
        if mask is not None:
            valid &= self._laid("mask", (np.nan_to_num(mask) > 0).astype(np.uint8)) > 0
        weights = load_array(self.parameters.weights, "data.weights")
        if weights is not None:
            valid &= self._laid("weights", weights) > 0
        if self._rebin > 1:
            valid = np.asarray(_bins(valid, self._rebin).all(axis=(1, 3)))
        return self._turned(valid).astype(np.uint8)

    def _build_weights(self) -> NDArray[np.float32] | None:
        weights = load_array(self.parameters.weights, "data.weights")
        if weights is None:
            return None
        laid = self._laid("weights", weights).astype(np.float64)
        if self._rebin > 1:
            laid = np.asarray(_bins(laid, self._rebin).mean(axis=(1, 3)))
        return np.fft.ifftshift(laid).astype(np.float32)

    def _laid(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """An array of the raw frame's shape cropped as the frames are, one of any other size laid over the crop by its middle;
        0 around it."""
        if array.ndim != 2:
            raise PrepareError("undecided", f"data.{name}: shape {array.shape}: two axes (y, x) are needed")
        return self._crop(array, 0) if array.shape == self.raw_shape else self._by_middle(array)

    def _by_middle(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array of its own size, its middle (size // 2, after orientation) on the middle of the crop."""
        view = self._orient(array)
        laid = np.zeros((self._side, self._side), array.dtype)
        rows, columns = (np.arange(self._side) - self._side // 2 + n // 2 for n in view.shape)
        inside = ((rows >= 0) & (rows < view.shape[0]))[:, None] & ((columns >= 0) & (columns < view.shape[1]))[None, :]
        laid[inside] = view[np.clip(rows, 0, view.shape[0] - 1)[:, None], np.clip(columns, 0, view.shape[1] - 1)][inside]
        return laid


def mean_dark(parameters: PtyScanParameters, frames: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Mean counts (y, x) of raw frames without beam; NaN where a pixel is valid in none of them."""
    total, count = np.zeros(frames[0].shape), np.zeros(frames[0].shape)
    for frame in frames:
        valid = ~_invalid(frame, parameters)
        total += np.where(valid, frame, 0)
        count += valid
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count)


def find_hot_pixels(frames: NDArray[Any], mask: NDArray[np.uint8], factor: float) -> list[list[int]]:
    """Pixels [y, x] whose median over `frames` exceeds `factor` × (brightest valid neighbour's median + 1).

    `frames`: prepared counts, zero frequency at [0, 0], shape (frame, y, x). A pixel that is really lit has lit
    neighbours, because speckles are oversampled; the direct beam need not, so the 3 × 3 pixels around zero frequency
    are left out.
    """
    median = np.where(mask > 0, np.median(frames, axis=0), 0.0)
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    brightest = np.max([np.roll(median, step, (0, 1)) for step in steps], axis=0)
    hot = (median > factor * (brightest + 1.0)) & (mask > 0)
    hot[np.ix_((-1, 0, 1), (-1, 0, 1))] = False
    return [[int(y), int(x)] for y, x in np.argwhere(hot)]


def _invalid(raw: NDArray[Any], parameters: PtyScanParameters) -> NDArray[np.bool_]:
    """Saturated or without data: not below the saturation value, all bits set in an unsigned type, listed, not
    finite."""
    invalid: NDArray[np.bool_] = ~np.isfinite(raw) if raw.dtype.kind == "f" else raw == np.iinfo(raw.dtype).max
    if parameters.saturation is not None:
        invalid |= raw >= parameters.saturation
    if parameters.no_data:
        invalid |= np.isin(raw, parameters.no_data)
    return invalid


def _is_whole(raw: NDArray[Any]) -> bool:
    finite = raw[np.isfinite(raw)]
    return bool((finite == np.rint(finite)).all())


def _center_of_mass(raw: NDArray[Any], invalid: NDArray[np.bool_]) -> tuple[float, float] | None:
    counts = np.where(invalid, 0, raw).astype(np.float64)
    total = counts.sum()
    if not total > 0:
        return None
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    return float(rows @ np.arange(len(rows)) / total), float(columns @ np.arange(len(columns)) / total)


def _bins(array: NDArray[Any], r: int) -> NDArray[Any]:
    y, x = array.shape
    return array.reshape(y // r, r, x // r, r)


def _segments(index: NDArray[np.int64]) -> Segments:
    """Slices (to, from) that together copy index[k] to k; places with -1 are left out."""
    breaks = np.flatnonzero((np.diff(index) != 1) | (index[1:] < 0) | (index[:-1] < 0)) + 1
    parts = np.split(np.arange(len(index)), breaks)
    return [(slice(int(p[0]), int(p[-1]) + 1), slice(int(index[p[0]]), int(index[p[-1]]) + 1)) for p in parts if index[p[0]] >= 0]
