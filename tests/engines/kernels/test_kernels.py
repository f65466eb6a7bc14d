"""Each kernel in each form against plain NumPy; the CUDA source through NVRTC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda import COMPILER, KERNELS, compile_ptx, cpu_function, nvrtc

from ptystream.engines.kernels import cpu
from ptystream.engines.kernels.gpu import COUNTS, REALS, GpuKernels, options

HEIGHT, WIDTH, ORIGIN = 9, 12, (-4, 3)


@pytest.fixture(params=["cpu", "cuda as c++", "gpu"])
def form(request: pytest.FixtureRequest, require: Callable[[str, bool], None]) -> Any:
    """(kernels, put, get)."""
    if request.param == "cpu":
        return cpu, np.asarray, np.asarray
    if request.param == "cuda as c++":
        require("c++", COMPILER is not None)
        return GpuKernels(cpu_function, threads=8), np.asarray, np.asarray
    cupy = pytest.importorskip("cupy", reason="cupy is not installed: no GPU")
    if not cupy.is_available():
        pytest.skip("cupy finds no GPU")
    return GpuKernels(), cupy.asarray, cupy.asnumpy


class Case:
    """Random arguments; the oracle's arrays are float64."""

    def __init__(self, form: Any, frames: int, precision: str, counts: str = "uint16", pods: int = 2) -> None:
        self.k, self.put, self.get = form
        self.complex, self.real = ("complex64", "float32") if precision == "single" else ("complex128", "float64")
        self.tolerance = {"rtol": 2e-4, "atol": 2e-4} if precision == "single" else {"rtol": 1e-11, "atol": 1e-11}
        r = self.r = np.random.default_rng(frames)
        self.frames = frames
        self.probes, self.obj = self.wave(3, HEIGHT, WIDTH), self.wave(25, 31)
        self.which, self.layer = r.integers(0, 3, frames), r.integers(0, 3, frames)
        self.corner = r.integers(0, 15, (frames, 2)) + np.array(ORIGIN)
        self.weight = r.uniform(0.5, 1.5, frames).astype(self.real)
        self.remainder = r.uniform(-0.5, 0.5, (frames, 2)).astype(self.real)
        self.waves = self.wave(frames, HEIGHT, WIDTH)
        self.f = self.wave(pods, frames, HEIGHT, WIDTH)
        self.row = r.permutation(frames + 2)[:frames]
        made = r.poisson(3.0, (frames + 2, HEIGHT, WIDTH)).astype(counts)
        self.limit = float(np.iinfo(made.dtype).max) if made.dtype.kind in "ui" else float("inf")
        made[r.random(made.shape) > 0.9] = self.limit
        if made.dtype.kind == "f":
            made[r.random(made.shape) > 0.95] = np.nan
        self.counts, self.mask = made, (r.random((HEIGHT, WIDTH)) > 0.2).astype(np.uint8)
        with np.errstate(invalid="ignore"):
            self.good = (made[self.row].astype(self.real) < self.limit) & (self.mask != 0)
        self.wanted = np.sqrt(np.where(self.good, made[self.row], 0).astype(float))

    def wave(self, *shape: int) -> np.ndarray:
        return (self.r.normal(size=shape) + 1j * self.r.normal(size=shape)).astype(self.complex)

    def views(self) -> np.ndarray:
        return self.weight[:, None, None] * self.probes[self.which].astype(complex)

    def windows(self) -> np.ndarray:
        parts = [self.obj[y : y + HEIGHT, x : x + WIDTH] for y, x in self.corner - np.array(ORIGIN)]
        return np.array(parts, complex).reshape(-1, HEIGHT, WIDTH)

    def on_canvas(self, frames: np.ndarray) -> np.ndarray:
        total = np.zeros(self.obj.shape, frames.dtype)
        for frame, (y, x) in zip(frames, self.corner - np.array(ORIGIN), strict=True):
            total[y : y + HEIGHT, x : x + WIDTH] += frame
        return total

    def shifted(self, view: np.ndarray, j: int, sign: int = 1) -> np.ndarray:
        result = view.astype(complex)
        for axis in (0, 1):
            d = sign * float(self.remainder[j, axis])
            step = np.roll(result, 1 if d > 0 else -1, axis)
            result = (1 - abs(d)) * result + abs(d) * step
        return result

    def sent(self, *names: str) -> list[Any]:
        return [self.put(getattr(self, name)) for name in names]

    def zeros(self, *shape: int, real: bool = False) -> Any:
        return self.put(np.zeros(shape, self.real if real else self.complex))

    def same(self, got: Any, wanted: np.ndarray) -> None:
        np.testing.assert_allclose(self.get(got), wanted, **self.tolerance)


