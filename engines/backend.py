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
from ptystream.scan.memory import allowed_bytes

from .kernels import Kernels
from .tiles import PARTIAL_SUMS, TILE_BYTES, Sweeper


@dataclass(frozen=True, slots=True)
class Backend:
    """One device, ready to work."""

    xp: Any
    """numpy or cupy."""
    ndimage: Any
    """scipy.ndimage or its form for the device."""
    fft: Any
    """scipy.fft or its form for the device: transforms of whole arrays, over other axes or without a factor."""
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
    free: Callable[[], int] = lambda: 1 << 62
    """Bytes of the device's memory that nobody has."""
    give_back: Callable[[], None] = lambda: None
    """Return memory that is held for later to the device."""
    forget_plans: Callable[[], None] = lambda: None
    """Forget what transforms have planned."""


def cpu(context: Context) -> Backend:
    """Tiles that fit a core's cache, on the context's threads. Their number changes the time and not the bits."""
    from scipy import fft, ndimage

    from .kernels import cpu as kernels

    forth, back = transforms(context.fft)
    return Backend(
        xp=np,
        ndimage=ndimage,
        fft=fft,
        kernels=kernels,
        fft2=forth,
        ifft2=back,
        sweeper=Sweeper(context.threads, partial_sums=PARTIAL_SUMS),
        tile_bytes=TILE_BYTES,
        put=np.asarray,
        get=np.asarray,
        total=context.ranks.total,
        resident=False,
        free=allowed_bytes,  # not what is free at the moment: batches, and with them bits, are the same in every run
    )


def gpu(context: Context) -> Backend:
    """A few large tiles on the current CUDA device; sums by atomic additions, so results agree within rounding."""
    import cupy
    from cupyx.scipy import fft, ndimage

    from .kernels.gpu import GpuKernels

    forth, back = transforms("cupy")
    return Backend(
        xp=cupy,
        ndimage=ndimage,
        fft=fft,
        kernels=GpuKernels(),
        fft2=forth,
        ifft2=back,
        sweeper=Sweeper(threads=1, partial_sums=1),
        tile_bytes=1 << 28,
        put=cupy.asarray,
        get=cupy.asnumpy,
        total=(lambda array: cupy.asarray(context.ranks.total(cupy.asnumpy(array)))) if context.ranks.size > 1 else ALONE.total,
        resident=True,
        free=lambda: int(cupy.cuda.runtime.memGetInfo()[0]) + int(cupy.get_default_memory_pool().free_bytes()),
        give_back=cupy.get_default_memory_pool().free_all_blocks,
        forget_plans=cupy.fft.config.get_plan_cache().clear,
    )


BACKENDS = {"cpu": cpu, "gpu": gpu}
"""By `Context.device`."""
