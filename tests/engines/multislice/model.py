"""A second multislice model, one pattern at a time with centred arrays and plain sums: what the engine's must agree with."""

from __future__ import annotations

from typing import Any

import numpy as np


def transform(a: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(a), norm="ortho"))


def back(a: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(a), norm="ortho"))


def grids(shape: tuple[int, int], pixel: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(qy, qx, y, x), zero at [N // 2]."""
    (ny, nx), (py, px) = shape, pixel
    y, x = np.arange(ny) - ny // 2, np.arange(nx) - nx // 2
    qy, qx = np.meshgrid(y / (ny * py), x / (nx * px), indexing="ij")
    ys, xs = np.meshgrid(y * py, x * px, indexing="ij")
    return qy, qx, ys, xs


def sampled(a: np.ndarray, places: list[np.ndarray], sign: complex) -> np.ndarray:
    """Fourier sums of a centred array at places that need not be whole numbers."""
    y, x = (
        np.exp(2 * np.pi * sign * np.outer(at, np.arange(n) - n // 2) / n) / np.sqrt(n)
        for at, n in zip(places, a.shape, strict=True)
    )
    return y @ a @ x.T


def pattern(setup: dict[str, Any], t: int) -> np.ndarray:
    """Photons of measurement t on a centred detector."""
    s = setup
    shape, pixel, lam = s["shape"], s["pixel"], s["lam"]
    qy, qx, ys, xs = grids(shape, pixel)
    q2 = qy**2 + qx**2
    limit = q2 <= (s["cutoff"] * (shape[1] // 2 - 1 + shape[1] % 2) / (shape[1] * pixel[1])) ** 2
    # the detector's pixel N // 2 has zero frequency in its middle, and so many of the model's pixels on a side
    side = [n // s["bin"] for n in shape]
    places = [((np.arange(n * s["bin"]) - (s["bin"] - 1) / 2) / s["bin"] - n // 2) * s["bin"] for n in side]
    far = (places[0][:, None] / (shape[0] * pixel[0])) ** 2 + (places[1] / (shape[1] * pixel[1])) ** 2
    edge = far <= (s["cutoff"] * (shape[1] // 2 - 1 + shape[1] % 2) / (shape[1] * pixel[1])) ** 2
    total = np.zeros(shape)
    for m in range(s["probe"].shape[1]):
        wave = abs(s["current"][t]) * s["probe"][s["scenario"][t], m]
        if s.get("plates") is not None:
            wave = back(transform(wave) * np.fft.fftshift(s["plates"][t]))
        if s.get("chi") is not None:
            wave = back(transform(wave) * np.exp(-1j * s["chi"][s["lens"][t]]) * limit)
        ty, tx = s["before"][t]
        if s["mode"] in (2, 4):
            wave = wave * np.exp(2j * np.pi / lam * (ys * ty + xs * tx))
        cy, cx = s["shift"][t]
        wave = back(transform(wave) * np.exp(-2j * np.pi * (qy * pixel[0] * cy + qx * pixel[1] * cx)) * limit)
        for o in range(s["object"].shape[0]):
            psi, (r, c) = wave, s["corner"][t]
            count = s["object"].shape[1]
            for k in range(count):
                part = s["object"][o, k, r : r + shape[0], c : c + shape[1]]
                psi = psi * back(transform(part) * limit)
                if k + 1 < count:
                    d = s["distances"][k]
                    iy, ix = s["inside"][t]
                    way = np.exp(-1j * np.pi * d * (lam * q2 + 2 * (qy * iy + qx * ix))) * limit
                    psi = back(transform(psi) * way)
            if s["mode"] in (1, 3, 4):
                ay, ax = s["after"][t]
                psi = psi * np.exp(2j * np.pi / lam * (ys * ay + xs * ax))
            if s["near"]:
                depth, (iy, ix) = s["defocus"][t], s["inside"][t]
                phase = (lam * q2 + 2 * (qy * iy + qx * ix)) * depth + 0.5 * s["cs"] * lam**3 * q2**2
                spectrum = transform(psi) * np.exp(-1j * np.pi * phase) * limit
                total += np.abs(sampled(spectrum, places, 1j)) ** 2
            else:
                total += np.abs(sampled(psi, places, -1j) * edge) ** 2
    if s["near"] and s["alpha"]:
        total = back(transform(total) * np.exp(-q2 * (np.pi * s["alpha"] * s["defocus"][t]) ** 2)).real
    pad, b = s["pad"] * s["bin"], s["bin"]
    total = total[pad : shape[0] - pad, pad : shape[1] - pad]
    ny, nx = total.shape[0] // b, total.shape[1] // b
    total = total.reshape(ny, b, nx, b).sum(axis=(1, 3))
    if s.get("background") is not None:
        seen = np.ones(shape) if s["near"] else edge.astype(float)
        seen = seen[pad : shape[0] - pad, pad : shape[1] - pad].reshape(ny, b, nx, b).mean(axis=(1, 3))
        total = total + s["background"] ** 2 * seen
    return total


def random_setup(seed: int, **given: Any) -> dict[str, Any]:
    """Everything there is, of random values; frames 5."""
    rng = np.random.default_rng(seed)
    n = given.pop("frames", 5)
    shape = given.pop("shape", (16, 12))
    scenarios, modes, objects, slices = (
        given.pop(k, v) for k, v in (("scenarios", 2), ("modes", 2), ("objects", 2), ("slices", 3))
    )
    canvas = (shape[0] + 9, shape[1] + 7)

    def wave(*size: int) -> np.ndarray:
        return rng.normal(size=size) + 1j * rng.normal(size=size)

    y, x = (np.arange(k) - k // 2 for k in shape)
    hill = np.exp(-(y[:, None] ** 2 + x**2) / (0.08 * shape[0] * shape[1]))
    pixel, lam = (0.2e-10, 0.25e-10), 4.9e-12
    setup = {
        "shape": shape,
        "pixel": pixel,
        "lam": lam,
        "cutoff": 2 / 3,
        "probe": wave(scenarios, modes, *shape) * hill * 3,
        "object": np.exp(0.3j * rng.normal(size=(objects, slices, *canvas)) - 0.1 * rng.random((objects, slices, *canvas))),
        "corner": rng.integers(0, 7, (n, 2)),
        "shift": rng.uniform(-0.5, 0.5, (n, 2)),
        "scenario": rng.integers(0, scenarios, n),
        "current": rng.uniform(0.7, 1.3, n) * rng.choice([-1, 1], n),
        "before": rng.normal(size=(n, 2)) * 5e-3,
        "inside": rng.normal(size=(n, 2)) * 5e-3,
        "after": rng.normal(size=(n, 2)) * 5e-3,
        "mode": 4,
        "distances": [4e-10, 7e-10, 3e-10][: max(slices - 1, 0)],
        "near": False,
        "defocus": rng.uniform(50, 90, n) * 1e-10,
        "cs": 0.0,
        "alpha": 0.0,
        "pad": 0,
        "bin": 1,
    }
    return setup | given
