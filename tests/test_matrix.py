"""The part of the quality matrix in which every pair of engine, model, way of arriving, modes and photons occurs."""

import matrix
import pytest

from ptystream.model.models import MODELS


@pytest.mark.slow
@pytest.mark.parametrize("cell", matrix.cover(), ids=lambda cell: cell.name)
def test_the_misfit_falls_the_object_is_found_and_growing_ends_as_complete(cell: matrix.Cell) -> None:
    found = matrix.figures(cell)
    assert found["misfit"] < 0.3 * found["first"]
    assert found["phase_rad"] < matrix.PHASE_RAD[cell.engine]
    assert found.get("apart", 0.0) < matrix.APART


def test_names_that_stand_for_the_same_model_are_the_same_class() -> None:
    for name, model in MODELS.items():
        if name.startswith("Block"):
            assert MODELS[name.removeprefix("Block")] is model
    assert MODELS["GradFull"] is MODELS["Full"]