sizes = pytest.mark.parametrize("frames", [1, 7, 40])
precisions = pytest.mark.parametrize("precision", ["single", "double"])


@pytest.mark.slow
@sizes
@precisions
def test_waves_are_formed_from_probe_and_object(form: Any, frames: int, precision: str) -> None:
    q = Case(form, frames, precision)
    out = q.zeros(frames, HEIGHT, WIDTH)
    probes, which, obj, corner, weight = q.sent("probes", "which", "obj", "corner", "weight")
    q.k.model(probes, which, obj, ORIGIN, corner, weight, out)
    q.same(out, q.views() * q.windows())
    q.k.form(q.put(q.waves), probes, which, obj, ORIGIN, corner, weight, 1.7, out)
    q.same(out, (1 - 1.7) * q.waves.astype(complex) + 1.7 * q.views() * q.windows())


@pytest.mark.slow
@sizes
@precisions
@pytest.mark.parametrize("bound", [-1.0, 0.0, 1.5, 1e9])
@pytest.mark.parametrize("pods", [1, 3])
def test_measured_amplitudes_are_put_on(form: Any, frames: int, precision: str, bound: float, pods: int) -> None:
    q = Case(form, frames, precision, pods=pods)
    f, error = q.put(q.f.copy()), q.put(np.zeros(frames))
    counts, row, mask = q.sent("counts", "row", "mask")
    q.k.modulus(f, counts, row, mask, q.limit, bound, 1e-10, error)
    a = np.sqrt((np.abs(q.f.astype(complex)) ** 2).sum(axis=0))
    wanted_error = (q.good * (a - q.wanted) ** 2).sum(axis=(1, 2)) / q.good.sum(axis=(1, 2))
    q.same(error, wanted_error)
    r = np.sqrt(np.maximum(bound, 0) / wanted_error)[:, None, None]
    factor = np.where(q.good, (q.wanted + r * (a - q.wanted)) / (a + 1e-10), 1)
    factor[wanted_error <= bound] = 1
    q.same(f, factor * q.f)


