"""Who works together, by what a launcher left in the environment."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from ptystream.parallel import LAUNCHED, SIZES, part, team


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that no launcher has started, without mpi4py."""
    for name in {*LAUNCHED, *SIZES}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    team.cache_clear()
    yield
    team.cache_clear()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"PMI_SIZE": "1", "PMI_RANK": "0"},
        {"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"},
    ],
)
def test_a_process_that_is_alone_needs_no_mpi(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert team() is None


@pytest.mark.parametrize(
    "given",
    [
        {"PMI_SIZE": "2", "PMI_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "4", "PMI_SIZE": "1", "SLURM_STEP_NUM_TASKS": "1"},
        {"PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "1"},
        {"PMIX_RANK": "3"},
    ],
)
def test_where_a_launcher_started_several_mpi_must_be_there(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="mpi4py is not installed"):
        team()


@pytest.mark.parametrize(
    ("users", "expected"),
    [([4] * 16, 4), ([1] * 8, 8), ([3] * 9, 3), ([2], 1), ([5] * 3, 1), ([1, 1, 2, 2, 2], 3)],
    ids=["all to all", "bound", "thirds", "shared core", "more ranks than cores", "some of both"],
)
def test_a_rank_uses_its_part_of_the_cores(users: list[int], expected: int) -> None:
    assert part(np.array(users)) == expected
