"""The GPU form: raw CUDA kernels (`SOURCES`), compiled for the count type of the slab when it is first met."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

THREADS = 256
"""Threads of a block: a power of two."""
RUN = 32
"""Frames that one thread adds up before an atomic addition."""
SOURCES = ("projection.cu", "steps.cu")
"""Read as one file, in this order."""
REALS = {"float32": "float", "float64": "double"}
COUNTS = {
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "int32": "int",
    "float32": "float",
}

Launch = Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, ...]], None]
"""launch(grid, block, arguments)."""


def source() -> str:
    """The CUDA source of all kernels."""
    return "".join(files(__package__).joinpath(name).read_text(encoding="utf-8") for name in SOURCES)


def options(real: str, count: str) -> tuple[str, ...]:
    """Options of the compiler for NumPy dtype names of the arithmetic and of the counts."""
    return f"-DREAL={REALS[real]}", f"-DCOUNT={COUNTS[count]}", "--std=c++14"


@cache
def _module(real: str, count: str) -> Any:
    import cupy

    return cupy.RawModule(code=source(), options=options(real, count))


def cupy_function(name: str, real: str, count: str) -> Launch:
    """A compiled kernel on the current device."""
    function: Launch = _module(real, count).get_function(name)
    return function


class GpuKernels:
    """`Kernels` on one GPU; `function(name, real, count)` gives a launchable kernel."""

    def __init__(self, function: Callable[[str, str, str], Launch] = cupy_function, threads: int = THREADS) -> None:
        self._function, self._threads = function, threads

    def _run(self, name: str, real: Any, blocks: tuple[int, ...], *arguments: Any, count: str = "uint16") -> None:
        if any(getattr(a, "ndim", 0) and not a.flags.c_contiguous for a in arguments):
            raise ValueError(f"{name}: a raw kernel does not see strides: give contiguous arrays")
        if all(blocks):
            self._function(name, np.dtype(real).name, count)(blocks, (self._threads,), arguments)

    def _pixels(self, shape: tuple[int, ...], frames: int) -> tuple[int, int]:
        return -(-shape[-2] * shape[-1] // self._threads), -(-frames // RUN)

    def form(
        self, waves: Any, probes: Any, which: Any, obj: Any, origin: Any, corner: Any, weight: Any, c: float, out: Any
    ) -> None:
        real = weight.dtype.type
        where = obj, *_canvas(origin, obj), corner, weight
        self._run("form", real, (len(out),), waves, probes, which, *where, real(c), out, *_sides(out))

    def model(self, probes: Any, which: Any, obj: Any, origin: Any, corner: Any, weight: Any, out: Any) -> None:
        where = obj, *_canvas(origin, obj), corner, weight
        self._run("model", weight.dtype, (len(out),), probes, which, *where, out, *_sides(out))

    def modulus(self, f: Any, counts: Any, row: Any, mask: Any, limit: float, bound: float, epsilon: float, error: Any) -> None:
        real = f.real.dtype.type
        data = counts, row, mask, real(limit)
        sizes = np.int32(f.shape[0]), np.int32(f.shape[1]), np.int64(mask.size)
        policy = np.float64(bound), real(epsilon)
        self._run("modulus", real, (f.shape[1],), f, *data, *policy, error, *sizes, count=counts.dtype.name)

    def misfit(
        self, f: Any, counts: Any, row: Any, mask: Any, limit: float, intensity: Any, amplitude: Any, photon: Any, valid: Any
    ) -> None:
        real = intensity.dtype.type
        data = counts, row, mask, real(limit)
        sizes = np.int32(f.shape[0]), np.int32(f.shape[1]), np.int64(mask.size)
        sums = intensity, amplitude, photon, valid
        self._run("misfit", real, (f.shape[1],), f, *data, *sums, *sizes, count=counts.dtype.name)

    def update(
        self,
        waves: Any,
        projected: Any,
        probes: Any,
        which: Any,
        obj: Any,
        origin: Any,
        corner: Any,
        weight: Any,
        a: float,
        b: float,
        change: Any,
        sums: tuple[Any, Any] | None,
    ) -> None:
        real = weight.dtype.type
        where = obj, *_canvas(origin, obj), corner, weight
        num, den = sums if sums is not None else (waves, weight)
        added = np.int32(sums is not None), num, den
        step = real(a), real(b), change
        self._run("update", real, (len(waves),), waves, projected, probes, which, *where, *step, *added, *_sides(waves))

    def object_sums(self, waves: Any, probes: Any, which: Any, origin: Any, corner: Any, weight: Any, num: Any, den: Any) -> None:
        where = *_canvas(origin, num), corner, weight
        self._run("object_sums", weight.dtype, (len(waves),), waves, probes, which, *where, num, den, *_sides(waves))

    def illumination(self, probes: Any, which: Any, origin: Any, corner: Any, weight: Any, den: Any) -> None:
        where = *_canvas(origin, den), corner, weight
        self._run("illumination", weight.dtype, (len(which),), probes, which, *where, den, *_sides(probes))

    def probe_sums(self, waves: Any, obj: Any, origin: Any, corner: Any, weight: Any, layer: Any, num: Any, den: Any) -> None:
        where = obj, *_canvas(origin, obj), corner, weight
        sizes = np.int32(len(waves)), np.int32(RUN), *_sides(waves)
        blocks = self._pixels(waves.shape, len(waves))
        self._run("probe_sums", weight.dtype, blocks, waves, *where, layer, num, den, *sizes)

    def probe_terms(self, waves: Any, obj: Any, origin: Any, corner: Any, weight: Any, num: Any, den: Any) -> None:
        where = obj, *_canvas(origin, obj), corner, weight
        self._run("probe_terms", weight.dtype, (len(waves),), waves, *where, num, den, *_sides(waves))

    def shifted_views(self, probes: Any, layer: Any, remainder: Any, out: Any) -> None:
        self._run("shifted_views", remainder.dtype, (len(out),), probes, layer, remainder, out, *_sides(out))

    def add_shifted(self, stack: Any, layer: Any, remainder: Any, out: Any) -> None:
        name = "add_shifted_complex" if stack.dtype.kind == "c" else "add_shifted_real"
        sizes = np.int32(len(stack)), np.int32(RUN), *_sides(stack)
        blocks = self._pixels(stack.shape, len(stack))
        self._run(name, remainder.dtype, blocks, stack, layer, remainder, out, *sizes)

    def residual(
        self,
        waves: Any,
        projected: Any,
        probes: Any,
        which: Any,
        obj: Any,
        origin: Any,
        corner: Any,
        weight: Any,
        a: float,
        b: float,
        change: Any,
    ) -> None:
        real = weight.dtype.type
        where = obj, *_canvas(origin, obj), corner, weight
        state = np.int32(waves is not None), projected if waves is None else waves
        step = real(a), real(b), change
        self._run("residual", real, (len(projected),), *state, projected, probes, which, *where, *step, *_sides(projected))

    def norm_sums(self, powers: Any, peak: Any, share: float, origin: Any, corner: Any, den: Any) -> None:
        where = *_canvas(origin, den), corner, den
        real = den.dtype.type
        self._run("norm_sums", real, (len(powers),), powers, peak, real(share), *where, *_sides(powers))

    def object_step(
        self,
        residual: Any,
        probes: Any,
        which: Any,
        origin: Any,
        corner: Any,
        weight: Any,
        den: Any,
        within: Any,
        step: float,
        obj: Any,
    ) -> None:
        real = den.dtype.type
        norm = den, *_canvas(within, den), real(step)
        where = obj, *_canvas(origin, obj), corner, weight
        self._run("object_step", real, (len(residual),), residual, probes, which, *where, *norm, *_sides(residual))

    def take_step(self, num: Any, den: Any, step: float, out: Any) -> None:
        real = den.dtype.type
        self._run("take_step", real, (-(-den.size // self._threads),), num, den, real(step), out, np.int64(den.size))


def _canvas(origin: Any, canvas: Any) -> tuple[Any, Any, Any]:
    return np.int64(origin[0]), np.int64(origin[1]), np.int64(canvas.shape[-1])


def _sides(array: Any) -> tuple[Any, Any]:
    return np.int32(array.shape[-2]), np.int32(array.shape[-1])
