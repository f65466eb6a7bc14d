"""Ways to run or to compile the CUDA kernels on a machine without a GPU: as C++ on the CPU, and through NVRTC."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.engines.kernels.gpu import options, source

KERNELS = re.findall(r"__global__ void (\w+)\(", source())
COMPILER = shutil.which("g++") or shutil.which("clang++")


@cache
def _library(real: str, count: str) -> ctypes.CDLL:
    """The kernels as a shared library."""
    folder = Path(tempfile.mkdtemp(prefix="kernels"))
    text = '#include "cuda_on_cpu.hpp"\n' + source() + "".join(f"LAUNCHER({name})\n" for name in KERNELS)
    (folder / "kernels.cpp").write_text(text)
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", f"-I{Path(__file__).parent}"]
    defines = [flag for flag in options(real, count) if flag.startswith("-D")]
    assert COMPILER is not None
    subprocess.run([COMPILER, *flags, *defines, "kernels.cpp", "-o", "kernels.so"], cwd=folder, check=True, timeout=120)
    loaded = ctypes.CDLL(str(folder / "kernels.so"))
    shutil.rmtree(folder)
    return loaded


def cpu_function(name: str, real: str, count: str) -> Any:
    """The kernel with the calling convention of a CuPy raw kernel, on host arrays."""
    function = getattr(_library(real, count), f"launch_{name}")

    def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        held = []
        for value in arguments:
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous
                held.append(ctypes.c_void_p(value.ctypes.data))
            else:
                assert isinstance(value, np.generic), f"{name}: {value!r} has no type of its own"
                held.append(ctypes.create_string_buffer(value.tobytes()))
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
        function(pointers, (ctypes.c_uint * 2)(*grid, *[1] * (2 - len(grid))), ctypes.c_uint(block[0]))

    return launch


def nvrtc() -> ctypes.CDLL | None:
    """NVIDIA's runtime compiler from its wheel, or None."""
    try:
        from nvidia import cuda_nvrtc
    except ImportError:
        return None
    found = sorted(Path(next(iter(cuda_nvrtc.__path__))).glob("lib/libnvrtc.so.*"))
    return ctypes.CDLL(str(found[0])) if found else None


def compile_ptx(library: ctypes.CDLL, flags: tuple[str, ...]) -> tuple[int, str, str]:
    """(status, log, PTX) of the kernels."""
    program = ctypes.c_void_p()
    text = source().encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, b"projection.cu", 0, None, None) == 0
    encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    status = library.nvrtcCompileProgram(program, len(flags), encoded)
    log = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
    ptx = "" if status else _text(library.nvrtcGetPTXSize, library.nvrtcGetPTX, program)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return status, log, ptx


def _text(size_of: Any, get: Any, program: Any) -> str:
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert get(program, buffer) == 0
    return buffer.value.decode()
