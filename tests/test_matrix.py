"""The part of the quality matrix in which every pair of engine, model, way of arriving, modes and photons occurs."""

import matrix
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ptystream.model.models import MODELS


@pytest.mark.slow
@pytest.mark.parametrize("cell", matrix.cover(), ids=lambda cell: cell.name)
def test_the_misfit_falls_the_object_is_found_and_growing_ends_as_complete(cell: matrix.Cell) -> None:
    found = matrix.figures(cell)
    assert found["misfit"] < 0.3 * found["first"]
    assert found["phase_rad"] < matrix.PHASE_RAD[cell.photons][cell.engine]
    assert found.get("apart", 0.0) < matrix.APART


@pytest.mark.parametrize("photons", matrix.PHASE_RAD)
def test_an_object_that_was_never_touched_is_far_from_found_and_a_blurred_one_is_not_found_in_much_light(photons: float) -> None:
    limits, sample = matrix.PHASE_RAD[photons], matrix.truth(1, photons)[1]
    assert set(limits) == set(matrix.ENGINES)
    y, x = (n // 2 - 32 for n in sample.shape)
    flat = matrix.phase_error(sample, np.ones((64, 64), complex))
    blurred = gaussian_filter(sample.real, 2) + 1j * gaussian_filter(sample.imag, 2)
    assert matrix.phase_error(sample, sample[y : y + 64, x : x + 64]) < 1e-6
    assert max(limits.values()) < (0.7 * flat if photons < 1e8 else matrix.phase_error(sample, blurred[y : y + 64, x : x + 64]))


def test_names_that_stand_for_the_same_model_are_the_same_class() -> None:
    for name, model in MODELS.items():
        if name.startswith("Block"):
            assert MODELS[name.removeprefix("Block")] is model
    assert MODELS["GradFull"] is MODELS["Full"]
