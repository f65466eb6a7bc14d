"""What a user may set about the frames and positions of a scan, common to all sources."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, field_validator, model_validator

from ptystream.model.electrons import electron_wavelength
from ptystream.model.geometry import KEV_METRES
from ptystream.params.base import Branch, parameter
from ptystream.params.home import inside
from ptystream.scan.modules import ModulesParameters
from ptystream.scan.raster import RasterParameters
from ptystream.scan.saving import SavingParameters
from ptystream.scan.series import SeriesParameters

PICTURES_ONLY = (
    "orientation",
    "rebin",
    "shift",
    "auto_center",
    "dark",
    "dark_frames",
    "flat",
    "count_table",
    "mask",
    "weights",
    "hot_pixels",
    "modules",
    "add_poisson_noise",
)
"""What can be done with a picture, and not with signals of virtual detectors."""
MAX_ARRAY_BYTES = 1 << 30
"""An array that a configuration names and that is larger is refused."""


def load_array(value: Any, name: str = "") -> NDArray[Any] | None:
    """The array that a parameter means: itself, a nested list, 'file.npy', 'file.npz:array' or 'file.h5:/dataset'.

    Raises `ValueError` with `name`, the value and what is wrong; `MAX_ARRAY_BYTES` bounds what is read.
    """
    if value is None:
        return None
    try:
        array = _read_array(value) if isinstance(value, str) else np.asarray(value)
        if array.dtype.kind == "U" and isinstance(value, list):  # complex numbers as they are noted in a result
            array = array.astype(np.complex128)
        if array.dtype.kind not in "biufc":
            raise ValueError(f"it holds {array.dtype}, not numbers")
    except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
        said = f"is no array ({error}): give a nested list of numbers, or a .npy, .npz:array or .h5:/dataset file"
        raise ValueError(f"{name}: {value!r}: {said}" if name else said) from error
    return array


def _read_array(value: str) -> NDArray[Any]:
    file, _, member = value.partition(":")
    suffix, file = Path(file).suffix, str(inside(file))
    if suffix == ".npy":
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        _fits(array.nbytes)
        return np.array(array)
    if suffix == ".npz":
        # Opened here, because numpy leaves a file that is no archive open.
        with open(file, "rb") as raw, np.load(raw, allow_pickle=False) as archive:
            _fits(archive.zip.getinfo(f"{member}.npy").file_size)
            return np.asarray(archive[member])
    if suffix in (".h5", ".hdf5", ".nxs"):
        import h5py

        with h5py.File(file, "r") as h5:
            dataset = h5[member]
            if not isinstance(dataset, h5py.Dataset):
                raise ValueError(f"{member!r} is a group")
            _fits(dataset.size * dataset.dtype.itemsize)
            return np.asarray(dataset[()])
    raise ValueError(f"the ending {suffix!r} is not known")


def _fits(nbytes: int) -> None:
    if nbytes > MAX_ARRAY_BYTES:
        raise ValueError(f"{nbytes} bytes are more than the {MAX_ARRAY_BYTES} allowed")


def not_a_count_table(value: NDArray[Any]) -> str | None:
    """What is wrong with a table of counts, measured and true; None: nothing."""
    if value.ndim != 2 or value.shape[1] != 2 or len(value) < 2 or value.dtype.kind not in "uif":
        return f"has shape {value.shape} and holds {value.dtype}: must be real numbers (n, 2), n at least 2"
    steps = np.diff(value.astype(np.float64), axis=0)
    if not (np.isfinite(value).all() and (value >= 0).all() and (steps[:, 0] > 0).all() and (steps[:, 1] >= 0).all()):
        return "must hold finite numbers, 0 or above, that rise from row to row"
    return None


ArrayParameter = Annotated[np.ndarray | list[Any] | str | None, AfterValidator(load_array)]
"""An array, nested list or file name; a file is read while the configuration is checked, and the value is then the array."""


class PtyScanParameters(SavingParameters):
    """Frames: geometry, cropping, orientation and corrections."""

    name: str = parameter("PtyScan")
    """Source of the frames."""

    label: str | None = parameter(None)
    """The scan label

    Unique string identifying the scan; None: the key of the scan's entry in `scans`. Told with the result; storages, topics
    and metrics are named after the key."""

    experimentID: str | None = parameter(None)  # noqa: N815
    """Name of the experiment

    Proposal, visit, sample or whatever else the result should be found by: it is told with the result."""

    version: float = parameter(0.1)
    """Version of the prepared data's description: told with the result, as ptypy's files have it."""

    load_parallel: Literal["data", "common", "all"] | None = parameter("data")
    """Determines what will be loaded in parallel

    Choose from ``None``, ``'data'``, ``'common'``, ``'all'``. With 'data' and 'all' frames are decoded and prepared by several
    threads, with None and 'common' by the one that receives them. What frames have in common (masks, weights, positions in the
    configuration) is read once, before the first of them, whatever is chosen. Of several ranks the first one reads everything
    and hands the others their frames."""

    add_poisson_noise: bool = parameter(False)
    """Decides whether the scan should have poisson noise or not

    True: the photons of every valid pixel are replaced by a random number from the Poisson distribution with that mean,
    before rebinning; the same for the same `seed` and frame. For data that were computed, or to see what less light would
    have given (with `counts_per_photon`). A source that simulates makes its frames with or without."""

    shape: int | tuple[int, int] | None = parameter(256)
    """Shape of the region of interest cropped from the raw data

    Pixels (y, x) before rebinning; one number stands for both, None for the whole frame. Where the two differ the
    smaller is taken for both."""

    center: Literal["fftshift", "geometric", "fft"] | tuple[float, float] | None = parameter("fftshift", steerable=True)
    """Center (pixel) of the optical axes in raw data

    (y, x) in raw pixels, 'fftshift' (frame size // 2), 'geometric' (frame size / 2 - 0.5) or 'fft' (zero frequency
    at pixel [0, 0], the frame wraps round). None: see `auto_center`. Used to the nearest whole pixel. May be set while a
    session runs: frames are then cut again from the recording."""

    auto_center: bool | None = parameter(None)
    """Determine if center in data is calculated automatically

    The center is then the median over the run's first frames of each frame's center of mass of valid pixels.

    - ``False``, no automatic centering
    - ``None``, only if `center` is ``None``
    - ``True``, it will be enforced"""

    orientation: int | tuple[bool, bool, bool] | None = parameter(None, steerable=True)
    """Data frame orientation

    - ``None`` or ``0``: correct orientation
    - ``1``: invert columns (numpy.fliplr)
    - ``2``: invert rows (numpy.flipud)
    - ``3``: invert columns, invert rows
    - ``4``: transpose (numpy.transpose)
    - ``4+i``: transpose + other operations from above

    Alternatively, three booleans (do_transpose, do_flipud, do_fliplr). The transpose comes first. May be set while a session
    runs: frames are then cut again from the recording, and the reconstruction begins anew."""

    rebin: int | None = parameter(None, lower=1, upper=32)
    """Rebinning factor

    Rebinning factor for the raw data frames. ``None`` or ``1`` both mean *no binning*. Must divide `shape`."""

    rebin_mode: Literal["sum", "mean"] = parameter("sum", ours=True)
    """'sum' keeps the number of photons; 'mean' is what ptypy does."""

    min_frames: int = parameter(1, lower=1)
    """Minimum number of frames loaded by each node

    Fewer are handed out only at the end of the scan."""

    num_frames: int | None = parameter(None)
    """Maximum number of frames to be prepared

    Frames with a larger index are counted and left out, and the scan ends when all have come. If `positions_theory`
    are provided, num_frames will be overridden with the number of positions available."""

    positions_theory: ArrayParameter = parameter(None)
    """Theoretical positions for this scan

    Shape (frame, 2), (y, x) in metres (object pixels where the positions' `unit` is 'px'): an array, a nested list,
    or a file 'name.npy', 'name.npz:array' or 'name.h5:/dataset'. If provided, measured positions are ignored."""

    raster: RasterParameters | None = parameter(None, ours=True)
    """Where the beam was, for a scan that tells no positions: a raster of points, row by row; None: not given. If provided,
    measured positions are ignored."""

    selection: list[int] | None = parameter(None, ours=True)
    """Numbers of the frames that are used; all others are excluded as 'not_selected'. None: all are used."""

    offset: tuple[float, float] = parameter((0.0, 0.0), steerable=True, ours=True)
    """Where the positions' zero lies on the sample, (y, x) in metres (object pixels where the positions' `unit` is 'px'): added
    to every position of this scan, measured or theoretical. For a mosaic: scans that share an object, each with positions
    from its own zero. May be set while a session runs: the positions that are known move with it."""

    series: SeriesParameters = SeriesParameters()
    """Which series the scan belongs to, and its angle."""

    follows: str | None = parameter(None, ours=True)
    """Label of the scan after which this one comes from the same sources: its frames and samples are those of the next
    acquisition that they send. Nothing of its own is opened; `name` is that scan's, and `positions` and `also` are too where
    they are not given."""

    psize: float | tuple[float, float] | None = Field(
        0.000172, json_schema_extra={"steerable": False, "ours": False, "lower": 0.0}
    )
    """Detector pixel size

    Dimensions of the detector pixels (in meters), (y, x) or one number for both; None where it is not known."""

    distance: float | None = parameter(7.19, lower=0.0)
    """Sample to detector distance

    In meters; None where it is not known."""

    energy: float | None = parameter(7.2, lower=0.0)
    """Photon energy of the incident radiation in keV; None where it is not known."""

    acc_voltage: float | None = parameter(None, lower=1e-3, upper=1e5, ours=True)
    """Acceleration voltage of electrons, kV, in the place of `energy`; None: the beam is light."""

    signals: int | None = parameter(None, lower=1, upper=1 << 15, ours=True)
    """A frame is a row of so many signals that virtual detectors have summed up, (1, n), and no picture: it is taken as it is,
    negative numbers too. `shape` is then that of the patterns, and of the virtual detectors' masks. None: a frame is a pattern.
    Taken by PyPty alone."""

    shift: tuple[int, int] = parameter((0, 0), ours=True)
    """Pixels (y, x) by which frames are moved, as they lie after `orientation` and before `rebin`; what moves in from beyond the
    edge was not measured, and is masked."""

    saturation: float | None = parameter(None, lower=1.0, ours=True)
    """Counts from which on a pixel is invalid in that frame; None: only the largest value of the data's integer
    type."""

    no_data: tuple[int, ...] = parameter((), ours=True)
    """Further counts that mean 'no data in this pixel of this frame', such as -1 and -2 of some pixel detectors."""

    dark: ArrayParameter = parameter(None, ours=True)
    """Counts without beam, subtracted; shape of the raw frame. An array, nested list or file (as
    `positions_theory`)."""

    dark_frames: int = parameter(0, lower=0, upper=1000, ours=True)
    """So many frames at the start of the scan, by number, are exposed without beam: their mean is the dark, and they are
    excluded as 'dark_frame'. The first 64 of the others wait for them, no more: what is lost is not waited for. For
    `positions`, `first_frame` says which frame has the first sample."""

    flat: ArrayParameter = parameter(None, ours=True)
    """Response to uniform light, divided by as it is; shape of the raw frame. Pixels not above 0 are masked."""

    count_table: ArrayParameter = parameter(None, ours=True)
    """Counts of a pixel in one frame as they are measured and as they ought to be, for a detector that misses some at high rates;
    shape (n, 2), both columns rising, straight lines between the rows. What lies beyond the last row is invalid. It comes
    before dark and flat."""

    counts_per_photon: float = parameter(1.0, ours=True)
    """Counts of one photon; counts are divided by it."""

    mask: ArrayParameter = parameter(None, steerable=True, ours=True)
    """Pixels to use (not 0) and to ignore (0) in every frame; shape of the raw frame, or of any other size: then it is
    laid over the crop by its own middle. May be set while a session runs: frames are then cut again from the recording."""

    modules: ModulesParameters = ModulesParameters()
    """How the raw frame is put together of equal modules; gaps and split pixels are masked."""

    weights: ArrayParameter = parameter(None, ours=True)
    """Statistical weight of every pixel, 0 or above, for engines that weigh the deviations of pixels; shape as of `mask`. None:
    all alike. Cropped, turned and binned (mean over a bin) as the frames are; pixels of weight 0 are masked."""

    hot_pixels: float | None = parameter(None, lower=1.0, ours=True)
    """Mask pixels whose median over the first 32 frames is more than this factor times that of the brightest of
    their eight neighbours (plus one count); None: no search; 10 is sound. The nine pixels around zero frequency are
    never taken."""

    @model_validator(mode="before")
    @classmethod
    def _electrons(cls, given: Any) -> Any:
        """Electrons have no photon energy: not its default either."""
        if isinstance(given, dict) and given.get("acc_voltage") is not None and given.get("energy") is None:
            return {**given, "energy": None}
        return given

    @field_validator("positions_theory")
    @classmethod
    def _positions_theory(cls, value: NDArray[Any] | None) -> NDArray[Any] | None:
        if value is not None and (value.ndim != 2 or value.shape[1] != 2):
            raise ValueError(f"has shape {value.shape}: must be (frame, 2), (y, x)")
        if value is not None and not (value.dtype.kind != "c" and np.isfinite(value).all()):
            raise ValueError("must be real, finite numbers: leave out frames without a position")
        return value

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: NDArray[Any] | None) -> NDArray[Any] | None:
        if value is not None and not (value.dtype.kind != "c" and np.isfinite(value).all() and (value >= 0).all()):
            raise ValueError("must be real numbers, 0 or above")
        return value

    @field_validator("dark", "flat", "mask", "weights")
    @classmethod
    def _image(cls, value: NDArray[Any] | None) -> NDArray[Any] | None:
        if value is not None and (value.ndim != 2 or value.dtype.kind == "c"):
            raise ValueError(f"has shape {value.shape} and holds {value.dtype}: must be real numbers (y, x)")
        return value

    @field_validator("count_table")
    @classmethod
    def _count_table(cls, value: NDArray[Any] | None) -> NDArray[Any] | None:
        if value is not None and (wrong := not_a_count_table(value)) is not None:
            raise ValueError(wrong)
        return value

    @field_validator("psize")
    @classmethod
    def _psize(cls, value: float | tuple[float, float] | None) -> float | tuple[float, float] | None:
        if value is not None and not all(math.isfinite(v) and v > 0 for v in np.atleast_1d(value)):
            raise ValueError("must be above 0 (metres)")
        return value

    @field_validator("counts_per_photon")
    @classmethod
    def _counts_per_photon(cls, value: float) -> float:
        if not (math.isfinite(value) and value > 0):
            raise ValueError("must be above 0")
        return value

    @field_validator("orientation")
    @classmethod
    def _orientation(cls, value: int | tuple[bool, bool, bool] | None) -> int | tuple[bool, bool, bool] | None:
        if isinstance(value, int) and not 0 <= value <= 7:
            raise ValueError("must be 0 to 7, or three booleans (transpose, flipud, fliplr)")
        return value

    @model_validator(mode="after")
    def _sides(self) -> Self:
        sides = () if self.shape is None else (self.shape,) if isinstance(self.shape, int) else self.shape
        if any(side < 1 for side in sides):
            raise ValueError(f"shape: {self.shape!r}: must be 1 or more")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames: {self.num_frames}: must be 1 or more, or None")
        if self.dark_frames and self.dark is not None:
            raise ValueError(f"dark_frames: {self.dark_frames}: `dark` is given already; leave one of them out")
        if self.acc_voltage is not None and self.energy is not None:
            raise ValueError(f"acc_voltage: {self.acc_voltage}: `energy` is given too ({self.energy}): leave one of them out")
        if self.raster is not None and self.positions_theory is not None:
            raise ValueError(f"raster: {self.raster.points}: `positions_theory` is given too: leave one of them out")
        if self.signals is not None and (wrong := [name for name in PICTURES_ONLY if self._differs(name)]):
            raise ValueError(f"signals: {self.signals}: frames are no pictures: leave out {', '.join(wrong)}")
        if self.signals is not None and self.shape is None:
            raise ValueError("shape: must be that of the patterns, and of the masks, from which the `signals` were summed up")
        if self.selection is not None and (not self.selection or min(self.selection) < 0):
            raise ValueError("selection: must be numbers of frames, 0 or more, at least one")
        if sides and self.rebin and min(sides) % self.rebin:
            raise ValueError(
                f"rebin: {self.rebin} does not divide shape {min(sides)}; shape {min(sides) - min(sides) % self.rebin} would"
            )
        return self

    def _differs(self, name: str) -> bool:
        value, default = getattr(self, name), type(self).model_fields[name].default
        return bool(value is not None and (isinstance(value, np.ndarray) or value != default))

    @property
    def frames_in_parallel(self) -> bool:
        """Whether several threads prepare frames."""
        return self.load_parallel in ("data", "all")

    def noise_on_arrival(self) -> bool:
        """Whether Poisson noise is added to frames when they are prepared."""
        return self.add_poisson_noise

    def off_frame(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with `center` for raw frames of `shape`; None where it lies in them, or is found from the data."""
        if not isinstance(self.center, tuple) or self.auto_center or len(shape) != 2:
            return None
        if all(-0.5 <= c < n - 0.5 for c, n in zip(self.center, shape, strict=True)):
            return None
        return f"lies outside the frames of {tuple(shape)} pixels; give (y, x) in raw pixels, 'fftshift' or None"

    def operations(self) -> tuple[bool, bool, bool]:
        """`orientation` as (transpose, flipud, fliplr)."""
        code = self.orientation or 0
        if isinstance(code, int):
            return bool(code & 4), bool(code & 2), bool(code & 1)
        return code

    def planned(self) -> NDArray[np.float64] | None:
        """Positions (frame, 2) that the configuration gives; None where they come from elsewhere."""
        if self.raster is not None:
            return self.raster.positions()[1]
        theory = load_array(self.positions_theory, "data.positions_theory")
        return None if theory is None else np.asarray(theory, np.float64)

    def pixel_m(self) -> tuple[float, float] | None:
        """Far-field pixel (y, x) on the sample of the prepared frame, λ z / (N psize); None where something is not
        known."""
        if not (self.psize and self.distance and (self.energy or self.acc_voltage) and self.shape):
            return None
        side = self.shape if isinstance(self.shape, int) else min(self.shape)
        y, x = np.broadcast_to(np.asarray(self.psize, float), 2)
        wavelength = electron_wavelength(self.acc_voltage) if self.acc_voltage else KEV_METRES / (self.energy or 1.0)
        scale = wavelength * self.distance / side
        return float(scale / y), float(scale / x)


