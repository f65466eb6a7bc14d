"""Where an engine's arrays live and what works on them: the only place that knows CPU from GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Context
from ptystream.model.fft import Transform, transforms
from ptystream.parallel import ALONE

from .kernels import Kernels
from .tiles import PARTIAL_SUMS, TILE_BYTES, Sweeper


@dataclass(frozen=True, slots=True)
class Backend:
    """One device, ready to work."""

    xp: Any
    """numpy or cupy."""
    ndimage: Any
    """scipy.ndimage or its form for the device."""
    kernels: Kernels
    fft2: Transform
    """Orthonormal, exp(-2πi…), over the last two axes; may overwrite its input."""
    ifft2: Transform
    sweeper: Sweeper
    tile_bytes: int
    """Waves of a tile."""
    put: Callable[[Any], Any]
    """Host array to array of the device; the same array where both are one."""
    get: Callable[[Any], NDArray[Any]]
    """And back."""
    total: Callable[[Any], Any]
    """The sum of a device array over all ranks, perhaps in place."""
    resident: bool
    """Whether counts are copied to the device; otherwise tiles look into the slabs."""


def cpu(context: Context) -> Backend:
    """Tiles that fit a core's cache, on the context's threads. Their number changes the time and not the bits."""
    from scipy import ndimage

    from .kernels import cpu as kernels

    return Backend(
        xp=np,
        ndimage=ndimage,
        kernels=kernels,
        **_pair(transforms(context.fft)),
        sweeper=Sweeper(context.threads, partial_sums=PARTIAL_SUMS),
        tile_bytes=TILE_BYTES,
        put=np.asarray,
        get=np.asarray,
        total=context.ranks.total,
        resident=False,
    )


def gpu(context: Context) -> Backend:
    """A few large tiles on the current CUDA device; sums by atomic additions, so results agree within rounding."""
    import cupy
    from cupyx.scipy import ndimage

    from .kernels.gpu import GpuKernels

    return Backend(
        xp=cupy,
        ndimage=ndimage,
        kernels=GpuKernels(),
        **_pair(transforms("cupy")),
        sweeper=Sweeper(threads=1, partial_sums=1),
        tile_bytes=1 << 28,
        put=cupy.asarray,
        get=cupy.asnumpy,
        total=(lambda array: cupy.asarray(context.ranks.total(cupy.asnumpy(array)))) if context.ranks.size > 1 else ALONE.total,
        resident=True,
    )


BACKENDS = {"cpu": cpu, "gpu": gpu}
"""By `Context.device`."""


def _pair(both: tuple[Transform, Transform]) -> dict[str, Transform]:
    return {"fft2": both[0], "ifft2": both[1]}
