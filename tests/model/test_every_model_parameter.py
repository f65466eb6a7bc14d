"""Every parameter of every scan model, and every choice of it, changes what a run begins with: none is dead.

From a configuration as a user writes it to probes, objects, pods and propagators, with frames that come later. What a parameter
changes, and whether that is right, is the matter of the tests of each part. One that is declared and has no line here is an
error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from bench import Slabs
from every import (
    OTHER_FILE,
    RECON,
    Cases,
    aperture,
    beam_models,
    beam_modes,
    digest,
    laid,
    leaves,
    put_in,
    results,
    specimen,
)

from ptystream.model.models import MODELS
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import Configuration, load
from ptystream.plan import make_plan, models_of
from ptystream.reconstruction import PodTable, Reconstruction
from ptystream.scan.block import Block

SIDE, ANGLES = 32, 4
OPTICS = {"energy": 7.2, "distance": 2.0, "psize": 1e-4}
PIXEL = 1.23984193e-9 / 7.2 * 2.0 / (SIDE * 1e-4)
PLACES = np.random.default_rng(0).uniform(-6, 6, (12, 2)) * PIXEL
THREE = {"energies": (1.0, 0.9, 1.2)}

SHARED: Cases = {
    "tags": ([("empty",), "empty, dark"], {}),
    "propagation": (["nearfield"], {}),
    "ffttype": (["numpy", "fftw"], {}),
    "resample": ([2], {}),
    "pad": ([3], {}),
    "margin": ([40], {}),
    "share.probe": (["b"], {}),
    "share.object": (["b"], {}),
}
VANILLA: Cases = {**SHARED, "illumination.size": ([8 * PIXEL], {}), "sample.fill": ([0.5, 0.5j], {})}
APERTURE = aperture(PIXEL)
FULL: Cases = {
    **SHARED,
    **APERTURE,
    "coherence.num_probe_modes": ([2], {}),
    "coherence.num_object_modes": ([2], {}),
    "coherence.energies": ([(1.0, 1.1)], {}),
    "coherence.spectrum": ([(3.0, 2.0, 1.0)], {"coherence": THREE}),
    "coherence.object_dispersion": (["linear", "irregular"], {"coherence": THREE}),
    "coherence.probe_dispersion": (["linear", "irregular"], {"coherence": THREE}),
    "resolution": ([0.8 * PIXEL], {}),
    **beam_modes(PIXEL, {"coherence": {"num_probe_modes": 2}}),
    **beam_models(SIDE, "stxm"),
    **specimen(PIXEL, {"coherence": {"num_object_modes": 2}}, "stxm"),
    "sample.stxm.label": (["b"], {"sample": {"model": "stxm"}}),
}
BRAGG: Cases = {
    **APERTURE,
    "tags": ([("empty",)], {}),
    "ffttype": (["numpy", "fftw"], {}),
    "rocking.theta_bragg": ([25.0], {}),
    "rocking.n_rocking_positions": ([ANGLES + 2], {}),
    "rocking.rocking_step": ([0.02], {}),
    "illumination.model": (["moon", "flower", "tree", np.full((SIDE, SIDE), 1 + 2j)], {}),
    "illumination.size": ([8 * PIXEL], {}),
    "illumination.recon.rfile": ([OTHER_FILE], RECON),
    "illumination.recon.label": (["b"], RECON),
    "sample.fill": ([0.5], {}),
}
OPR: Cases = {
    **{path: case for path, case in FULL.items() if path.startswith("coherence.") or path == "share.object"},
    "coherence.probe_dispersion": (["irregular"], {"coherence": THREE}),  # a common subspace would not stay linear: refused
}
CASES: Mapping[str, Cases] = {"Vanilla": VANILLA, "Full": FULL, "OPRModel": OPR, "Bragg3dModel": BRAGG}
ALIKE = {"OPRModel": "Full"}
"""Models that are another one and what they have here."""
ROCKING = {"theta_bragg": 22.32, "n_rocking_positions": ANGLES, "rocking_step": 0.01}
REFUSED = {
    ("Bragg3dModel", "propagation"): "nearfield",
    ("Bragg3dModel", "resample"): 2,
    ("Bragg3dModel", "pad"): 2,
    ("Bragg3dModel", "margin"): 2,
    ("Bragg3dModel", "share.probe"): "b",
    ("Bragg3dModel", "share.object"): "b",
    ("OPRModel", "share.probe"): "b",
}
"""What a model cannot do, and says."""
ELSEWHERE = {("Bragg3dModel", "rocking.tolerance")}
"""Which frames are one rocking curve: tests/scan/test_rocking.py."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, str]]:
    """By the kind of a probe: what FILE and OTHER_FILE are."""
    folder = tmp_path_factory.mktemp("results")
    return {"plane": results(folder, (1, SIDE, SIDE)), "volume": results(folder, (1, ANGLES, SIDE, SIDE))}


