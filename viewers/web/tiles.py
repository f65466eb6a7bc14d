"""What changed between two pictures, as one message: whole arrays, or the tiles of them that differ. Without I/O.

`static/wire.js` reads it; docs/reference/viewer.md has the layout.
"""

from __future__ import annotations

import zlib
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .picture import Picture, framed

TILE = 64
"""Side of a tile of an image, pixels."""
ROWS = 256
"""Rows of a tile of a table: positions, errors, the map of the ledger."""
LEVEL = 1
"""Of the compression: the quickest. Higher ones make a few per cent less of it in a multiple of the time."""

Coding: TypeAlias = Literal["none", "deflate-raw"]
CODINGS: tuple[Coding, ...] = ("none", "deflate-raw")
"""How the body of a message may be compressed; a browser says which it knows."""


def encode(picture: Picture, base: Picture | None, coding: Coding = "none") -> bytes:
    """The message that makes `picture` of `base`, or with None of nothing: a keyframe.

    An array is whole where the base has none of that name, or another shape or place of it; a table may have grown at its end.
    """
    parts: list[Any] = []
    counts: list[int | None] = []
    for name, array in picture.arrays.items():
        before = None if base is None else _comparable(name, picture, base)
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if before is None:
            counts.append(None)
            parts.append(flat)
        else:
            indices, content = changed(array, before)
            counts.append(len(indices))
            parts += [indices.view(np.uint8), content]
    body = b"".join(part for whole in parts for part in (whole.data, b"\0" * (-whole.size % 8)))
    wire: dict[str, Any] = {"serial": picture.serial, "base": None if base is None else base.serial}
    wire |= {"coding": coding, "bytes": len(body), "tile": TILE, "rows": ROWS, "tiles": counts}
    if coding == "deflate-raw":
        squeezed = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = squeezed.compress(body) + squeezed.flush()
    return framed({**picture.header, "wire": wire}, body)


def changed(array: NDArray[Any], before: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """The tiles that differ: their numbers, ascending, and their content, one after the other.

    Of an image, (layer, y, x) or (y, x) of bytes, a tile is `TILE`² pixels, smaller at the far edges, numbered along x, then
    y, then layer; its content is the difference from before, modulo 256, which compresses better than the pixels. Of a table,
    (row, column), it is `ROWS` rows as they are; rows beyond those of `before` count as changed.
    """
    if array.dtype != np.uint8:
        return _changed_rows(array, before)
    image = array.reshape(-1, *array.shape[-2:])
    difference = image - before.reshape(image.shape)
    _, height, width = image.shape
    if not image.size:
        return np.zeros(0, np.uint32), np.zeros(0, np.uint8)
    rows, columns = np.arange(0, height, TILE), np.arange(0, width, TILE)
    differs = np.logical_or.reduceat(np.logical_or.reduceat(difference != 0, rows, axis=1), columns, axis=2)
    indices = np.flatnonzero(differs).astype("<u4")
    content = [
        difference[layer, y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE].reshape(-1)
        for layer, y, x in zip(*np.unravel_index(indices, differs.shape), strict=True)
    ]
    return indices, np.concatenate(content) if content else np.zeros(0, np.uint8)


def _changed_rows(table: NDArray[Any], before: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    lines = np.ascontiguousarray(table).view(np.uint8)  # bytes, so that what is no number equals itself
    known = np.ascontiguousarray(before).view(np.uint8)
    if not lines.size:
        return np.zeros(0, np.uint32), np.zeros(0, np.uint8)
    differs = np.ones(len(lines), bool)
    differs[: len(known)] = (lines[: len(known)] != known).any(axis=1)
    indices = np.flatnonzero(np.logical_or.reduceat(differs, np.arange(0, len(lines), ROWS))).astype("<u4")
    content = [lines[k * ROWS : (k + 1) * ROWS].reshape(-1) for k in indices]
    return indices, np.concatenate(content) if content else np.zeros(0, np.uint8)


def _comparable(name: str, picture: Picture, base: Picture) -> NDArray[Any] | None:
    """The array of the base of which only what changed needs to be told."""
    array, before = picture.arrays[name], base.arrays.get(name)
    if before is None or before.dtype != array.dtype or picture.run != base.run:
        return None
    if array.dtype != np.uint8:
        return before if before.shape[1:] == array.shape[1:] and len(before) <= len(array) else None
    if before.shape != array.shape or _place(name, picture) != _place(name, base):
        return None
    return before


def _place(name: str, picture: Picture) -> Any:
    """Where on the sample an image begins: `object/NAME/phase`, `coverage/NAME`."""
    kind, _, rest = name.partition("/")
    if kind == "coverage":
        return picture.header["object"].get(rest, {}).get("offset")
    return picture.header[kind].get(rest.rpartition("/")[0], {}).get("offset")
