"""Which device the engines run on: a GPU if one is there, otherwise the CPU; or what the user demands."""

from __future__ import annotations

from ptystream.params.errors import ConfigurationError, Fault

INSTALL = "install the extra that fits the driver: pip install 'ptystream[cuda12]' or 'ptystream[cuda13]'"


def choose(wanted: str, threads: int) -> tuple[str, str]:
    """('cpu' or 'gpu', the reason in one line) for 'auto', 'cpu' or 'gpu'.

    Raises `ConfigurationError` where a GPU is demanded and none can be used.
    """
    cpu = f"engines run on the CPU, {threads} thread{'s' if threads > 1 else ''}"
    if wanted == "cpu":
        return "cpu", cpu
    name, reason = find_gpu()
    if name is not None:
        return "gpu", f"engines run on the GPU: {name}"
    if wanted == "gpu":
        raise ConfigurationError([Fault("device", "gpu", f"{reason}; {INSTALL}, or use device: cpu")])
    return "cpu", f"{cpu} ({reason})"


def find_gpu() -> tuple[str | None, str]:
    """(name of the current CUDA device, '') or (None, why none can be used)."""
    try:
        import cupy
    except ImportError as error:
        missing = "cupy is not installed" if isinstance(error, ModuleNotFoundError) and error.name == "cupy" else str(error)
        return None, missing
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return None, "CUDA finds no device"
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
        free, total = cupy.cuda.runtime.memGetInfo()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return None, f"CUDA finds no device: {error}"
    name = properties["name"].decode(errors="replace")
    return f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free", ""


def use(device: str, place: int) -> None:
    """Make this process work on one of the machine's GPUs, the `place`-th of those there are; nothing for 'cpu'."""
    if device == "gpu":
        import cupy

        cupy.cuda.Device(place % cupy.cuda.runtime.getDeviceCount()).use()
