"""Scans whose frames have different sizes, reconstructed jointly: every engine works tile by tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench import Slabs, beam, block, difference, raster, scan, specimen
from cuda import COMPILER
from device import device

from ptystream.engine import Context
from ptystream.engines import backend
from ptystream.engines.dm import DM
from ptystream.engines.epie import EPIE
from ptystream.engines.ml import ML
from ptystream.engines.raar import RAAR
from ptystream.engines.sdr import SDR
from ptystream.model.geometry import Geometry
from ptystream.model.scan_model import Full
from ptystream.reconstruction import PodTable, Reconstruction

OBJECT = specimen((140, 140))
PIXEL = Geometry((32, 32), 7.2, 2.0, (1e-4, 1e-4)).pixel_size_m[0]
SIZES = ((32, 32), (24, 28))

ENGINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "DM": (DM, {}),
    "RAAR": (RAAR, {}),
    "EPIE": (EPIE, {}),
    "EPIE, batch": (EPIE, {"batch": 5}),
    "EPIE, linear": (EPIE, {"subpix": "linear", "object_norm_is_global": True}),
    "EPIE, fourier": (EPIE, {"subpix": "fourier", "probe_fourier_support": 0.6}),
    "SDR": (SDR, {"tau": 0.5}),
    "SDR, batch": (SDR, {"tau": 0.5, "batch": 5, "subpix": "linear"}),
    "ML": (ML, {}),
}


def geometry(shape: tuple[int, int]) -> Geometry:
    """Detectors of that many pixels, with which the object has one and the same pixel."""
    return Geometry(shape, 7.2, 2.0, tuple(1e-4 * 32 / n for n in shape))


def both(
    kind: Any, given: dict[str, Any], share: bool = True, precision: str = "single", where: str = "cpu", which: Any = (0, 1)
) -> Any:
    """An engine on two scans of one object, each with its own probe, its frames of another size."""
    made, stores = Reconstruction({}, {}, PodTable(1)), {}
    for number in which:
        shape = SIZES[number]
        view = geometry(shape)
        assert view.pixel_size_m == pytest.approx((PIXEL, PIXEL))
        probe, places = beam(shape, 11, seed=number + 1), raster(7, 4, seed=number)
        label = "ab"[number]
        rough = {"model": probe * np.exp(0.3j * specimen(shape, 9).real)}
        owner = {"share": {"object": "a"}} if number and share else {}
        model = Full(label, number, Full.Parameters(illumination=rough, **owner), view)
        stores[number] = Slabs(scan(view, places, [probe], [OBJECT], noise=5 + number))
        model.start(made, block(view, places, label=label), stores[number])
        model.place(made, block(view, places, label=label))
    engine = kind(kind.Parameters(**{"subpix": None} | given))
    engine.start(made, stores, Context(precision=precision, device=where, mean_photons=80.0, brightest_photons=1e5))
    return engine


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_frames_of_two_sizes_give_one_object(name: str) -> None:
    kind, given = ENGINES[name]
    engine = both(kind, given)
    assert {s.shape for s in engine.reconstruction.probes.values()} == set(SIZES)
    assert list(engine.reconstruction.objects) == ["SaG00"]
    before = difference(engine, OBJECT)
    misfit = engine.iterate(60).misfit[:, 1]
    assert misfit[-1] < 0.1 * misfit[0]
    assert difference(engine, OBJECT) < min(0.08, 0.3 * before)


@pytest.mark.parametrize("name", ["EPIE", "EPIE, linear", "SDR"])
def test_scans_that_share_nothing_do_as_each_does_alone(name: str) -> None:
    """With frames visited one after another; what they measure is per pixel of their own size."""
    kind, given = ENGINES[name]
    joint = both(kind, given | {"record_local_error": True}, share=False, precision="double")
    together = joint.iterate(3)
    for number, label in enumerate("ab"):
        alone = both(kind, given | {"record_local_error": True}, share=False, precision="double", which=(number,))
        own = alone.iterate(3)
        rows = joint.reconstruction.pods.frame[:, 0] == number
        np.testing.assert_allclose(together.local[rows], own.local, rtol=1e-9)
        name_of = f"S{label}G00"
        np.testing.assert_allclose(
            joint.snapshot().objects[name_of].data, alone.snapshot().objects[name_of].data, rtol=1e-7, atol=1e-9
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EPIE, batch", "EPIE, linear", "SDR"])
def test_a_device_does_the_same(name: str, monkeypatch: pytest.MonkeyPatch, require: Any) -> None:
    require("c++", COMPILER is not None)
    monkeypatch.setitem(backend.BACKENDS, "gpu", device)
    kind, given = ENGINES[name]
    a, b = (both(kind, given, precision="double", where=where) for where in ("cpu", "gpu"))
    np.testing.assert_allclose(a.iterate(2).errors, b.iterate(2).errors, rtol=1e-8)
    for held, other in zip(a.snapshot().probes.values(), b.snapshot().probes.values(), strict=True):
        np.testing.assert_allclose(other.data, held.data, rtol=1e-6, atol=1e-6)
