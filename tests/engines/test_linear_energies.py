"""Objects and probes that are linear in the energy, in the engines that take steps: EPIE and SDR against an oracle, ML against
finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda import COMPILER
from device import device
from pydantic import ValidationError
from test_dm import SIDE, Store

from ptystream.engine import Context
from ptystream.engines import backend
from ptystream.engines.dm import DM
from ptystream.engines.epie import EPIE
from ptystream.engines.ml import ML
from ptystream.engines.opr import MLOPR
from ptystream.engines.order import random_order
from ptystream.engines.raar import RAAR
from ptystream.engines.sdr import SDR
from ptystream.model.opr import OPRParameters
from ptystream.reconstruction import Dispersion, PodTable, Reconstruction, Storage

T = (0.0, -0.3, 0.45)
FRAMES = 11
OFFSET = np.array((-7, 5))


class Case:
    """Three energies, each with its probe and its object, which are linear in the energy to begin with."""

    def __init__(self, seed: int = 0) -> None:
        r = np.random.default_rng(seed)

        def wave(*shape: int) -> np.ndarray:
            return r.normal(size=shape) + 1j * r.normal(size=shape)

        def line(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.stack([a + t * b for t in T])

        self.corner = r.integers(0, 12, (FRAMES, 2))
        self.truth = line(3 * wave(1, SIDE, SIDE), wave(1, SIDE, SIDE))
        sample = line(1 + 0.3 * wave(1, 30, 31), 0.4 * wave(1, 30, 31))
        self.probe = line(self.truth[0] + wave(1, SIDE, SIDE), 0.5 * wave(1, SIDE, SIDE))
        self.object = line(np.ones((1, 30, 31)) + 0.05 * wave(1, 30, 31), 0.1 * wave(1, 30, 31))
        views = [[p[0] * o[0][w] for p, o in zip(self.truth, sample, strict=True)] for w in self.windows()]
        self.counts = np.array([r.poisson(sum(np.abs(np.fft.fft2(v, norm="ortho")) ** 2 for v in each)) for each in views])
        self.mask = (r.random((SIDE, SIDE)) > 0.1).astype(np.uint8)

    def windows(self) -> list[tuple[slice, slice]]:
        return [(slice(y, y + SIDE), slice(x, x + SIDE)) for y, x in self.corner.tolist()]

    def start(self, kind: Any, dispersion: str = "both", where: str = "cpu", **given: Any) -> Any:
        """An engine on it; `dispersion`: what is told to be linear."""
        made = Reconstruction(
            {f"p{e}": Storage(self.probe[e].copy(), None, (0, 0), 0.0) for e in range(3)},
            {f"o{e}": Storage(self.object[e].copy(), None, tuple(OFFSET.tolist()), 1.0) for e in range(3)},
            PodTable(3),
        )
        if dispersion in ("both", "probe"):
            made.probe_dispersion.append(Dispersion(("p0", "p1", "p2"), T))
        if dispersion in ("both", "object"):
            made.object_dispersion.append(Dispersion(("o0", "o1", "o2"), T))
        address = np.zeros((FRAMES, 3, 6), np.int32)
        address[:, :, 0] = address[:, :, 2] = np.arange(3)
        address[:, :, 4:] = (self.corner + OFFSET)[:, None]
        frame = np.stack([np.zeros(FRAMES, int), np.arange(FRAMES)], axis=1)
        made.pods.append(address, np.zeros((FRAMES, 3, 2), "f4"), np.ones((FRAMES, 3), "f4"), frame)
        engine = kind(kind.Parameters(**{"subpix": None, "probe_update_start": 0} | given))
        store = Store(self.counts, self.mask)
        store.weights = None
        engine.start(made, {0: store}, Context(precision="double", device=where))
        return engine


def held(engine: Any) -> tuple[np.ndarray, np.ndarray]:
    shot = engine.snapshot()
    return np.stack([s.data for s in shot.probes.values()]), np.stack([s.data for s in shot.objects.values()])


def bend(values: np.ndarray) -> float:
    """How far values (energy, …) are from a + t b, relative."""
    matrix = np.stack([np.ones(3), T], axis=1)
    flat = values.reshape(3, -1)
    fit, *_ = np.linalg.lstsq(matrix, flat, rcond=None)
    return float(np.abs(matrix @ fit - flat).max() / np.abs(flat).max())


ENGINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "DM": (DM, {}),
    "RAAR": (RAAR, {}),
    "EPIE": (EPIE, {}),
    "EPIE, batch": (EPIE, {"batch": 4, "subpix": "linear"}),
    "EPIE, fourier support": (EPIE, {"probe_fourier_support": 0.4}),
    "SDR": (SDR, {"tau": 0.5}),
    "SDR, batch": (SDR, {"tau": 0.5, "batch": 3}),
    "ML": (ML, {}),
    "ML, with everything": (
        ML,
        {
            "scale_precond": True,
            "wavefield_precond": True,
            "smooth_gradient": 1.0,
            "reg_del2": True,
            "floating_intensities": True,
        },
    ),
}


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_told_to_be_linear_in_the_energy_is_and_nothing_else(name: str) -> None:
    kind, given = ENGINES[name]
    for dispersion, linear in (("both", (True, True)), ("object", (False, True)), ("probe", (True, False))):
        engine = Case().start(kind, dispersion, **given)
        before = held(engine)
        engine.iterate(4)
        seen = np.zeros((30, 31), bool)
        for window in Case().windows():
            seen[window] = True
        for now, was, told in zip(held(engine), before, linear, strict=True):
            assert np.abs(now - was).max() > 0.01
            part = now[:, :, seen] if now.shape[-2:] == seen.shape else now
            assert (bend(part) < 1e-12) == told


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["EPIE", "SDR"])
def test_steps_are_the_least_squares_of_the_free_ones(name: str, batch: int) -> None:
    """Against an oracle that solves for a and b of every pixel."""
    case = Case()
    given = {"EPIE": {"alpha": 0.9, "beta": 0.7}, "SDR": {"sigma": 0.5, "tau": 0.3}}[name] | {"probe_support": None}
    engine = case.start({"EPIE": EPIE, "SDR": SDR}[name], batch=batch, **given)
    engine.iterate(2)
    probe, sample, windows = case.probe[:, 0].copy(), case.object[:, 0].copy(), case.windows()
    if name == "EPIE":
        sigma, tau, steps, shares = 0.0, 1.0, (0.9, 0.7), (0.0, 0.0)
    else:
        sigma, tau, steps, shares = 0.5, 0.3, (0.9, 0.1), (0.9, 0.1)
    waves = [np.stack([probe[e] * sample[e][w] for e in range(3)]) for w in windows]
    for k in range(2):
        order = random_order(engine.reconstruction.pods, np.arange(FRAMES), 0, "visit", k)
        for first in range(0, FRAMES, batch):
            rows, residual = order[first : first + batch], {}
            for j in rows:
                now = np.stack([probe[e] * sample[e][windows[j]] for e in range(3)])
                old = now if name == "EPIE" else waves[j]
                f = np.fft.fft2((1 + sigma) * now - sigma * old, norm="ortho")
                size = np.sqrt((np.abs(f) ** 2).sum(axis=0)) + 1e-10
                projected = np.fft.ifft2(f * np.where(case.mask, np.sqrt(case.counts[j]) / size, 1), norm="ortho")
                waves[j] = (1 - tau) * now + tau * (projected + sigma * (old - now))
                residual[j] = waves[j] - now
            num, den = np.zeros_like(sample), np.zeros(sample.shape)
            for j in rows:
                power = np.abs(probe) ** 2
                num[(slice(None), *windows[j])] += probe.conj() * residual[j]
                den[(slice(None), *windows[j])] += (1 - shares[0]) * power.max(axis=(1, 2), keepdims=True) + shares[0] * power
            sample = fitted(sample + steps[0] * num / np.where(den > 0, den, 1), den)
            num, den = np.zeros_like(probe), np.zeros(probe.shape)
            for j in rows:
                seen = sample[(slice(None), *windows[j])]
                power = np.abs(seen) ** 2
                num += seen.conj() * residual[j]
                den += (1 - shares[1]) * power.max(axis=(1, 2), keepdims=True) + shares[1] * power
            probe = fitted(probe + steps[1] * num / den, den)
    found = held(engine)
    np.testing.assert_allclose(found[0][:, 0], probe, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found[1][:, 0], sample, rtol=1e-8, atol=1e-9)


def fitted(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """a + t b of each pixel by a solver; where nobody looked, what was there."""
    matrix, found = np.stack([np.ones(3), T], axis=1), values.copy()
    for pixel in np.ndindex(values.shape[1:]):
        w = np.sqrt(weight[(slice(None), *pixel)])
        if w.any():
            here = (slice(None), *pixel)
            found[here] = matrix @ np.linalg.lstsq(matrix * w[:, None], values[here] * w, rcond=None)[0]
    return found


@pytest.mark.parametrize("kind", ["gaussian", "poisson", "euclid"])
@pytest.mark.parametrize("which", ["object", "probe"])
def test_the_gradient_is_that_of_the_cost_by_a_and_b(kind: str, which: str) -> None:
    case = Case()
    engine = case.start(ML, ML_type=kind, probe_support=None)
    engine.likelihood.configure(engine.p)
    gradient = engine._gradient(engine.likelihood.descend(engine.tiles, probes=True), None)
    names = [f"{which} {which[0]}{e}" for e in range(3)]
    by_energy = np.stack([gradient[name] for name in names])
    assert bend(by_energy) < 1e-12
    r = np.random.default_rng(1)
    direction = np.stack([r.normal(size=by_energy.shape[1:]) + 1j * r.normal(size=by_energy.shape[1:]) for _ in range(2)])
    h = 1e-5

    def cost(length: float) -> float:
        """Of the data alone, in plain loops; `direction`: changes of a and b."""
        moved = [length * (direction[0] + t * direction[1]) for t in T]
        total = 0.0
        for window, counts in zip(case.windows(), case.counts, strict=True):
            model = np.zeros((SIDE, SIDE))
            for e in range(3):
                p, o = case.probe[e, 0], case.object[e, 0]
                p, o = (p + moved[e][0], o) if which == "probe" else (p, o + moved[e][0])
                model += np.abs(np.fft.fft2(p * o[window], norm="ortho")) ** 2
            m = model + (0 if kind == "gaussian" else 1e-6)
            terms = {
                "gaussian": (m - counts) ** 2 / (1 + counts),
                "poisson": m - counts * np.log(m),
                "euclid": (np.sqrt(m) - np.sqrt(counts)) ** 2,
            }[kind]
            total += float((terms * case.mask).sum())
        return total

    slope = (cost(h) - cost(-h)) / (2 * h)
    by_a, by_b = by_energy.sum(axis=0), sum(t * g for t, g in zip(T, by_energy, strict=True))
    analytic = 2 * (np.vdot(by_a, direction[0]) + np.vdot(by_b, direction[1])).real
    assert analytic == pytest.approx(slope, rel=1e-5)
    free = engine.likelihood.descend(engine.tiles, probes=True)
    raw = np.stack([num for num, _ in (free.objects if which == "object" else free.probes)])
    assert bend(raw) > 1e-3


@pytest.mark.parametrize("precondition", [False, True])
def test_ml_falls_along_the_line_and_ends_lower_with_the_free_values_than_with_the_linear_ones(precondition: bool) -> None:
    costs = {}
    for dispersion in ("both", "none"):
        engine = Case().start(ML, dispersion, wavefield_precond=precondition, probe_support=None)
        costs[dispersion] = engine.iterate(40).errors[:, 1]
    assert costs["both"][-1] < 0.2 * costs["both"][0]
    assert (np.diff(costs["both"]) <= 0).mean() > 0.8
    assert costs["none"][-1] < costs["both"][-1]


def test_a_start_that_is_not_linear_is_made_so() -> None:
    case = Case()
    r = np.random.default_rng(3)
    case.object = case.object + 0.2 * r.normal(size=case.object.shape)
    engine = case.start(ML)
    assert bend(held(engine)[1]) > 0.01
    engine.iterate(1)
    assert bend(held(engine)[1]) < 1e-12


def test_a_probe_for_each_frame_may_not_be_linear_as_well_but_the_object_may() -> None:
    with pytest.raises(ValidationError, match="irregular"):
        OPRParameters(coherence={"energies": (1.0, 1.1), "probe_dispersion": "linear"})
    OPRParameters(coherence={"energies": (1.0, 1.1), "probe_dispersion": "irregular", "object_dispersion": "linear"})


def test_an_object_stays_linear_where_every_frame_has_a_probe() -> None:
    engine = Case().start(ML)
    made = engine.reconstruction
    made.probe_dispersion.clear()
    for storage in made.probes.values():
        storage.data = np.repeat(storage.data, FRAMES, axis=0)
        storage.modes_per_frame = 1
    made.pods.address[:, :, 1] = np.arange(FRAMES)[:, None]
    own = MLOPR(MLOPR.Parameters(subpix=None, probe_update_start=0, subspace_dim=2))
    own.start(made, engine.frames, engine.context)
    before = held(own)
    own.iterate(3)
    probes, sample = held(own)
    assert bend(sample) < 1e-12
    assert np.abs(sample - before[1]).max() > 0.01
    for energy in probes:
        s = np.linalg.svd(energy.reshape(FRAMES, -1), compute_uv=False)
        assert s[1] > 1e-6 * s[0]
        assert s[2] < 1e-6 * s[0]


@pytest.mark.parametrize("name", ["EPIE, batch", "SDR", "ML"])
def test_a_device_does_the_same(name: str, monkeypatch: pytest.MonkeyPatch, require: Any) -> None:
    require("c++", COMPILER is not None)
    monkeypatch.setitem(backend.BACKENDS, "gpu", device)
    kind, given = ENGINES[name]
    a, b = (Case().start(kind, where=where, **given) for where in ("cpu", "gpu"))
    a.iterate(2), b.iterate(2)
    for one, other in zip(held(a), held(b), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-7, atol=1e-8)
