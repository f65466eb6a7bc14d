"""Stored pieces (HDF5 'chunks') that hold one whole frame each, taken as they lie in the file."""

from __future__ import annotations

from typing import Any

from ptystream.codecs import FILTER_ID, CodecError

_BITSHUFFLE_LZ4 = 2


def codec_of(dataset: Any) -> str | None:
    """Name of the codec of pieces that hold one whole frame (the last two axes) each: 'raw', 'bslz4', 'lz4'; None where they have
    to be read through the library."""
    one = dataset.chunks is not None and dataset.chunks == (*[1] * (dataset.ndim - 2), *dataset.shape[-2:])
    little = dataset.dtype == dataset.dtype.newbyteorder("<")
    if not one or not little or dataset.dtype.kind not in "uif":
        return None
    filters = dataset.id.get_create_plist()
    if filters.get_nfilters() == 0:
        return "raw"
    if filters.get_nfilters() > 1:
        return None
    number, _, options, _ = filters.get_filter(0)
    if number == FILTER_ID["bslz4"] and len(options) > 4 and options[4] == _BITSHUFFLE_LZ4:
        return "bslz4"
    return "lz4" if number == FILTER_ID["lz4"] else None


def piece(dataset: Any, at: tuple[int, ...], frame_bytes: int) -> tuple[bytes, bool] | None:
    """The piece of one frame and whether it is stored in `codec_of` (or the writer has left the filter out); None where it is not
    written. `at` is its first element. Raises `CodecError` for a piece that no frame of `frame_bytes` has, before it is read."""
    info = dataset.id.get_chunk_info_by_coord(at)
    if info.byte_offset is None:
        return None
    if info.size > 2 * frame_bytes + 4096:
        text = f"a frame of {frame_bytes} bytes is stored in {info.size} bytes"
        raise CodecError(f"{dataset.file.filename}: {dataset.name}: {at}: {text}")
    # The mask that comes with the bytes is 0 where the piece lies in the library's cache, whatever the file says.
    return dataset.id.read_direct_chunk(at)[1], not info.filter_mask