def configured(model: str, given: dict[str, Any]) -> Any:
    """A configuration with the scan a, as given, and another b."""
    channels = {"channels": {"angle": "rocking"}} if model == "Bragg3dModel" else {}
    data = {"name": "ZmqScan", "shape": SIDE, **OPTICS, "positions": {"name": "ZmqScan", **channels}}
    own = {"rocking": ROCKING} if model == "Bragg3dModel" else {}
    plain = {"name": model, "data": data, **own}
    entry = {**plain, **{k: {**own.get(k, {}), **v} if isinstance(v, dict) else v for k, v in given.items()}}
    other = {**plain, "illumination": {"photons": 7.0} if model != "Vanilla" else {"size": 5 * PIXEL}, "sample": {"fill": 0.3}}
    for kind in ("resample", "propagation", "resolution", "pad"):
        other |= {kind: given[kind]} if kind in given else {}
    engine = "DM_3dBragg" if model == "Bragg3dModel" else "PyPty" if "pad" in given else "DM"
    scans = {"a": entry, "b": other}
    return load({"scans": scans, "engines": {"e": {"name": engine}}})


@pytest.fixture(scope="module")
def outcome(files: Mapping[str, Mapping[str, str]]) -> Callable[..., str]:
    """(model, what is given) → what two scans begin with, in short; each is made once, but where `again` is asked for."""
    known: dict[str, str] = {}

    def found(model: str, given: dict[str, Any], *, again: bool = False) -> str:
        key = f"{model} {given}"
        if again or key not in known:
            held = files["volume" if model == "Bragg3dModel" else "plane"]
            known[key] = beginning(configured(model, put_in(given, held)))
        return known[key]

    return found


def beginning(configuration: Configuration) -> str:
    """Probes, objects, pods and propagators of two scans, in short."""
    models = models_of(configuration)
    made = Reconstruction({}, {}, PodTable(max(m.pods for m in models.values())))
    others: dict[str, Any] = {}
    told = []
    for number, label in enumerate(("b", "a")):
        scan = models[label]
        counts = np.random.default_rng(number).poisson(40.0, (len(PLACES), *scan.store_shape)).astype("f4")
        store = Slabs(counts)
        first, later = (block(label, part) for part in (np.arange(8), np.arange(8, 12)))
        told.append(scan.start(made, first, store, None, others))
        scan.place(made, first)
        scan.place(made, later)
        others[label] = first, store
    pods = made.pods.state()
    held = [
        (name, s.data, s.offset, s.pixel_size_m, s.energy_kev, s.fill)
        for part in (made.probes, made.objects)
        for name, s in part.items()
    ]
    ways = [
        (w.before, w.zoom, w.transfer, getattr(w, "resample", None)) if hasattr(w, "before") else repr(w)
        for number in sorted(made.propagators)
        for w in made.propagators[number]
    ]
    groups = made.probe_dispersion + made.object_dispersion
    return digest(held, pods, ways, [repr(g) for g in groups], told, make_plan(configuration).context.fft)


def block(label: str, rows: np.ndarray) -> Block:
    dose, zero = np.ones(len(rows)), np.zeros(len(rows), np.int64)
    return Block(label, rows, rows, PLACES[rows], dose, zero, np.zeros((len(rows), 2)))


@pytest.mark.parametrize("model", CASES)
def test_every_parameter_of_a_model_has_a_line_here(model: str) -> None:
    declared = set(leaves(MODELS[model].Parameters)) - {"name"}
    apart = {path for name, path in {*REFUSED, *ELSEWHERE} if name == model}
    assert declared == set(CASES[model]) | set(CASES[ALIKE.get(model, model)]) | apart
    assert {MODELS[name] for name in CASES} == set(MODELS.values())


@pytest.mark.slow
@pytest.mark.parametrize(("model", "path"), [(m, p) for m, cases in CASES.items() for p in cases if (m, p) not in REFUSED])
def test_every_value_makes_a_difference(model: str, path: str, outcome: Callable[..., str]) -> None:
    values, beside = CASES[model][path]
    came = [outcome(model, beside)] + [outcome(model, laid(beside, path, value)) for value in values]
    wanted = len(came) - (path == "tags" and len(values) > 1)  # of two ways to write the same
    assert len(set(came)) == wanted, f"{path}: {values}"


@pytest.mark.slow
@pytest.mark.parametrize("model", CASES)
def test_the_same_parameters_come_to_the_same(model: str, outcome: Callable[..., str]) -> None:
    assert outcome(model, {}) == outcome(model, {}, again=True)


@pytest.mark.parametrize(("model", "path"), REFUSED)
def test_what_a_model_cannot_do_is_refused(model: str, path: str) -> None:
    with pytest.raises(ConfigurationError, match=path.partition(".")[0]):
        models_of(configured(model, laid({}, path, REFUSED[model, path])))
