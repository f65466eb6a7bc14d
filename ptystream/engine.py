"""The contract of an engine: everything the loop may ask of one, for live and finished data, on CPU and GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ptystream.parallel import ALONE, Ranks
from ptystream.params.base import Branch
from ptystream.reconstruction import Reconstruction
from ptystream.scan.block import FrameStore


@dataclass(frozen=True, slots=True)
class Context:
    """Where and how an engine runs; constant for its life."""

    device: str = "cpu"
    """'cpu' or 'gpu'."""
    threads: int = 1
    """CPU threads of the tile pipeline. Changes the time, never the bits."""
    seed: int = 0
    """Key of every random choice, with purpose, iteration and frame index."""
    precision: str = "single"
    """'single' (complex64, float32) or 'double'."""
    fft: str = "scipy"
    """The seeds' ffttype: 'scipy', 'numpy', 'fftw'."""
    mean_photons: float | None = None
    """Decided once per run: photons of a mean frame over valid pixels, divided by the pixels of a frame."""
    brightest_photons: float | None = None
    """Decided once per run: photons of the brightest of the first frames; sets the automatic power bound."""
    ranks: Ranks = ALONE
    """Who works on it. Each has the frames of its own rows (`spread.mine`) in `frames`, and everything else like all."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What some iterations did."""

    iteration: int
    """Iterations of this engine so far."""
    errors: NDArray[np.float64]
    """[fourier, photon, exit] as ptypy reports them, mean over the frames visited. Shape (iteration, 3)."""
    misfit: NDArray[np.float64]
    """[amplitude, photon] misfit of probe × object per valid pixel, and the Poisson expectation of the photon misfit.
    Amplitude: mean (|F| - sqrt I)²; photon: mean (|F|² - I)²/(I + 1). NaN where the parameters switch it off.
    Shape (iteration, 3)."""
    frames: int
    """Frames visited in the last iteration."""
    local: NDArray[np.float64] | None = None
    """Errors per frame of the last iteration, rows as in the pod table; only with record_local_error; NaN where a frame was not
    visited. Shape (frame, 3)."""
    intensities: NDArray[np.float64] | None = None
    """Factor on the modelled intensities of each frame, rows as in the pod table; only where the engine fits it. (frame,)."""
    notes: tuple[str, ...] = field(default=())
    """Sentences for the log."""
    warnings: tuple[str, ...] = field(default=())
    """Sentences for the log that the user should act upon."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What the engine adds to `iter_info` of the last iteration, by name."""


def headline(errors: NDArray[np.float64]) -> tuple[str, float]:
    """(name, value) of the error that an engine works on, of a row of `Progress.errors`: engines of maximum likelihood have a
    cost per pixel and no Fourier error."""
    return ("cost", float(errors[1])) if errors[0] == 0 and errors[1] != 0 else ("fourier error", float(errors[0]))


class Engine(Protocol):
    """Improves a reconstruction. All calls come from one thread, between iterations."""

    Parameters: type[Branch]
    spreads: ClassVar[bool]
    """Whether it works on several ranks: it visits its own rows alone, sums over `Context.ranks`, and fills in what a row of the
    pod table has become."""

    def __init__(self, parameters: Any) -> None:
        """Keep the validated parameters; load nothing heavy."""

    def start(
        self,
        reconstruction: Reconstruction,
        frames: Mapping[int, FrameStore],
        context: Context,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the reconstruction over, with all rows of its pod table that have pods; `state` resumes a checkpoint.

        `frames` maps the scan numbers of the pod table to their slabs; a further scan enters it before its first rows
        come. Loads numba or cupy here and compiles.
        """

    def extend(self, rows: NDArray[np.int64]) -> None:
        """Rows were appended to the pod table, and storages may have grown (compare `offset` and `shape`)."""

    def revise(self, rows: NDArray[np.int64], what: str) -> None:
        """Rows of the pod table changed: 'position' (address rewritten), 'dose' (weight rewritten), 'frame' or 'mask' (counts
        or mask changed in place), 'withdrawn' (their part of the sums ends; they are never visited again)."""

    def configure(self, parameters: Any) -> None:
        """New validated parameters, from the next iteration on."""

    def complete(self) -> None:
        """No further frame will come: what is counted from the last frame on (`after_last_frame`) begins. At most once in an
        engine's life; right after `start` where the scans had ended before."""

    def iterate(self, iterations: int, rows: NDArray[np.int64] | None = None) -> Progress:
        """Improve, visiting `rows` (None: all). No I/O, no clock, no random source but the context's seed."""

    def average(self) -> None:
        """From here on keep the mean of probe and object over the iterations done; `finish` leaves that mean."""

    def restart(self) -> None:
        """Take the probes that `start` was given again, and the waves as probe × object; object and frames stay."""

    def snapshot(self, parts: Iterable[str] = ("probe", "object")) -> Reconstruction:
        """A host copy of the named parts ('probe', 'object', 'coverage'), the only way out while running.

        'coverage' gives in `objects` under the same names the illumination Σ|P|² seen by each pixel, layers summed, as
        the last update of the object saw it.
        """

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint needs beyond the reconstruction: plain numbers and arrays."""

    def finish(self) -> None:
        """Write the result into the reconstruction's storages and release everything."""
