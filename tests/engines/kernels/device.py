"""A device that is the host, as strict as a GPU: what lies on it never mixes with host arrays unasked."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda import cpu_function
from scipy import fft, ndimage

from ptystream.engine import Context
from ptystream.engines.backend import Backend
from ptystream.engines.kernels.gpu import GpuKernels
from ptystream.engines.tiles import Sweeper
from ptystream.model.fft import transforms


class DeviceArray(np.ndarray):
    """An array that refuses host arrays beside it, as CuPy's do."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        _refuse((*inputs, *(out or ())))
        given = {} if out is None else {"out": tuple(_plain(o) for o in out)}
        result = getattr(ufunc, method)(*(_plain(i) for i in inputs), **given, **options)
        return out[0] if out else _sent(result)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        _refuse((*_flat(arguments), *options.values()))
        result = function(*_each(arguments), **{k: _plain(v) for k, v in options.items()})
        return _sent(result)

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse((value,))
        np.ndarray.__setitem__(self, key, value)

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError("implicit conversion of a device array to a host array")


def put(array: Any) -> Any:
    """To the device."""
    assert not isinstance(array, DeviceArray)
    return np.array(array).view(DeviceArray)


def get(array: Any) -> Any:
    """To the host; a copy."""
    assert isinstance(array, DeviceArray)
    return array.view(np.ndarray).copy()


class Namespace:
    """A NumPy namespace whose arrays lie on the device."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._library, name)
        if name in ("fft", "linalg"):
            return Namespace(found)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            if name != "asarray":
                _refuse((*_flat(arguments), *options.values()))
            return _sent(found(*_each(arguments), **{k: _plain(v) for k, v in options.items()}))

        return call


def device(context: Context) -> Backend:
    """The GPU's backend with its kernels as C++ and its arrays on the host; small tiles, so that there are several."""
    forward, backward = transforms("numpy")
    return Backend(
        xp=Namespace(np),
        ndimage=Namespace(ndimage),
        fft=Namespace(fft),
        kernels=GpuKernels(_function, threads=8),
        fft2=lambda a: _sent(forward(get(a))),
        ifft2=lambda a: _sent(backward(get(a))),
        sweeper=Sweeper(threads=1, partial_sums=1),
        tile_bytes=1 << 14,
        put=put,
        get=get,
        total=lambda array: put(context.ranks.total(get(array))),
        resident=True,
    )


def _function(name: str, real: str, count: str) -> Any:
    launch = cpu_function(name, real, count)

    def checked(grid: Any, block: Any, arguments: Any) -> None:
        _refuse(arguments)
        launch(grid, block, tuple(_plain(a) for a in arguments))

    return checked


def _refuse(values: Any) -> None:
    for value in values:
        if isinstance(value, np.ndarray) and not isinstance(value, DeviceArray) and value.ndim:
            raise TypeError(f"a host array of shape {value.shape} beside a device array")


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, DeviceArray) else value


def _flat(values: Any) -> list[Any]:
    return [v for value in values for v in (_flat(value) if isinstance(value, list | tuple) else [value])]


def _each(values: Any) -> list[Any]:
    return [type(v)(_each(v)) if isinstance(v, list | tuple) else _plain(v) for v in values]


def _sent(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_sent, value))
    return value.view(DeviceArray) if isinstance(value, np.ndarray) else value
