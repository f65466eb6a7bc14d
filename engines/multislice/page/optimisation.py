"""How the loss is made smaller: what is compared, the line search, and what is refined."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from ptystream.params.base import Branch, parameter
from ptystream.params.course import Course, course


class OptimisationParameters(Branch):
    """Loss and line search."""

    algorithm: Literal["lsq_sqrt", "ml", "lsq", "lsq_sqrt_2", "lsq_compressed", "gauss_compressed", "poisson_compressed"] = (
        parameter("lsq_sqrt")
    )
    """What is compared

    'lsq_sqrt': Σ (√I - √m)² (Gaussian); 'ml': Σ I - m ln I (Poisson); 'lsq': Σ (I - m)²; 'lsq_sqrt_2': Σ (I - m)²/2m where m is
    above half a count, I elsewhere. Of signals of virtual detectors (`masks`): 'lsq_compressed', 'gauss_compressed',
    'poisson_compressed', the first three in this order."""

    epoch_max: int = parameter(200, lower=1)
    """Number of the epoch before which it ends: `epoch_max` - `epoch_prev` epochs are done after the last frame has come."""

    wolfe_c1_constant: Course = course(0.1, lower=1e-12, upper=1.0)
    """First condition of Wolfe: how far the loss must fall. Above 0, below c2; larger: shorter steps."""

    wolfe_c2_constant: Course = course(0.9, lower=1e-12, upper=1.0)
    """Second condition: how far the slope must rise. Above c1, below 1; larger: longer steps."""

    loss_weight: Course = course(1, kind="any")
    """Weight of the loss beside the terms that are added to it: a number, 'mean' (1/measurements) or 'mean_full' (1/values)."""

    max_count: int | float | None = parameter(20)
    """Trials of a line search; beyond them the step is rejected and the history forgotten. None or infinity: no limit."""

    reduce_factor: float = parameter(0.1)
    """Factor on a step that does not meet the first condition."""

    optimism: float = parameter(3.0)
    """Factor on a step that meets the first condition and not the second. Once one was too long, trials lie between."""

    min_step: float = parameter(1e-20, lower=0.0)
    """Shortest step: below it the history is forgotten. 0: no limit."""

    hist_length: Course = course(10, lower=0, infinite=True)
    """Steps that the optimiser remembers: 0 none (gradient descent), 1 (conjugate gradient), N (limited memory), infinity."""

    update_step_bfgs: Course = course(1, lower=1e-300)
    """Step with which a line search begins."""

    phase_only_obj: Course = course(False, kind="switch")
    """Whether the object changes in its phase alone."""

    tune_only_probe_phase: Course = course(False, kind="switch")
    """Whether the probe changes only in the phase of its spectrum."""

    tune_only_probe_abs: Course = course(False, kind="switch")
    """Whether the probe changes only in the modulus of its spectrum."""

    reset_history_flag: Course = course(False, kind="switch")
    """Whether the history is forgotten before this epoch."""

    poisson_floor: float = parameter(0.01, lower=1e-12, ours=True)
    """Photons under every modelled pixel in 'ml' and 'poisson_compressed': without it a dark pixel with a count ends a search."""

    pad_zeros: bool = parameter(False, ours=True)
    """Whether what lies beyond the detector counts as measured zeros, as in PyPty; otherwise it is not compared."""

    @model_validator(mode="before")
    @classmethod
    def _infinite(cls, given: Any) -> Any:
        """Infinity for 'no limit' is written as None."""
        if isinstance(given, dict) and given.get("max_count") == float("inf"):
            given = given | {"max_count": None}
        return given

    @field_validator("max_count")
    @classmethod
    def _trials(cls, value: float | None) -> float | None:
        if value is not None and value < 1:
            raise ValueError("must be a number of trials, 1 or more, or None for no limit")
        return value

    @field_validator("reduce_factor")
    @classmethod
    def _shorter(cls, value: float) -> float:
        if not 0 < value < 1:
            raise ValueError("must be above 0 and below 1")
        return value

    @field_validator("optimism")
    @classmethod
    def _longer(cls, value: float) -> float:
        if not value > 1:
            raise ValueError("must be above 1")
        return value


class UpdateParameters(Branch):
    """What is refined: 1 for yes, 0 for no."""

    update_probe: Course = course(1, kind="switch")
    """Whether the probe is updated."""

    update_obj: Course = course(1, kind="switch")
    """Whether the object is updated."""

    update_probe_pos: Course = course(0, kind="switch")
    """Whether probe positions are updated."""

    update_tilts: Course = course(0, kind="switch")
    """Whether tilt angles are updated."""

    update_beam_current: Course = course(0, kind="switch")
    """Whether the beam current is updated."""

    update_aberrations_array: Course = course(0, kind="switch")
    """Whether `aberrations_array` is updated."""

    update_static_background: Course = course(0, kind="switch")
    """Whether the static background is updated."""
