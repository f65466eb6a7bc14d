"""Where the measurements come from, and what becomes of them before they are compared.

`data_path`, `dataset`, `positions` and the like describe a scan: they are turned into an entry of `scans`, or refused where
there is one that says the same.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import field_validator

from ptystream.params.base import Branch, parameter
from ptystream.params.course import Course, course
from ptystream.params.patterns import kept_below

from .arrays import ArrayParameter, DatasetInMemory


class DatasetParameters(Branch):
    """Measurements."""

    data_path: str = parameter("")
    """Path to the dataset: an .h5 file with a dataset named "data" of shape (measurement, y, x), or a 3D or 4D .npy array

    A 4D array (scan y, scan x, y, x) is read row by row."""

    dataset: DatasetInMemory = parameter(None)
    """The measurements themselves, in place of a path

    Shape (measurement, y, x) or (scan y, scan x, y, x); compressed by `masks`: (measurement, mask) or (scan y, scan x, mask)."""

    masks: ArrayParameter = parameter(None)
    """Masks (virtual detectors) by which data are compressed; None: they are not

    Shape (mask, y, x) of the patterns as they are padded; real."""

    data_multiplier: float = parameter(1.0, lower=1e-300)
    """Multiplier for data values, above 0

    All patterns, and compressed signals too, are multiplied by this number on the fly."""

    data_pad: int = parameter(0, lower=0)
    """Padding of patterns, pixels of the model on each side: the model is wider than the detector

    A quarter of the pattern's width gives the best sampling in the far field. What the detector did not see is not compared
    (PyPty takes it as measured zeros, which `pad_zeros` does)."""

    data_bin: int = parameter(1, lower=1)
    """Binning factor for data: patterns are summed over blocks of so many pixels squared."""

    flip_ky: bool = parameter(False)
    """Whether ky is flipped, however the data are given."""

    data_shift_vector: list[int] = parameter([0, 0])
    """Shift (y, x) of the patterns, pixels, before they are binned: what moves in from beyond the edge was not measured."""

    upsample_pattern: int = parameter(1, lower=1)
    """Upsampling factor of the model in reciprocal space: a probe may be so many times wider than patterns can show

    The model's intensities are summed over blocks of so many pixels squared. A window on the probe may be needed."""

    sequence: Course = course(None, kind="any")
    """Measurements that are compared: a list of their numbers, or one for each epoch; None: all of them."""

    use_full_FOV: bool = parameter(True)  # noqa: N815  (the page's name)
    """Whether the object has room for all measurements, also where `sequence` leaves some out."""

    @field_validator("data_shift_vector")
    @classmethod
    def _two(cls, value: list[int]) -> list[int]:
        if len(value) != 2:
            raise ValueError("must be two whole numbers, (y, x)")
        return value


class SavingParameters(Branch):
    """Files and what is printed."""

    output_folder: str = parameter("")
    """Folder for output files; empty: none are written

    Below `io.home`; an absolute path stays, a relative one that leads out of it is refused."""

    save_loss_log: bool | int = parameter(True)
    """Whether loss.csv is written; 2: with a column for each term of the loss."""

    epoch_prev: int = parameter(0, lower=0)
    """Number of the first epoch: where an earlier reconstruction ended."""

    save_checkpoints_every_epoch: bool | int = parameter(False)
    """Numbered checkpoint files: True after every epoch, n after every n-th one."""

    save_inter_checkpoints: bool | int = parameter(True)
    """Checkpoint files that are overwritten (co.npy, cp.npy, cg.npy, ct.npy, cs.npy, cb.npy, ca.npy): True after every epoch, n
    after every n-th one

    Of what is refined; at the end all of them."""

    print_flag: Literal[0, 1, 2, 3, 4] = parameter(3)
    """How much the log says: 0 nothing, 1 the progress line, 2 a line for each epoch, 3 the line search too, 4 the share of each
    term in the loss."""

    strip_dataset_from_params: bool = parameter(True)
    """Whether `dataset` is left out of the parameters that are saved."""

    data_simulation_flag: bool = parameter(False)
    """Simulate: no measurement is compared, the patterns of the starting point are the result

    They are written to `output_folder` as simulated.h5, dataset "data"."""

    @field_validator("output_folder")
    @classmethod
    def _inside(cls, value: str) -> str:
        return kept_below(value)


class MemoryParameters(Branch):
    """What is kept where."""

    load_one_by_one: bool = parameter(True)
    """True: each batch of patterns is brought to the device when its turn comes; False: all of them at once, before the first
    epoch, where they fit."""

    smart_memory: Course = course(True, kind="switch")
    """Whether whole arrays are worked on slice by slice and cached blocks of the device are given back after each epoch. Changes
    memory and time, not the numbers."""

    remove_fft_cache: bool = parameter(False)
    """Whether the plans of transforms are forgotten after each epoch."""

    compute_batch: int | Literal["auto"] = parameter("auto")
    """Measurements that are worked on together; 'auto': as many as fit a core's cache on a CPU, and `memory_saturation` of the
    free memory on a GPU. Changes the time, not the sums but for rounding."""

    force_dataset_dtype: str | None = parameter(None)
    """Type in which patterns are kept, such as 'float32' or 'uint16'; None: as they came. Casting to a smaller one may lose
    precision."""

    preload_to_cpu: bool = parameter(False)
    """Whether patterns that lie in a file are read into memory before the first epoch."""

    force_pad: bool = parameter(False)
    """True: patterns are padded once and kept so, which takes memory and saves time; False: whenever they are compared."""

    memory_saturation: float = parameter(0.7, lower=0.01, upper=1.0)
    """Share of the free memory that `compute_batch` 'auto' may fill."""

    backend: Literal["gpu", "cpu"] = parameter("gpu")
    """Where the optimiser keeps its history: on the device on which gradients are computed, or in the host's memory

    Gradients are computed where `device` says."""

    default_dtype: Literal["double", "single"] = parameter("double")
    """Precision of the computation."""

    @field_validator("compute_batch")
    @classmethod
    def _some(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be 'auto' or a number of measurements, 1 or more")
        return value

    @field_validator("force_dataset_dtype", mode="before")
    @classmethod
    def _type(cls, value: Any) -> str | None:
        if value is None:
            return None
        try:
            kind = np.dtype(value)
        except TypeError as error:
            raise ValueError(f"is no type: {error}") from None
        if kind.kind not in "uif":
            raise ValueError("must be a type of whole or real numbers, such as 'float32' or 'uint16'")
        return str(kind.name)
