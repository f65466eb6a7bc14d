"""What is known beforehand: terms of the loss, and changes by hand between epochs."""

from __future__ import annotations

from pydantic import field_validator

from ptystream.params.base import Branch, parameter
from ptystream.params.course import Course, course

from .arrays import ArrayOrNumber


class TermParameters(Branch):
    """Terms that are added to the loss, each with its weight. Weights are absolute: sums over pixels, pixels², radians²."""

    mixed_variance_weight: Course = course(0, lower=0)
    """Keeps slow variations between the states of the object away."""

    mixed_variance_sigma: Course = course(0.5, lower=1e-6)
    """Frequencies, cycles per pixel, up to which `mixed_variance_weight` acts."""

    probe_constraint_mask: ArrayOrNumber = parameter(None)
    """Where the probe may be in reciprocal space, centred, (y, x), true or 1: allowed; or a single number: up to this part of the
    largest frequency. What lies elsewhere is made small (L2)."""

    probe_reg_constraint_weight: Course = course(0, lower=0, infinite=True)
    """Weight of Σ |P(k)|² beyond `probe_constraint_mask`; infinity: nothing is left there, in every epoch."""

    window_weight: Course = course(0, lower=0)
    """Weight of the probe outside of `window`, in real space (L2)."""

    window: Course = course(None, kind="any")
    """Where the probe is not damped: [inner, outer] radius, parts of half the probe's width, with a smooth edge between; or a
    penalty (y, x) of the model's size, 1 where it is damped."""

    abs_norm_weight: Course = course(0, lower=0)
    """Weight of Σ |ln |o|| of the object's modulus (L1)."""

    phase_norm_weight: Course = course(0, lower=0)
    """Weight of Σ |arg o| of the object's phase (L1)."""

    atv_weight: Course = course(0, lower=0)
    """Weight of the total variation Σ (|Dx o|^p + |Dy o|^p)^(q/p)."""

    atv_q: Course = course(1, lower=1e-3)
    """Its q. Recommended: 1."""

    atv_p: Course = course(2, lower=1e-3)
    """Its p. Recommended: 2."""

    fast_axis_reg_weight_positions: Course = course(0, lower=0)
    """Keeps the acceleration of positions along each line small."""

    slow_axis_reg_weight_positions: Course = course(0, lower=0)
    """Keeps the acceleration of positions from line to line small."""

    fast_axis_reg_weight_tilts: Course = course(0, lower=0)
    """Keeps the acceleration of tilts along each line small."""

    slow_axis_reg_weight_tilts: Course = course(0, lower=0)
    """Keeps the acceleration of tilts from line to line small."""

    deformation_reg_weight_positions: Course = course(0, lower=0)
    """Keeps positions near to a regular grid, however deformed as a whole."""

    deformation_reg_weight_tilts: Course = course(0, lower=0)
    """Keeps tilts near to what is linear in the place on the scan."""


class ByHandParameters(Branch):
    """Changes of object and probe outside the loss; each makes the optimiser forget its history."""

    apply_gaussian_filter: Course = course(False, lower=0)
    """Width of a Gaussian filter on the object's phase, pixels, after each epoch; True: 1."""

    apply_gaussian_filter_amplitude: Course = course(False, lower=0)
    """The same on the logarithm of its modulus."""

    beta_wedge: Course = course(0, lower=0)
    """Takes high kz at low kx and ky out of the object: 1 - (2/π) atan(β² kz² / (kx² + ky²)) on its transform; 0: no."""

    keep_probe_states_orthogonal: Course = course(False, kind="switch")
    """Whether the modes of the probe are made orthogonal, the strongest first."""

    do_charge_flip: Course = course(False, kind="switch")
    """Whether the object's phase and absorption are flipped where they are small."""

    cf_delta_phase: Course = course(0.1)
    """Phase up to which is flipped, part of its maximum."""

    cf_delta_abs: Course = course(0.01)
    """Absorption up to which is flipped, part of its maximum."""

    cf_beta_phase: Course = course(-0.95)
    """Factor on a phase that is flipped."""

    cf_beta_abs: Course = course(-0.95)
    """Factor on an absorption that is flipped."""

    fancy_sigma: Course = course(None, kind="any")
    """Width of atoms, pixels: the object is sharpened by it before charges are flipped and blurred after. A number for phase and
    absorption, or ((sharpen, blur) of the phase, (sharpen, blur) of the absorption), either None; a text in the place of a
    width to sharpen by: Richardson and Lucy's iteration."""

    restart_from_vacuum: Course = course(False, kind="switch")
    """Whether the object is 1 again before this epoch; everything else stays."""

    reset_positions: Course = course(False, kind="switch")
    """Whether positions are again what they began as before this epoch; everything else stays."""

    @field_validator("apply_gaussian_filter", "apply_gaussian_filter_amplitude", mode="before")
    @classmethod
    def _width(cls, value: object) -> object:
        return 1.0 if value is True else value
