"""Parameters that several engines share; each engine's own stand in its file."""

from __future__ import annotations

from typing import Literal

from ptystream.params.base import Branch, parameter


class EngineParameters(Branch):
    """Every engine."""

    numiter: int = parameter(20, lower=1, steerable=True)
    """Total number of iterations

    Guaranteed after the last frame has arrived; iterations during the acquisition come on top."""

    numiter_contiguous: int = parameter(1, lower=1, steerable=True)
    """Number of iterations without interruption

    The engine looks at new data, requests and saving only between such groups of iterations."""

    probe_support: float | None = parameter(0.7, lower=0.0)
    """Valid probe area as fraction of the probe frame

    A disc about the frame's middle, applied after each update of the probe; None: no support."""

    probe_fourier_support: float | None = parameter(None, lower=0.0)
    """Valid probe area in frequency space as fraction of the probe frame

    A disc about zero frequency, applied before `probe_support`; None: no support."""

    record_local_error: bool = parameter(False)
    """If True, save the local map of errors into the runtime dictionary: the last iteration's errors of every frame."""

    average_last: int = parameter(0, lower=0, ours=True)
    """The result is the mean of probe and object over this many last iterations; 0: the last iterate."""


class ProjectionParameters(EngineParameters):
    """Engines that project exit waves between the data and the overlap constraint."""

    probe_update_start: int = parameter(2, lower=0)
    """Number of iterations before probe update starts"""

    subpix_start: int = parameter(0, lower=0)
    """Number of iterations before starting subpixel interpolation"""

    subpix: Literal["linear", "fourier"] | None = parameter("linear")
    """Subpixel interpolation

    The part of a position that is smaller than an object pixel shifts the probe: by bilinear weights ('linear') or a phase ramp
    ('fourier'); None: positions are rounded. The updates use the exact adjoint of the shift. (ptypy declares this parameter and
    rounds.)"""

    update_object_first: bool = parameter(True)
    """If True update object before probe"""

    overlap_converge_factor: float = parameter(0.05, lower=0.0)
    """Threshold for interruption of the inner overlap loop

    The loop over object and probe updates ends when the probe's relative change is smaller."""

    overlap_max_iterations: int = parameter(10, lower=1)
    """Maximum of iterations for the overlap constraint inner loop"""

    probe_inertia: float = parameter(1e-9, lower=0.0)
    """Weight of the current probe estimate in the update"""

    object_inertia: float = parameter(1e-4, lower=0.0)
    """Weight of the current object in the update"""

    fourier_power_bound: float | None = parameter(None)
    """If rms error of model vs diffraction data is smaller than this value, Fourier constraint is met

    In photons per pixel; 1/4 is what Poisson statistics give. None: from `fourier_relax_factor`."""

    fourier_relax_factor: float = parameter(0.05, lower=0.0)
    """If rms error of model vs diffraction data is smaller than this fraction, Fourier constraint is met

    The bound is this factor squared times a quarter of the brightest frame's photons per pixel. Set the value higher for noisy
    data."""

    obj_smooth_std: float | None = parameter(None, lower=0.0)
    """Gaussian smoothing (pixel) of the current object prior to update: a standard deviation; None: no smoothing."""

    clip_object: tuple[float, float] | None = parameter(None)
    """Clip object amplitude into this interval, (lower, upper); None: no clipping."""

    probe_center_tol: float | None = parameter(None, lower=0.0)
    """Pixel radius around optical axes that the probe mass center must reside in

    Outside of it probe, object and exit waves are shifted together. None: no centering."""

    compute_log_likelihood: bool = parameter(True)
    """A switch for computing the log-likelihood error (this can impact the performance of the engine)

    It also gives the data misfit of probe × object, at the price of one more transform per frame."""


class StochasticParameters(EngineParameters):
    """Engines that visit frames one after another, in random order, and update object and probe at every frame."""

    batch: int = parameter(1, lower=1, steerable=True, ours=True)
    """Frames that are updated together

    1 is the algorithm itself: each frame sees what the one before it has changed. More of them are a parallel variant of it,
    for many cores or a GPU: the frames of a batch all start from the same probe and object, and then their updates are summed
    and divided by the sum of their norms, pixel by pixel. Where the frames of a batch do not overlap, the object is updated as
    with 1. The result depends on the number, and many frames in a batch converge more slowly per iteration."""

    probe_update_start: int = parameter(0, lower=0)
    """Number of iterations before probe update starts"""

    subpix_start: int = parameter(0, lower=0, ours=True)
    """Number of iterations before starting subpixel interpolation"""

    subpix: Literal["linear", "fourier"] | None = parameter("linear", ours=True)
    """Subpixel interpolation

    The part of a position that is smaller than an object pixel shifts the probe: by bilinear weights ('linear') or a phase ramp
    ('fourier', four more transforms per frame and mode); None: positions are rounded. The updates use the exact adjoint of the
    shift."""

    probe_center_tol: float | None = parameter(None, lower=0.0)
    """Pixel radius around optical axes that the probe mass center must reside in

    Looked at after each iteration; outside of it probe and object are shifted together. None: no centering."""

    compute_log_likelihood: bool = parameter(True)
    """A switch for computing the log-likelihood error (this can impact the performance of the engine)

    It also gives the data misfit of probe × object as each frame finds them when it is visited."""