class ChannelsParameters(Branch):
    """Which channels of a source mean what."""

    y: str | None = parameter("y", ours=True)
    """Channel of the stage's vertical reading; None: this source has none."""

    x: str | None = parameter("x", ours=True)
    """Channel of the stage's horizontal reading; None: this source has none."""

    z: str | None = parameter(None, ours=True)
    """Channel of the beam position along z, metres, for Bragg3dModel: z is normal to the planes that reflect, x along their
    trace in the plane of incidence, y horizontal across it. None: 0. `matrix` does not touch it."""

    angle: str | None = parameter(None, ours=True)
    """Channel of the rocking angle, degrees, for Bragg3dModel; for other models the angle of a series, see `series`. None: not
    measured by this source."""

    dose: str | None = parameter(None, ours=True)
    """Channel of the beam intensity I0; None: not measured by this source."""

    shutter: str | None = parameter(None, ours=True)
    """Channel that tells whether the shutter was open, 1, or closed, 0; None: not measured by this source."""

    trigger: str | None = parameter(None, ours=True)
    """Channel that holds, for every sample, the number of the frame that was exposed then; for `interpolate` 'trigger'."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.y is None) != (self.x is None):
            raise ValueError(f"y: {self.y!r}, x: {self.x!r}: name both, or neither")
        if self.y is None and (self.z or self.angle):
            raise ValueError(f"z: {self.z!r}, angle: {self.angle!r}: come with y and x in one source; name those too")
        if self.y is None and self.dose is None and self.shutter is None:
            raise ValueError("no channel is named: name y and x, or dose, or shutter")
        return self


class PositionsParameters(Branch):
    """How the samples of slow channels become one position (and dose) per frame."""

    channels: ChannelsParameters = Field(default_factory=ChannelsParameters)
    """Names of the channels."""

    unit: Literal["m", "px"] = parameter("m", ours=True)
    """'m': readings are metres. 'px': object pixels, for data whose geometry is not known."""

    matrix: tuple[tuple[float, float], tuple[float, float]] = parameter(((1.0, 0.0), (0.0, 1.0)), ours=True)
    """Beam position on the sample (y, x) = matrix · stage reading (y, x): swap, sign, scale, shear and rotation in one.
    Where the reading is that of a stage which moves the sample, the beam goes the other way: [[-1, 0], [0, -1]]."""

    interpolate: Literal["index", "time", "trigger"] = parameter("index", ours=True)
    """'index': sample k belongs to frame first_frame + (k - first_sample) // samples_per_frame, and a frame gets the mean of
    its samples. 'time': linear interpolation between the two samples around the frame's time stamp; both sources must
    send time stamps. 'trigger': a sample belongs to the frame whose number stands in `channels.trigger`."""

    samples_per_frame: int = parameter(1, lower=1, upper=100000, ours=True)
    """Samples of one frame, for 'index' and 'trigger'."""

    frames_per_sample: int = parameter(1, lower=1, upper=100000, ours=True)
    """Frames of one sample, for 'index': a scan that exposes several times at each position."""

    first_sample: int = parameter(0, ours=True)
    """Number of the first sample of the first frame, for 'index'."""

    first_frame: int = parameter(0, ours=True)
    """Number of the first frame, for 'index': 1 for a detector that counts from 1. For 'trigger' it is added to the
    triggers."""

    time_offset_s: float = parameter(0.0, ours=True)
    """Added to a frame's time stamp to get the samples' clock (half the exposure, difference of the clocks), for
    'time'."""

    spread_limit: float | None = parameter(None, lower=0.0, ours=True)
    """Frames with a sample further than this from the mean position (in `unit`, either axis) are excluded as
    'settling'; None: no limit. For 'time' the two samples around the frame count."""

    position_limit: float | None = parameter(None, lower=0.0, ours=True)
    """Positions further than this (in `unit`, either axis) from the median of all are refused. None: further than 20
    times the median distance and four frame widths, or more than would fit on a canvas of 1 GiB."""

    dose_limit: float | None = parameter(None, lower=0.0, ours=True)
    """Frames whose dose is below this (in the channel's unit) are excluded as 'beam_off'; None: no limit."""

    shutter_limit: float = parameter(0.5, ours=True)
    """Frames whose mean reading of the shutter is below this are excluded as 'shutter_closed'."""

    wait_s: float | None = parameter(None, lower=0.0, ours=True)
    """How long to wait for samples after the last frame, seconds; None: until this source ends."""

    interpolate_after_s: float | None = parameter(None, lower=0.0, ours=True)
    """How long a frame waits for its own samples, seconds from its arrival, before it is used with a reading between those of
    the nearest frames before and after it; it is marked, and put right in place when its samples come. None: frames without
    samples of their own are left out, and come in when the samples do."""

    interpolate_over: int = parameter(8, lower=1, upper=1000, ours=True)
    """Longest row of frames without samples that is interpolated over; longer ones are left out."""

    @model_validator(mode="after")
    def _ratios(self) -> Self:
        if self.samples_per_frame > 1 and self.frames_per_sample > 1:
            raise ValueError(f"frames_per_sample: {self.frames_per_sample}: leave it or samples_per_frame at 1")
        if self.frames_per_sample > 1 and self.interpolate != "index":
            raise ValueError(f"frames_per_sample: {self.frames_per_sample}: is for interpolate 'index'")
        if self.first_frame and self.interpolate == "time":
            raise ValueError(f"first_frame: {self.first_frame}: frames are found by their time stamps; use time_offset_s")
        if (self.interpolate == "trigger") != (self.channels.trigger is not None):
            raise ValueError(f"channels.trigger: {self.channels.trigger!r}: name it with interpolate 'trigger', and only then")
        return self

    @field_validator("matrix")
    @classmethod
    def _regular(cls, value: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        determinant = float(np.linalg.det(np.asarray(value, float)))
        if not math.isfinite(determinant) or determinant == 0.0:
            raise ValueError("must have a determinant other than 0: both axes of the sample have to be reached")
        return value
