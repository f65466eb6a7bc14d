"""The choice of the device, with stand-ins for cupy's runtime."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ptystream.device import choose
from ptystream.params.errors import ConfigurationError


class NoDevice(RuntimeError):
    """CUDA's complaint."""


def runtime(count: int | None) -> Any:
    def devices() -> int:
        if count is None:
            raise NoDevice("cudaErrorInsufficientDriver")
        return count

    return SimpleNamespace(
        CUDARuntimeError=NoDevice,
        getDeviceCount=devices,
        getDevice=lambda: 0,
        getDeviceProperties=lambda number: {"name": b"Some GPU"},
        memGetInfo=lambda: (2**31, 2**33),
    )


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(count: int | None) -> None:
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime(count))))

    return install


def test_a_gpu_is_taken_where_there_is_one(cupy: Any) -> None:
    cupy(1)
    for wanted in ("auto", "gpu"):
        kind, reason = choose(wanted, 4)
        assert kind == "gpu"
        assert "Some GPU" in reason
        assert "2.0 of 8.0 GiB" in reason
    assert choose("cpu", 4) == ("cpu", "engines run on the CPU, 4 threads")


@pytest.mark.parametrize("count", [0, None])
def test_without_a_device_the_cpu_is_taken_and_the_reason_told(cupy: Any, count: int | None) -> None:
    cupy(count)
    kind, reason = choose("auto", 1)
    assert kind == "cpu"
    assert "CPU, 1 thread (CUDA finds no device" in reason
    with pytest.raises(ConfigurationError, match=r"device: 'gpu': CUDA finds no device.*device: cpu"):
        choose("gpu", 1)


def test_without_cupy_the_remedy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ConfigurationError, match="cuda12"):
        choose("gpu", 1)
    assert choose("auto", 2)[0] == "cpu"
