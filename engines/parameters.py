"""Parameters that several engines share; each engine's own stand in its file."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from ptystream.params.base import Branch, parameter

FROM_COMPLETE = "after_last_frame"
"""Key of a number of iterations that is counted from the last frame on."""


MOST_ITERATIONS = 1_000_000
"""That may be asked for while a session runs: more would keep the next runs waiting for good."""
MOST_CONTIGUOUS = 100
"""Without interruption, likewise: nothing is answered meanwhile, also not what would put it right."""
MOST_STEP = 10.0
"""A step or relaxation, likewise: with a larger one no number is left of the picture."""


class EngineParameters(Branch):
    """Every engine."""

    numiter: int = parameter(20, lower=1, steerable=True, most=MOST_ITERATIONS)
    """Total number of iterations

    Guaranteed after the last frame has arrived; iterations during the acquisition come on top."""

    numiter_contiguous: int = parameter(1, lower=1, steerable=True, most=MOST_CONTIGUOUS)
    """Number of iterations without interruption

    The engine looks at new data, requests and saving only between such groups of iterations."""

    probe_support: float | None = parameter(0.7, lower=0.0)
    """Valid probe area as fraction of the probe frame

    A disc about the frame's middle, outside of which the probe is 0 from its first update on; None: no support."""

    probe_fourier_support: float | None = parameter(None, lower=0.0)
    """Valid probe area in frequency space as fraction of the probe frame

    A disc about zero frequency, applied before `probe_support`; None: no support."""

    record_local_error: bool = parameter(False)
    """If True, save the local map of errors into the runtime dictionary: the last iteration's errors of every frame."""

    average_last: int = parameter(0, lower=0, ours=True)
    """The result is the mean of probe and object over this many last iterations; 0: the last iterate."""


class PositionRefinementParameters(Branch):
    """If True refine scan positions

    True: from the first iteration to the last, with the defaults below. A branch refines when anything stands in it (ptypy: only
    when `start` or `stop` does); left out, empty, False, or with `start`, `stop` and all else as by default, it does not."""

    also: ClassVar[tuple[str, ...]] = ("bool",)
    """What may be written instead of the branch."""

    method: Literal["Annealing", "GridSearch"] = parameter("Annealing")
    """Annealing or GridSearch

    Annealing tries `nshifts` random places per frame, GridSearch every point of a lattice within `amplitude`. Where `subpix` is
    on, places are fractions of a pixel, on a lattice of half a pixel or finer; elsewhere whole pixels. (A lattice that would
    have more than 800 points is made wider.) A frame moves only to where its error is smaller."""

    start: int | dict[str, int] | None = parameter(None)
    """Number of iterations until position refinement starts

    Counted from the engine's start; {after_last_frame: n} counts from the last frame on. None: at the first iteration."""

    stop: int | dict[str, int] | None = parameter(None)
    """Number of iterations after which positon refinement stops

    Counted from the engine's start; {after_last_frame: n} counts from the last frame on. None: after the last iteration, however
    long frames arrive."""

    interval: int = parameter(1)
    """Frequency of position refinement: it runs every so many iterations, from `start` on."""

    nshifts: int = parameter(4)
    """Number of random shifts calculated in each position refinement step (has to be multiple of 4)

    One in each quadrant, in turn. GridSearch does not use it."""

    amplitude: float = parameter(1e-6)
    """Distance from original position per random shift [m]

    Trials lie within this distance from where the frame is at that moment. In object pixels where there is no pixel size."""

    amplitude_decay: bool = parameter(True)
    """After each interation, multiply amplitude by factor (stop - iteration) / (stop - start)

    Without a numeric `stop`: the whole amplitude until the last frame has come, and then down to zero at `stop` or at the last
    of the `numiter` iterations."""

    max_shift: float = parameter(2e-6)
    """Maximum distance from original position [m]

    The measured one: it bounds all steps together (ptypy's bounds each step). A position that the source corrects is a new
    measured one. In object pixels where there is no pixel size. The object is padded by so much."""

    metric: Literal["fourier", "photon"] = parameter("fourier")
    """Error metric, can choose between "fourier" and "photon"

    'fourier': mean (|F| - sqrt I)² over valid pixels; 'photon': mean (|F|² - I)²/(I + 1)."""

    record: bool = parameter(False)
    """record movement of positions

    The refined coordinates are saved under `content/positions` of the result."""

    @model_validator(mode="before")
    @classmethod
    def _switch(cls, given: Any) -> Any:
        return ({"start": 0} if given else {}) if isinstance(given, bool) else given

    @field_validator("start", "stop")
    @classmethod
    def _counted(cls, value: int | dict[str, int] | None) -> int | dict[str, int] | None:
        if isinstance(value, dict) and (list(value) != [FROM_COMPLETE] or value[FROM_COMPLETE] < 0):
            raise ValueError(f"write a number of iterations, or {{{FROM_COMPLETE}: n}} with n >= 0")
        return value

    @field_validator("nshifts")
    @classmethod
    def _quadrants(cls, value: int) -> int:
        if value < 4 or value % 4:
            raise ValueError("must be 4, 8, 12, …: as many shifts in each quadrant")
        return value

    @field_validator("interval")
    @classmethod
    def _counting(cls, value: int) -> int:
        if value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("amplitude", "max_shift")
    @classmethod
    def _length(cls, value: float) -> float:
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError("must be a length of at least 0")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> PositionRefinementParameters:
        first, last = (v[FROM_COMPLETE] if isinstance(v, dict) else v for v in (self.start, self.stop))
        if last is not None and last <= (first or 0) and isinstance(self.stop, dict) == isinstance(self.start, dict):
            raise ValueError(f"stop ({self.stop}) must be larger than start ({self.start})")
        return self

    @property
    def active(self) -> bool:
        """Whether positions are refined at all."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        listed = {"start", "stop"} <= set(given)  # all defaults, as ptypy writes them where nothing was asked for
        defaults = {name: type(self).model_fields[name].default for name in given}
        return bool(given) and not (listed and given == defaults)

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> Any:
        if not self.active:
            return False
        return True if self == type(self)() else write(self)  # all of it as by default would read as left out


class RefiningParameters(Branch):
    """For the parameters of engines that refine positions."""

    position_refinement: PositionRefinementParameters = PositionRefinementParameters()
    """If True refine scan positions"""


class ProjectionParameters(RefiningParameters, EngineParameters):
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
    """Clip object amplitude into this interval, (lower, upper), 0 <= lower <= upper, upper above 0; None: no clipping."""

    probe_center_tol: float | None = parameter(None, lower=0.0)
    """Pixel radius around optical axes that the probe mass center must reside in

    Outside of it probe, object and exit waves are shifted together. Probes that see one object in common are shifted as one, by
    the centre of all their light. None: no centering."""

    compute_log_likelihood: bool = parameter(True)
    """A switch for computing the log-likelihood error (this can impact the performance of the engine)

    It also gives the data misfit of probe × object, at the price of one more transform per frame."""

    @field_validator("clip_object")
    @classmethod
    def _interval(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not (0 <= value[0] <= value[1] and value[1] > 0):
            raise ValueError("must be (lower, upper) with 0 <= lower <= upper, upper above 0")
        return value


class StochasticParameters(RefiningParameters, EngineParameters):
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
