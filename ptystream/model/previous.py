"""Probe and object of an earlier reconstruction, ours or ptypy's, from its `.ptyr` file. Nothing in the file is executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.scan.parameters import MAX_ARRAY_BYTES


@dataclass(frozen=True, slots=True)
class Previous:
    """One storage of a file."""

    name: str
    data: NDArray[np.complex128]
    """(layer, y, x); of a volume (r3, r1, r2)."""
    pixel_size_m: tuple[float, float] | None
    center: tuple[float, float]
    """Pixel of physical zero (y, x)."""


def check(rfile: str, part: str) -> None:
    """Whether the file holds a `part` ('probe', 'obj'). Raises `ValueError` that says what is wrong."""
    read(rfile, part, None, None)


def read(rfile: str, part: str, label: str | None, own: str | None) -> Previous:
    """The storage of scan `label`; without one that of `own`, or the only one of the file.

    Raises `ValueError` for a file or storage that is not there, cannot be meant, or is larger than `MAX_ARRAY_BYTES`.
    """
    import h5py

    try:
        with h5py.File(rfile, "r") as file:
            content = file.get(f"content/{part}")
            if not isinstance(content, h5py.Group) or not len(content):
                raise ValueError(f"holds no /content/{part}: give a .ptyr file")
            names = [str(name) for name in content]
            wanted = own if label is None else label
            matching = [n for n in names if wanted is not None and n in (f"S{wanted}G00", f"S{wanted}")]
            if label is not None and not matching:
                raise ValueError(f"holds {part} {', '.join(names)}, none of scan {label!r}")
            if not matching and own is not None and len(names) > 1:
                remedy = "say whose with `label`" if part == "probe" else f"none of scan {own!r}; name the scan as it was"
                raise ValueError(f"holds {part} {', '.join(names)}: {remedy}")
            name = (matching or names)[0]
            return _storage(name, content[name])
    except (OSError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"rfile: {rfile!r}: cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"rfile: {rfile!r}: {error}") from error


def _storage(name: str, node: Any) -> Previous:
    data = node["data"]
    volume = data.ndim == 4 and data.shape[0] == 1
    if (data.ndim != 3 and not volume) or data.dtype.kind not in "fc" or data.size * data.dtype.itemsize > MAX_ARRAY_BYTES:
        raise ValueError(f"{name}: {data.dtype} of shape {data.shape} is no storage, or too large")
    shape = data.shape[-2:]
    psize = np.asarray(node["_psize"][()] if "_psize" in node else (1.0, 1.0), float).ravel()
    center = np.asarray(node["_center"][()] if "_center" in node else [n // 2 for n in shape], float).ravel()
    if volume:
        psize, center = psize[-2:], center[-2:]
    if psize.shape != (2,) or center.shape != (2,) or not (np.isfinite(psize).all() and np.isfinite(center).all()):
        raise ValueError(f"{name}: pixel {psize} and centre {center} are no two numbers each")
    values = np.asarray(data[0] if volume else data[()], complex)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: holds values that are not finite")
    pixel = None if (psize == 1.0).all() or (psize <= 0).any() else (float(psize[0]), float(psize[1]))
    return Previous(name, values, pixel, (float(center[0]), float(center[1])))


def same_pixel(found: Previous, pixel: tuple[float, float] | None, where: str) -> None:
    """Raises `ValueError` where pixels on the sample differ by more than 1 %."""
    if found.pixel_size_m is None or pixel is None:
        return
    if not np.allclose(found.pixel_size_m, pixel, rtol=0.01, atol=0):
        raise ValueError(
            f"{where}: {found.name} has pixels of {found.pixel_size_m} m and this geometry {pixel} m: it is of another geometry"
        )


def centred(data: NDArray[np.complex128], shape: tuple[int, int]) -> NDArray[np.complex128]:
    """Layers (layer, y, x) cut, or filled up with 0, about pixel N // 2 to another shape."""
    made = np.zeros((len(data), *shape), complex)
    source, target = [], []
    for have, want in zip(data.shape[1:], shape, strict=True):
        low = max(-(have // 2), -(want // 2))
        high = min(have - have // 2, want - want // 2)
        source.append(slice(have // 2 + low, have // 2 + high))
        target.append(slice(want // 2 + low, want // 2 + high))
    made[:, target[0], target[1]] = data[:, source[0], source[1]]
    return made
