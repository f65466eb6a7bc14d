"""Frames and results from one kind of file into another; what a file is, its content tells, what it becomes, its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.params.load import Configuration, check
from ptystream.recording import MAGIC, Recording
from ptystream.scan.block import Block, Signal
from ptystream.scan.ptyscan import PtyScan
from ptystream.scan.saver import chunk_of
from ptystream.session import SessionError
from ptystream.storage import cxi, h5, ptyd, ptyd_reading, ptyr
from ptystream.storage.product import write_product
from ptystream.verify import fed, quiet

ENDINGS = {".ptyd": "ptyd", ".cxi": "cxi", ".nxs": "cxi", ".h5": "cxi"}
PIECE_FRAMES_BYTES = 1 << 26
Tell = Callable[[str, int, int], None]
"""(what is done, how much of it, of how much)."""


class ConvertError(RuntimeError):
    """Nothing is converted; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Prepared frames on their way, whatever file they came from."""

    meta: ptyd_reading.Meta
    pieces: Iterator[ptyd.Chunk]
    count: int
    title: str


def convert(
    given: Path,
    made: Path,
    configuration: Mapping[str, Any] | None = None,
    scan: str | None = None,
    acquisition: str | None = None,
    *,
    force: bool = False,
    tell: Tell = lambda what, done, total: None,
) -> str:
    """Write `made` from `given`; it is whole or not there. Returns what was done, in a line.

    Raises `ConvertError`, `OSError`, `h5.H5Error` or `ConfigurationError` before anything is overwritten.
    """
    target, kind = ENDINGS.get(made.suffix.lower()), kind_of(given)
    if target is None:
        raise ConvertError(f"{made}: must end in {', '.join(ENDINGS)}")
    if made.exists() and not force:
        raise ConvertError(f"{made}: is there already; --force overwrites it")
    if made.exists() and made.samefile(given):
        raise ConvertError(f"{made}: is the file that is to be read")
    if kind == "ptyr":
        if target != "cxi":
            raise ConvertError(f"{given}: is a result, which holds no frames: convert it to .cxi, or its recording to .ptyd")
        return _result(given, made, scan)
    if kind == target:
        raise ConvertError(f"{given}: is a {kind} file already")
    if kind == "recording":
        found = _recorded(given, configuration, scan, acquisition, tell)
    else:
        found = _prepared(given) if kind == "ptyd" else _cxi(given)
    with ptyr.whole(made) as file:
        count = _write_cxi(file, found, tell) if target == "cxi" else _write_ptyd(file, found, tell)
        if not count:
            raise ConvertError(f"{given}: holds no frame that can be used")
    return f"{made}: {count} frames of {found.meta.shape[0]} × {found.meta.shape[1]}"


def kind_of(path: Path) -> str:
    """'recording', 'ptyd', 'cxi' or 'ptyr'. Raises `ConvertError` for anything else."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return "recording"
    with h5.open_file(path) as held:
        for name, kind in (("content", "ptyr"), ("chunks", "ptyd"), ("entry_1", "cxi")):
            if h5.has(held, name):
                return kind
    raise ConvertError(f"{path}: no recording, and neither /content (.ptyr), /chunks (.ptyd) nor /entry_1 (CXI) is in it")


# ---------------------------------------------------------------------- reading


