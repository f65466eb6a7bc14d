"""First pictures from the frames alone: what a scanning transmission microscope sees, and the beam's mean."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ptystream.scan.block import Block, FrameStore


def counts(block: Block, frames: FrameStore) -> Iterator[NDArray[np.float64]]:
    """Valid counts of each frame (y, x), zero frequency at [0, 0]; invalid pixels as 0."""
    for slot in block.slots.tolist():
        values = frames.slab(slot // frames.slab_frames)[slot % frames.slab_frames].astype(np.float32)
        yield np.where((values < frames.limit) & (frames.mask != 0), values, 0).astype(np.float64)


def mean_frame(block: Block, frames: FrameStore) -> NDArray[np.float64]:
    """Mean of the frames over those in which a pixel is valid, (y, x)."""
    total, valid = np.zeros(frames.shape), np.zeros(frames.shape)
    for slot in block.slots.tolist():
        values = frames.slab(slot // frames.slab_frames)[slot % frames.slab_frames].astype(np.float32)
        good = (values < frames.limit) & (frames.mask != 0)
        total += np.where(good, values, 0)
        valid += good
    return np.asarray(total / np.maximum(valid, 1))


def transmission(
    block: Block,
    frames: FrameStore,
    corner: NDArray[np.int64],
    probe: NDArray[np.complex128],
    far: bool,
    cycle: tuple[float, float],
) -> tuple[NDArray[np.complex128], NDArray[np.bool_], tuple[int, int]]:
    """(transmission (y, x), where it is known, lattice coordinates of its first pixel).

    Modulus: √(photons / those of the brightest frame), spread with |probe|². Phase, in the far field: the centre of mass of a
    frame is the mean phase gradient, 2π · pixels / `cycle` per object pixel; gradients are spread likewise and integrated by
    a Fourier transform over the canvas (least squares, periodic). `corner` (frame, 2): first pixel of each view.
    """
    values = np.array([_moments(frame) for frame in counts(block, frames)])
    photons = values[:, 0] / np.maximum(block.dose, 1e-12)
    usable = photons > 0
    if not usable.any():
        return np.ones((0, 0), complex), np.zeros((0, 0), np.bool_), (0, 0)
    gradient = np.where(usable[:, None], values[:, 1:], 0) * 2 * np.pi / np.array(cycle)
    gradient -= np.median(gradient[usable], axis=0)
    light = (np.abs(probe) ** 2).sum(axis=0)
    light /= light.max()
    low, high = corner.min(axis=0), corner.max(axis=0) + light.shape
    sums, weight = np.zeros((3, *(high - low))), np.zeros(high - low)
    modulus = np.sqrt(np.maximum(photons, 0) / photons.max())
    for (y, x), value in zip(corner - low, np.column_stack([modulus, gradient]), strict=True):
        window = slice(y, y + light.shape[0]), slice(x, x + light.shape[1])
        weight[window] += light
        sums[(slice(None), *window)] += value[:, None, None] * light
    known = weight > 0.05 * weight.max()
    sums /= np.maximum(weight, 1e-12)
    sums *= known
    phase = _integrated(sums[1], sums[2]) if far else np.zeros(known.shape)
    phase -= phase[known].mean()
    return np.asarray(sums[0] * np.exp(1j * phase)), known, (int(low[0]), int(low[1]))


def _moments(frame: NDArray[np.float64]) -> NDArray[np.float64]:
    """[photons, centre of mass y, x] in pixels from zero frequency."""
    total = float(frame.sum())
    y, x = (np.fft.fftfreq(n, 1 / n) for n in frame.shape)
    one = total or 1.0
    return np.array([total, float(frame.sum(axis=1) @ y) / one, float(frame.sum(axis=0) @ x) / one])


def _integrated(dy: NDArray[np.float64], dx: NDArray[np.float64]) -> NDArray[np.float64]:
    """The function (y, x) whose gradient fits (dy, dx) best, of mean 0."""
    y, x = (2j * np.pi * np.fft.fftfreq(n) for n in dy.shape)
    bottom: NDArray[np.float64] = np.abs(y[:, None]) ** 2 + np.abs(x[None]) ** 2
    bottom[0, 0] = 1
    top = y[:, None].conj() * np.fft.fft2(dy) + x[None].conj() * np.fft.fft2(dx)
    top[0, 0] = 0
    return np.asarray(np.fft.ifft2(top / bottom).real)
