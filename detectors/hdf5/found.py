"""Whether a file has what is to be read of it: for `ptystream check`."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptystream.storage.h5 import H5Error
from ptystream.storage.opened import Opened

from .follow import Wanted, mask_of
from .paths import Place
from .reading import FrameDataset, NumberDataset, marks, number

FAILURES = (OSError, H5Error, ValueError, KeyError, RuntimeError)
"""h5py tells damaged structures by several classes."""


def look(p: Any, wanted: Wanted) -> Iterator[str]:
    """A line for the file and one for every place in it. Raises `OSError` with all that is wrong, and what to do."""
    file = Path(p.file).absolute()
    if glob.has_magic(p.file):
        count, then = len(glob.glob(str(file))), "they are read, then" if p.existing else "the next scan is"
        yield f"file: {p.file}: {count} match now; {then} each that appears"
        return
    if not file.exists():
        if not file.parent.is_dir():
            raise OSError(f"file: {p.file}: there is no folder {file.parent}; make it, or correct the path")
        yield f"file: {p.file}: is not there yet; will be read when it appears"
        return
    wrong: list[str] = []
    try:
        with Opened(file, wanted.folders, p.idle_s) as opened:
            lines = list(_places(opened, p, wanted, wrong))
            state = "closed" if opened.closed(every=True) and not opened.missing else "may still grow"
            yield f"file: {p.file}: can be read, {state}"
            yield from lines
            yield from (f"{path}: a source of a virtual dataset is not there yet" for path in sorted(opened.missing))
    except FAILURES as error:
        wrong.append(f"file: {p.file}: {error}; is it an HDF5 file, and still being made?")
    if wrong:
        raise OSError("; ".join(wrong))


def _places(file: Opened, p: Any, wanted: Wanted, wrong: list[str]) -> Iterator[str]:
    def tried(name: str, told: str, of: Any) -> Iterator[str]:
        try:
            yield f"{name}: {told}: {of()}"
        except FAILURES as error:
            wrong.append(f"{name}: {error}; correct `{name.partition('.')[0]}`")

    if wanted.frames is not None:
        yield from tried("frames", wanted.frames, lambda: _frames(FrameDataset(file, wanted.frames or "", wanted.vectors)))
    for name, place in wanted.samples.items():
        yield from tried(f"samples.{name}", p.samples[name], lambda place=place: _numbers(NumberDataset(file, place)))
    if wanted.times is not None:
        yield from tried("times", p.times, lambda: _numbers(NumberDataset(file, wanted.times)))
    for quantity, places in wanted.known.items():
        told = getattr(p, f"{quantity}_from")
        yield from tried(f"{quantity}_from", str(told), lambda places=places: ", ".join(_number(file, place) for place in places))
    if wanted.mask is not None:
        yield from tried("mask_from", p.mask_from, lambda: _mask(file, wanted))
    if wanted.expected is not None:
        yield from tried("expected", p.expected, lambda: _number(file, wanted.expected))
    if wanted.finished is not None:
        yield from tried("finished", p.finished, lambda: "set" if marks(file, wanted.finished) else "not set yet")


def _frames(data: FrameDataset) -> str:
    there = data.written(0, False)
    stored = f"handed on as {data.codec}" if data.codec != "raw" else "read as pixels"
    return f"{'×'.join(map(str, data.dataset.shape))} of {data.dataset.dtype}, {there} frames now, {stored}"


def _numbers(data: NumberDataset) -> str:
    return f"room for {data.total} numbers, {data.written(0, False)} now"


def _number(file: Opened, place: Place) -> str:
    value = number(file, place)
    return "nothing yet" if value is None else f"{value:.6g}"


def _mask(file: Opened, wanted: Wanted) -> str:
    mask = mask_of(file, wanted)
    assert mask is not None
    return f"{mask.shape[0]}×{mask.shape[1]}, {int((~mask).sum())} pixels are left out"