def _recorded(
    given: Path, configuration: Mapping[str, Any] | None, label: str | None, acquisition: str | None, tell: Tell
) -> Frames:
    recording = Recording(given)
    tree = configuration or _configuration_in(recording)
    checked: Configuration = check(quiet(tree), given.stem)
    labels = [scan.label for scan in checked.scans]
    if label is None and len(labels) > 1:
        raise ConvertError(f"{given}: has the scans {', '.join(labels)}: say which with --scan")
    label = label or labels[0]
    if label not in labels:
        raise ConvertError(f"--scan {label}: must be one of {', '.join(labels)}")
    tell("reading the recording", 0, 1)
    try:
        run, _ = fed(recording, checked, [] if acquisition is None else [(label, acquisition, 0)])
    except SessionError as error:
        raise ConvertError(f"{given}: {error}") from error
    buffer = run.scans[label].buffer
    blocks = list(_blocks(buffer))
    if not blocks:
        raise ConvertError(f"{given}: no frame can be used: {buffer.failure or buffer.ledger.counts()}")
    store, p = buffer.frames, buffer.parameters  # with what a header told
    psize = None if p.psize is None else tuple(float(v) for v in np.broadcast_to(np.asarray(p.psize, float), 2) * (p.rebin or 1))
    middle = (store.shape[0] // 2, store.shape[1] // 2)
    count = sum(len(block) for block in blocks)
    meta = ptyd_reading.Meta(
        store.shape, count, p.label or label, None if psize is None else (psize[0], psize[1]), p.energy, middle, p.distance
    )
    step = max(1, PIECE_FRAMES_BYTES // (int(np.prod(store.shape)) * store.dtype.itemsize))

    def pieces() -> Iterator[ptyd.Chunk]:
        for block in blocks:
            for first in range(0, len(block), step):
                rows = slice(first, first + step)
                places = [(float(y), float(x)) for y, x in block.positions_m[rows]]
                yield chunk_of(store, block.slots[rows].tolist(), block.indices[rows].tolist(), places)

    return Frames(meta, pieces(), count, f"{checked.name}: {label}")


def _blocks(buffer: PtyScan) -> Iterator[Block]:
    """Everything that can be used, in the order of the frames' numbers where they are taken at once."""
    while True:
        seen = buffer.changed(-1, 0.0)
        answer = buffer.take(1 << 40)
        if isinstance(answer, Block):
            order = np.argsort(answer.indices, kind="stable")
            fields = ("slots", "indices", "positions_m", "dose", "arrival_ns")
            yield Block(answer.scan, *(getattr(answer, name)[order] for name in fields))
        elif answer is Signal.EOS:
            return
        else:
            buffer.changed(seen, 0.25)


def _configuration_in(recording: Recording) -> Mapping[str, Any]:
    try:
        tree = json.loads(recording.metadata["configuration"])
    except (KeyError, TypeError, ValueError):
        tree = None
    if not isinstance(tree, dict):
        raise ConvertError(f"{recording.path}: holds no configuration: give it with --config")
    return tree


def _prepared(given: Path) -> Frames:
    meta = ptyd_reading.read_meta(given)
    parts, lacking = ptyd_reading.chunks(given)
    if lacking:
        raise ConvertError(f"{given}: a file that it links to is not there")
    count = ptyd_reading.frames_in(given, parts)

    def pieces() -> Iterator[ptyd.Chunk]:
        told = 0
        for number, file in parts.items():
            row, rows = 0, 1
            while row < rows:
                rows, chunk = ptyd_reading.read_piece(given, number, file, row, meta.shape)
                row += len(chunk)
                unknown = np.arange(told, told + len(chunk))
                indices = unknown if (chunk.indices < 0).any() else chunk.indices
                told += len(chunk)
                yield ptyd.Chunk(chunk.data, chunk.weights, chunk.positions, indices)

    return Frames(meta, pieces(), count, meta.label or given.stem)


def _cxi(given: Path) -> Frames:
    found = cxi.look(given)
    return Frames(found.meta, cxi.frames(given, found), found.meta.num_frames or 0, found.meta.label or given.stem)


# ---------------------------------------------------------------------- writing


def _write_cxi(file: Any, found: Frames, tell: Tell) -> int:
    writer = cxi.CxiWriter(file, found.meta, found.title)
    for chunk in found.pieces:
        writer.add(chunk)
        tell("writing frames", writer.frames, found.count)
    if writer.frames:
        writer.finish()
    return writer.frames


def _write_ptyd(file: Any, found: Frames, tell: Tell) -> int:
    meta = asdict(found.meta) | {"version": 0.1, "num_frames": found.count}
    arrays = {k: np.asarray(v) for k, v in meta.items() if k in ("shape", "psize", "center") and v is not None}
    h5.stamp(file)
    h5.write(file, "meta", meta | arrays)
    chunks, count, places = ptyd.make_group(file, "chunks"), 0, []
    for number, chunk in enumerate(found.pieces):
        ptyd.write_chunk(chunks, str(number), chunk)
        places.append(chunk.positions)
        count += len(chunk)
        tell("writing frames", count, found.count)
    held = np.concatenate([*places, np.zeros((0, 2))])
    h5.write(file, "info", {"positions_scan": held, "weight2d": True, "num_frames": count, "label": found.meta.label})
    return count


def _result(given: Path, made: Path, name: str | None) -> str:
    result = ptyr.read(given)
    write_cxi(made, result, name, str(given))
    return f"{made}: objects {', '.join(result.object)}, probes {', '.join(result.probe)}"


def write_cxi(made: Path, result: ptyr.Result, name: str | None = None, given: str = "") -> None:
    """A result as CXI/NeXus, whole or not there. Raises `ConvertError` where it has no object `name`, or none with a probe."""
    with ptyr.whole(made) as file:
        try:
            write_product(file, result, name)
        except ValueError as error:
            raise ConvertError(f"{given or made}: {error}") from error


def cxi_beside(path: Path) -> str:
    """The result in `path` as CXI/NeXus beside it, with the ending .cxi; returns where. Raises as `ptyr.read` and `write_cxi`."""
    made = path.with_name(f"{path.name.removesuffix('.ptyr')}.cxi")
    write_cxi(made, ptyr.read(path), given=str(path))
    return str(made)