@pytest.mark.slow
@sizes
@precisions
@pytest.mark.parametrize("counts", sorted(COUNTS))
def test_misfits_of_the_model(form: Any, frames: int, precision: str, counts: str) -> None:
    q = Case(form, frames, precision, counts)
    amplitude, photon, valid = (q.put(np.zeros(frames)) for _ in range(3))
    intensity = q.zeros(HEIGHT, WIDTH, real=True)
    held = q.sent("f", "counts", "row", "mask")
    q.k.misfit(*held, q.limit, intensity, amplitude, photon, valid)
    m, i = (np.abs(q.f.astype(complex)) ** 2).sum(axis=0), q.wanted**2
    q.same(intensity, m[-1])
    q.same(amplitude, (q.good * (np.sqrt(m) - q.wanted) ** 2).sum(axis=(1, 2)))
    np.testing.assert_allclose(q.get(photon), (q.good * (m - i) ** 2 / (i + 1)).sum(axis=(1, 2)), rtol=1e-4)
    np.testing.assert_array_equal(q.get(valid), q.good.sum(axis=(1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("counts", sorted(COUNTS))
def test_every_count_type_is_projected(form: Any, counts: str) -> None:
    q = Case(form, 5, "single", counts, pods=1)
    f, error = q.put(q.f.copy()), q.put(np.zeros(5))
    q.k.modulus(f, *q.sent("counts", "row", "mask"), q.limit, 0.0, 1e-10, error)
    np.testing.assert_allclose(np.abs(q.get(f)[0])[q.good], q.wanted[q.good], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(q.get(f)[0][~q.good], q.f[0][~q.good])


def test_a_frame_without_a_valid_pixel_stays_as_it_is(form: Any) -> None:
    q = Case(form, 3, "single")
    f, error = q.put(q.f.copy()), q.put(np.ones(3))
    q.k.modulus(f, *q.sent("counts", "row"), q.put(np.zeros_like(q.mask)), q.limit, 0.0, 1e-10, error)
    np.testing.assert_array_equal(q.get(f), q.f)
    np.testing.assert_array_equal(q.get(error), 0)


@pytest.mark.slow
@sizes
@precisions
@pytest.mark.parametrize("summed", [True, False])
def test_waves_are_updated_and_the_object_summed(form: Any, frames: int, precision: str, summed: bool) -> None:
    q = Case(form, frames, precision)
    a, b = -0.8, 1.1
    waves, change = q.put(q.waves.copy()), q.put(np.ones(frames))
    num, den = q.zeros(*q.obj.shape), q.zeros(*q.obj.shape, real=True)
    projected, probes, which = q.sent("f", "probes", "which")
    where = q.put(q.obj), ORIGIN, *q.sent("corner", "weight")
    q.k.update(waves, projected[0], probes, which, *where, a, b, change, (num, den) if summed else None)
    step = b * q.f[0].astype(complex) + a * q.views() * q.windows() - (a + b) * q.waves
    q.same(waves, q.waves + step)
    q.same(change, 1 + (np.abs(step) ** 2).mean(axis=(1, 2)))
    q.same(num, summed * q.on_canvas(q.views().conj() * (q.waves + step)))
    q.same(den, summed * q.on_canvas(np.abs(q.views()) ** 2))


@sizes
@precisions
def test_sums_on_the_canvas(form: Any, frames: int, precision: str) -> None:
    q = Case(form, frames, precision)
    num, den, lit = q.zeros(*q.obj.shape), q.zeros(*q.obj.shape, real=True), q.zeros(*q.obj.shape, real=True)
    waves, probes, which, corner, weight = q.sent("waves", "probes", "which", "corner", "weight")
    q.k.object_sums(waves, probes, which, ORIGIN, corner, weight, num, den)
    q.same(num, q.on_canvas(q.views().conj() * q.waves))
    q.same(den, q.on_canvas(np.abs(q.views()) ** 2))
    q.k.illumination(probes, which, ORIGIN, corner, weight, lit)
    q.same(lit, q.on_canvas(np.abs(q.views()) ** 2))


@pytest.mark.slow
@sizes
@precisions
def test_sums_on_the_probe(form: Any, frames: int, precision: str) -> None:
    q = Case(form, frames, precision)
    num, den = q.zeros(3, HEIGHT, WIDTH), q.zeros(3, HEIGHT, WIDTH, real=True)
    waves, obj, corner, weight, layer = q.sent("waves", "obj", "corner", "weight", "layer")
    q.k.probe_sums(waves, obj, ORIGIN, corner, weight, layer, num, den)
    windows = q.weight[:, None, None] * q.windows()
    here = np.eye(3)[q.layer]
    q.same(num, np.einsum("jl,jyx->lyx", here, windows.conj() * q.waves))
    q.same(den, np.einsum("jl,jyx->lyx", here, np.abs(windows) ** 2))
    terms, powers = q.zeros(frames, HEIGHT, WIDTH), q.zeros(frames, HEIGHT, WIDTH, real=True)
    q.k.probe_terms(waves, obj, ORIGIN, corner, weight, terms, powers)
    q.same(terms, windows.conj() * q.waves)
    q.same(powers, np.abs(windows) ** 2)


@pytest.mark.slow
@sizes
@precisions
def test_bilinear_shifts(form: Any, frames: int, precision: str) -> None:
    q = Case(form, frames, precision)
    q.remainder[0] = 0
    out = q.put(q.wave(frames, HEIGHT, WIDTH))
    probes, layer, remainder = q.sent("probes", "layer", "remainder")
    q.k.shifted_views(probes, layer, remainder, out)
    q.same(out, np.array([q.shifted(q.probes[q.layer[j]], j) for j in range(frames)]))
    total, real = q.zeros(3, HEIGHT, WIDTH), q.zeros(3, HEIGHT, WIDTH, real=True)
    q.k.add_shifted(q.put(q.waves), layer, remainder, total)
    q.k.add_shifted(q.put(np.ascontiguousarray(q.waves.real)), layer, remainder, real)
    wanted = np.zeros((3, HEIGHT, WIDTH), complex)
    for j in range(frames):
        wanted[q.layer[j]] += q.shifted(q.waves[j], j)
    q.same(total, wanted)
    q.same(real, wanted.real)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["compute_80", "compute_90"])
@pytest.mark.parametrize("real", sorted(REALS))
@pytest.mark.parametrize("count", sorted(COUNTS))
def test_the_cuda_source_compiles(require: Callable[[str, bool], None], architecture: str, real: str, count: str) -> None:
    library = nvrtc()
    require("nvrtc", library is not None)
    assert library is not None
    flags = (*options(real, count), f"--gpu-architecture={architecture}")
    status, log, ptx = compile_ptx(library, flags)
    assert status == 0, log
    assert log.strip("\0\n ") == ""
    for name in KERNELS:
        assert f".entry {name}(" in ptx


def test_the_compiler_says_what_is_wrong(require: Callable[[str, bool], None]) -> None:
    library = nvrtc()
    require("nvrtc", library is not None)
    assert library is not None
    status, log, _ = compile_ptx(library, ("-DREAL=float", "-DCOUNT=nonsense", "--gpu-architecture=compute_90"))
    assert status != 0
    assert "nonsense" in log


@pytest.mark.slow
@sizes
@precisions
@pytest.mark.parametrize("kept", [True, False])
def test_the_residual_of_a_wave(form: Any, frames: int, precision: str, kept: bool) -> None:
    q = Case(form, frames, precision)
    a, b = -0.8, 1.1
    waves, change, projected = q.put(q.waves.copy()), q.put(np.ones(frames)), q.put(q.f[0].copy())
    probes, which = q.sent("probes", "which")
    where = q.put(q.obj), ORIGIN, *q.sent("corner", "weight")
    q.k.residual(waves if kept else None, projected, probes, which, *where, a, b, change)
    model = q.views() * q.windows()
    old = q.waves.astype(complex) if kept else model
    step = b * q.f[0].astype(complex) + a * model - (a + b) * old
    q.same(projected, old + step - model)
    q.same(change, 1 + (np.abs(step) ** 2).mean(axis=(1, 2)))
    q.same(waves, old + step if kept else q.waves)


@sizes
@precisions
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_norms_are_summed_on_the_canvas(form: Any, frames: int, precision: str, share: float) -> None:
    q = Case(form, frames, precision)
    den, powers = q.zeros(*q.obj.shape, real=True), q.r.random((frames, HEIGHT, WIDTH)).astype(q.real)
    peak = powers.max(axis=(1, 2))
    q.k.norm_sums(q.put(powers), q.put(peak), share, ORIGIN, q.put(q.corner), den)
    q.same(den, q.on_canvas(share * powers.astype(float) + (1 - share) * peak[:, None, None]))


@sizes
@precisions
def test_the_object_follows_residuals_over_a_norm(form: Any, frames: int, precision: str) -> None:
    q = Case(form, frames, precision)
    within = (ORIGIN[0] - 2, ORIGIN[1] - 1)
    norm = q.r.uniform(1, 2, (28, 33)).astype(q.real)
    norm[5:9, 4:12] = 0
    obj = q.put(q.obj.copy())
    where = ORIGIN, *q.sent("corner", "weight")
    residual, probes, which = q.sent("waves", "probes", "which")
    q.k.object_step(residual, probes, which, *where, q.put(norm), within, 0.7, obj)
    total = q.on_canvas(q.views().conj() * q.waves)
    here = norm[2 : 2 + q.obj.shape[0], 1 : 1 + q.obj.shape[1]].astype(float)
    q.same(obj, q.obj + 0.7 * np.divide(total, here, out=np.zeros_like(total), where=here > 0))


@precisions
def test_a_step_of_summed_terms_over_a_norm(form: Any, precision: str) -> None:
    q = Case(form, 2, precision)
    den = q.r.uniform(1, 2, (HEIGHT, WIDTH)).astype(q.real)
    den[2:4] = 0
    out = q.put(q.probes[0].copy())
    q.k.take_step(q.put(q.waves[0]), q.put(den), 0.4, out)
    moved = np.divide(q.waves[0], den, out=np.zeros_like(q.waves[0]), where=den > 0)
    q.same(out, q.probes[0] + 0.4 * moved)
