"""What to cite: the papers of what was used, and of nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from test_ptycho import parameters

from ptystream.citations import DIFFERENCE_MAP, ENGINES, MODES, NEAR_FIELD, PARAMETERS, POSITIONS, RELAXATION, citations_of
from ptystream.params.load import load, plugins


def cited(**changed: Any) -> list[str]:
    """Of a stand-in for a configuration."""
    engine = SimpleNamespace(name="own", engine=SimpleNamespace(cites=("A", "B")), parameters=SimpleNamespace())
    scan = SimpleNamespace(
        parameters=SimpleNamespace(
            name="Full", propagation="farfield", coherence=SimpleNamespace(num_probe_modes=1, num_object_modes=1)
        ),
        model=SimpleNamespace(__name__="Full"),
    )
    for path, value in changed.items():
        where, _, name = path.partition("__")
        held = {"engine": engine.parameters, "scan": scan.parameters, "coherence": scan.parameters.coherence}[where]
        setattr(held, name, value)
    made: Any = SimpleNamespace(engines=[engine, engine], scans=[scan])
    return citations_of(made)


@pytest.mark.parametrize(
    ("changed", "more"),
    [
        ({}, []),
        ({"coherence__num_probe_modes": 2}, [MODES]),
        ({"coherence__num_object_modes": 2}, [MODES]),
        ({"engine__position_refinement": False}, []),
        ({"engine__position_refinement": True}, [POSITIONS]),
        ({"engine__position_refinement": SimpleNamespace(active=True)}, [POSITIONS]),
        ({"engine__position_refinement": SimpleNamespace(active=False)}, []),
        ({"scan__propagation": "nearfield"}, [NEAR_FIELD]),
        ({"scan__name": "OPRModel"}, [RELAXATION]),
    ],
)
def test_what_was_used_is_cited_once(changed: dict[str, Any], more: list[str]) -> None:
    assert cited(**changed) == ["A", "B", *more, PARAMETERS]


@pytest.mark.parametrize("name", plugins("engines"))
def test_every_engine_has_a_paper(tmp_path: Any, name: str) -> None:
    own = getattr(plugins("engines")[name], "cites", ENGINES.get(name, ()))
    assert own
    assert all("doi:" in text for text in own)


def test_a_whole_configuration_cites_its_engines(tmp_path: Any) -> None:
    found = citations_of(load(parameters(tmp_path)))
    assert found == [DIFFERENCE_MAP, PARAMETERS]
