"""EPIE and SDR on the simulated scan of a moon and a flower: whether they converge, complete and while frames come."""

from __future__ import annotations

import logging
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from problems import BEAM, end, feed, make_run, make_scan

from ptystream.engine import Context
from ptystream.engines.epie import EPIE
from ptystream.engines.sdr import SDR
from ptystream.loop import Loop, LoopSettings, Step
from ptystream.model.parameters import CoherenceParameters, FullParameters
from ptystream.model.scan_model import Full
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.quality import align
from ptystream.run import EngineEntry, Run

FINE = {EPIE: {}, SDR: {"sigma": 1, "tau": 0.5}}
"""Parameters that converge; of EPIE the defaults."""


def finished(engine: Any, *, blocks: int = 1, labels: tuple[str, ...] = ("s",), **parameters: Any) -> Run:
    """A run to its end, the scan in so many blocks with iterations between them."""
    run = make_run(engine=engine, engines=[{"numiter": 60, **parameters}], labels=labels)
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    bounds = np.linspace(0, BEAM.frames, blocks + 1).astype(int)
    for first, stop in pairwise(bounds):
        for label in labels:
            feed(run, int(first), int(stop), label=label)
            if stop == BEAM.frames:
                end(run, label=label)
        loop.step()
    while loop.step() is not Step.DONE:
        pass
    return run


def misfit(run: Run) -> np.ndarray:
    """Amplitude misfit of each iteration."""
    return run.history()[1][:, 0]


def image(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(object, where it lies in the simulated one)."""
    storage = next(iter(run.reconstruction.objects.values()))
    truth = BEAM.object()
    y, x = (n // 2 + o for n, o in zip(truth.shape, storage.offset, strict=True))
    height, width = storage.shape
    padded = np.pad(truth, 64, constant_values=1)
    return storage.data[0], padded[y + 64 : y + 64 + height, x + 64 : x + 64 + width]


@pytest.mark.slow
@pytest.mark.parametrize("engine", [EPIE, SDR])
@pytest.mark.parametrize("blocks", [1, 4])
def test_a_scan_converges_to_what_was_simulated(engine: Any, blocks: int) -> None:
    run = finished(engine, blocks=blocks, **FINE[engine])
    errors = misfit(run)
    assert errors[-1] < 1.3
    assert errors[-1] < 0.1 * errors[0]
    found, truth = image(run)
    coverage = next(iter(run.snapshot({}).coverage.values()))
    apart = align(truth, found, coverage)
    assert apart.complex_rms < (0.07 if engine is EPIE else 0.2)


def test_a_batch_converges_too_if_more_slowly() -> None:
    one, many = (misfit(finished(EPIE, batch=n)) for n in (1, 8))
    assert one[10] < many[10]
    assert many[-1] < 1.5


@pytest.mark.slow
def test_two_scans_on_objects_and_probes_of_their_own() -> None:
    run = finished(EPIE, labels=("s", "t"))
    assert len(run.reconstruction.probes) == len(run.reconstruction.objects) == 2
    assert misfit(run)[-1] < 1.3
    alone = finished(EPIE)
    for both, single in zip(run.reconstruction.objects.values(), alone.reconstruction.objects.values(), strict=False):
        assert np.abs(both.data - single.data).mean() < 0.1


def test_the_defaults_of_sdr_diverge_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        errors = misfit(finished(SDR, numiter=80))
    assert errors[-1] > 10 * errors[0]
    told = [record for record in caplog.records if "sigma 1 and tau 1" in record.message]
    assert [record.levelname for record in told] == ["WARNING"]
    recommended = re.search(r"use, for instance, sigma (\S+) and tau (\S+)", told[0].message)
    assert recommended is not None
    pair = {"sigma": float(recommended[1]), "tau": float(recommended[2])}
    assert pair == FINE[SDR]  # which converges: see above
    told_in_text = [SDR.Parameters.parameters()[name].doc for name in pair] if hasattr(SDR.Parameters, "parameters") else []
    assert all("converge" in text for text in told_in_text)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        finished(SDR, numiter=2, **FINE[SDR])
    assert not any("diverge" in record.message for record in caplog.records)


def test_the_log_says_that_a_result_depends_on_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        finished(EPIE, numiter=3, batch=8)
    assert sum("batch 8" in record.message and "depends" in record.message for record in caplog.records) == 1


def configured(**entry: Any) -> Any:
    source = {"name": "ZmqScan", "address": "tcp://127.0.0.1:5570"}
    scan = {"name": "Full", "data": {**source, "shape": 32, "positions": {**source, "unit": "px"}}}
    return load({"scans": {"s": scan}, "engines": {"a": entry}})


@pytest.mark.parametrize("suffix", ["", "_serial", "_pycuda", "_cupy"])
def test_the_engines_are_found_under_the_names_of_ptypy(suffix: str) -> None:
    epie, sdr = (configured(name=name + suffix).engines[0] for name in ("EPIE", "SDR"))
    assert (epie.engine, sdr.engine) == (EPIE, SDR)
    assert (epie.parameters.alpha, epie.parameters.beta, epie.parameters.batch) == (1.0, 1.0, 1)
    held = sdr.parameters
    assert (held.sigma, held.tau, held.beta_probe, held.beta_object) == (1, 1, 0.1, 0.9)


def test_values_out_of_their_limits_are_refused_with_their_paths() -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured(name="EPIE", alpha=-1, batch=0, probe_update_start=-1, subpix="cubic", sigma=1)
    assert {fault.path for fault in caught.value.faults} == {
        f"engines.a.{name}" for name in ("alpha", "batch", "probe_update_start", "subpix", "sigma")
    }


class ModesParameters(FullParameters):
    coherence: CoherenceParameters = CoherenceParameters(num_probe_modes=2)


class Modes(Full):
    """Two modes of the probe."""

    Parameters = ModesParameters


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("engine", [EPIE, SDR])
def test_scans_may_have_different_numbers_of_modes(engine: Any, batch: int) -> None:
    entry = EngineEntry("e", engine.__name__, engine.Parameters(numiter=15, batch=batch, **FINE[engine]), engine)
    run = Run("test", [make_scan("s", 0), make_scan("t", 1, model=Modes)], [entry], Context())
    loop = Loop(run, LoopSettings(min_frames_for_recon=20))
    for label in ("s", "t"):
        feed(run, 0, BEAM.frames, label=label)
        end(run, label=label)
    while loop.step() is not Step.DONE:
        pass
    assert [len(probe.data) for probe in run.reconstruction.probes.values()] == [1, 2]
    assert run.iter_info[-1]["frames"] == 2 * BEAM.frames
    assert misfit(run)[-1] < 0.5 * misfit(run)[0]
