"""The microscope, the sampling, and the arrays from which everything starts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from ptystream.params.base import Branch, parameter
from ptystream.params.course import Course, course
from ptystream.params.home import located

from .arrays import ArrayOrNumber, ArrayParameter, ProbeParameter

MOST_MODES = 1024
"""Modes that a probe is begun with, at most."""


class ExperimentParameters(Branch):
    """The microscope."""

    acc_voltage: float = parameter(60.0, lower=1e-3)
    """Acceleration voltage, kV."""

    aperture_mask: ArrayParameter = parameter(None)
    """Aperture in the probe's reciprocal space, centred, (y, x); the probe is kept within it by `probe_reg_constraint_weight`
    where `probe_constraint_mask` gives no other."""

    recon_type: Literal["far_field", "near_field"] = parameter("far_field")
    """'far_field': patterns are diffraction patterns; 'near_field': defocused images."""

    alpha_near_field: float = parameter(0.0, lower=0.0)
    """Illumination angle that blurs defocused images, radians; the flux is kept."""

    defocus_array: ArrayParameter = parameter([0.0])
    """Defocus of images, Å: one for all measurements, or one for each. The far field has none."""

    Cs: float = parameter(0.0)
    """Spherical aberration, Å, of images."""


class CalibrationParameters(Branch):
    """Lengths."""

    slice_distances: ArrayParameter = parameter([10.0])
    """Distances between the slices of the object, Å: one for all, or one for each gap."""

    pixel_size_x_A: float = parameter(1.0, lower=1e-6)  # noqa: N815  (the page's name)
    """Pixel of the reconstruction along x, Å (padding and upsampling are in it)."""

    pixel_size_y_A: float = parameter(1.0, lower=1e-6)  # noqa: N815  (the page's name)
    """Pixel of the reconstruction along y, Å."""

    scan_size: list[int] | None = parameter(None)
    """Points of the scan along (y, x), slow and fast; what constrains positions and tilts needs it."""

    scan_step_A: float | None = parameter(None, lower=1e-6, ours=True)  # noqa: N815  (as PyPty's code has it)
    """Distance of neighbours on a raster of `scan_size` points, Å, where there are no `positions`; None: not given."""

    num_slices: int = parameter(1, lower=1, upper=1000)
    """Slices of the object."""

    @field_validator("scan_size")
    @classmethod
    def _sizes(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and (len(value) != 2 or min(value) < 1):
            raise ValueError("must be two whole numbers (y, x), 1 or more")
        return value


class RefinableParameters(Branch):
    """Starting arrays."""

    obj: ArrayParameter = parameter(None)
    """Transmission of the object, complex, (y, x, slice, mode); None: 1 everywhere, in `num_slices` slices

    Its first pixel lies under the first pixel of the view at the smallest position (with `skip_preprocessing`: at position 0);
    where it is too small, it is continued by 1."""

    probe: ProbeParameter = parameter(None)
    """Probe in real space, complex, (y, x, mode) or (y, x, mode, subscan); None: made from the data, see the beam's parameters

    In the far field it is brought to the model's size by padding or cropping its spectrum, in the near field in real space,
    and scaled to the mean counts of a pattern; with `skip_preprocessing` it is taken as it is. 'aperture': made from
    `aperture_mask`."""

    positions: ArrayParameter = parameter([[0.0, 0.0]])
    """Scan positions (y, x), pixels of the reconstruction, one for each measurement, or one for all."""

    tilts: ArrayParameter = parameter([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    """Tilts of each measurement, or one line for all, radians: (y, x) before, inside and after the specimen

    Before: a shift in the plane of the aperture; inside: the beam goes sideways from slice to slice; after: a shift on the
    detector."""

    tilt_mode: Literal[0, 1, 2, 3, 4] = parameter(0)
    """Which tilts are applied: inside with 0, 3, 4; before with 2, 4; after with 1, 3, 4."""

    static_background: ArrayOrNumber = parameter(0.0)
    """Background intensity that all patterns share: its square root, of a pattern's shape; a number above 0: one is made whose
    photons are so many in each pattern; 0: none."""

    beam_current: ArrayParameter = parameter(None)
    """Relative beam current or exposure of each measurement: a factor on the amplitude; None: 1."""

    puzzle_positions: ArrayParameter = parameter(None)
    """Scan positions that take the place of `positions`, in its form."""


class PropagationParameters(Branch):
    """Propagation, shifting, and resizing."""

    propmethod: Literal["multislice"] = parameter("multislice")
    """How waves go through the specimen."""

    allow_subPixel_shift: bool = parameter(True)  # noqa: N815  (the page's name)
    """Whether the part of a position that is smaller than a pixel shifts the probe; False: positions are rounded until they are
    refined."""

    dynamically_resize_yx_object: Course = course(False, kind="number", lower=0)
    """Whether the object grows where refined positions leave it: True or n, once one has moved by so many pixels

    Until then a correction moves the probe within its frame."""

    extra_space_on_side_px: int = parameter(0, lower=0)
    """Room around the object, pixels on each side."""

    skip_preprocessing: bool = parameter(False)
    """Whether arrays are taken as they are given: no padding or upsampling of the probe, no room around the object."""


class BandwidthParameters(Branch):
    """Band limits, parts of the largest frequency of the model."""

    damping_cutoff_multislice: float = parameter(2 / 3)
    """Cut-off of waves and slices; above 2/3 products alias. Below 0: 2/3."""

    smooth_rolloff: float = parameter(0.0, lower=0.0, upper=1.0)
    """Width of a smooth cut-off of whole arrays."""

    update_extra_cut: float = parameter(0.005, lower=0.0, upper=1.0)
    """By how much the cut-off of the whole object, and of updates, is smaller."""

    lazy_clean: bool = parameter(False)
    """Whether the whole object is left without band limit; views of it have theirs."""

    @field_validator("damping_cutoff_multislice")
    @classmethod
    def _cutoff(cls, value: float) -> float:
        if value == 0 or value > 2:
            raise ValueError("must be above 0 (2/3 and less do not alias), or below 0 for 2/3")
        return value if value > 0 else 2 / 3


class IlluminationParameters(Branch):
    """Several illuminations in one scan."""

    aberrations_array: ArrayParameter = parameter([[0.0]])
    """Aberrations of several beams, Å, (subscan, coefficient), in the order of `aberrations`."""

    phase_plate_in_h5: str | None = parameter(None)
    """HDF5 file whose dataset "configs" (measurement, y, x), or one plate for all, holds complex factors on the probe's spectrum,
    zero frequency at [0, 0]."""

    aberration_marker: ArrayParameter = parameter(None)
    """Line of `aberrations_array` for each measurement; None: aberrations are not used."""

    probe_marker: ArrayParameter = parameter(None)
    """Subscan of `probe` for each measurement; a probe without that axis is begun alike for all."""

    @field_validator("phase_plate_in_h5")
    @classmethod
    def _place(cls, value: str | None) -> str | None:
        return None if value is None else located(value)

    @field_validator("aberration_marker", "probe_marker")
    @classmethod
    def _marks(cls, value: Any) -> Any:
        if value is not None and (value.ndim != 1 or value.dtype.kind not in "iu" or (value < 0).any()):
            raise ValueError("must be whole numbers, 0 or more, one for each measurement")
        return value


class BeamParameters(Branch):
    """How the probe begins where none is given."""

    n_hermite_probe_modes: list[int] | None = parameter(None)
    """Orders (x, y) up to which Hermite modes of the probe are made; None: none."""

    defocus_spread_modes: ArrayParameter = parameter(None)
    """Defocus of each probe mode, Å, of a `probe` with several modes that of its first; None: the probe has one mode."""

    mc_n_modes: int | None = parameter(None, lower=1, upper=MOST_MODES, ours=True)
    """Modes of a partly coherent beam, the strongest: of a source of finite size (`spatial_coh_…`) and a spread of focus
    (`focal_spread`). Of a `probe` with several modes the first is taken. None: the beam is coherent. The log says what share of
    the photons they have."""

    focal_spread: float = parameter(0.0, lower=0.0, upper=1e12, ours=True)
    """Standard deviation of the defocus, Å, for `mc_n_modes`."""

    spatial_coh_x_A: float = parameter(0.0, lower=0.0, upper=1e9, ours=True)  # noqa: N815  (as PyPty's code has it)
    """Standard deviation along x of the source's image on the specimen, Å, for `mc_n_modes`."""

    spatial_coh_y_A: float = parameter(0.0, lower=0.0, upper=1e9, ours=True)  # noqa: N815
    """Along y."""

    spatial_coh_xy: float = parameter(0.0, lower=-1.0, upper=1.0, ours=True)
    """Correlation of the two, from -1 to 1."""

    n_mc_samples: int = parameter(256, lower=16, upper=2048, ours=True)
    """Points at which the chances of `mc_n_modes` are looked at. They fill the Gaussian evenly, the same in every run."""

    aberrations: ArrayParameter = parameter(None)
    """Aberrations of the probe, Å, in Krivanek's notation: C10, C12a, C12b, C21a, C21b, C23a, C23b, C30, …; the list may stop
    anywhere."""

    extra_probe_defocus: float = parameter(0.0)
    """Defocus that is added to the probe, Å."""

    estimate_aperture_based_on_binary: float = parameter(0.0, lower=0.0)
    """Above 0: the aperture is where the mean pattern is larger than so many times its mean."""

    beam_ctf: ArrayParameter = parameter(None)
    """Phase of the probe's spectrum, radians, centred, (y, x) of the model."""

    mean_pattern: ArrayParameter = parameter(None)
    """Mean pattern from which the probe is made, (y, x); None: that of the first frames."""

    @field_validator("n_hermite_probe_modes")
    @classmethod
    def _orders(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and (len(value) != 2 or min(value) < 0 or max(value) > 20):
            raise ValueError("must be two whole numbers [x, y] from 0 to 20")
        return value
