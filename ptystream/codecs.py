"""Encoded frames to pixels and back: one registry for everything that payloads are encoded with.

'raw' are C-ordered little-endian pixels. 'bslz4' and 'lz4' are the streams of the HDF5 filters 32008 (bitshuffle with
LZ4) and 32004 (LZ4), including their 12-byte head, as detectors send them: big-endian u64 decoded bytes, u32 bytes per
block, then per block u32 length and LZ4 data. Every announced size is held against the frame before memory is taken,
and the chain of blocks is walked before a library sees it, so no library reads or writes outside its buffers. 'lz4block' is
one LZ4 block of the whole frame, without a head.

Backends for the compressed ones, best first: `dectris` (extra of the same name), `library` (the C functions in the
filter libraries that hdf5plugin ships, called without the GIL straight into the destination), `h5py` (the HDF5 filters
run on a dataset in memory). All three give the same pixels; decoding scales over threads with the first two.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.events import Buffer, Payload

CODECS = ("raw", "bslz4", "lz4", "lz4block")
FILTER_ID = {"bslz4": 32008, "lz4": 32004}
MAX_FRAME_BYTES = 1 << 30
"""A frame that decodes to more is refused."""

_HEAD = struct.Struct(">QI")
_LENGTH = struct.Struct(">I")
_BITSHUFFLE_BLOCK = 8192
_LZ4_BLOCK = 1 << 20

Decode = Callable[[str, memoryview, list[int], int, NDArray[Any]], None]
"""(codec, stream, offsets of the blocks and of the tail, bytes per block, destination: a whole C-ordered frame)."""


class CodecError(ValueError):
    """A payload that is not what it says; the text names what was announced and what came."""


def decode(payload: Payload, out: NDArray[Any] | None = None, rows: slice | None = None) -> NDArray[Any]:
    """Return the pixels of one frame, or of its `rows` (step 1).

    `out`, shape (row, x), is filled and returned; a dtype other than the payload's is converted as by `numpy.copyto`.
    Without it a raw payload comes back as a read-only view on the message, an encoded one as a new array.
    Raises `CodecError` where the payload does not hold exactly one frame.
    """
    if payload.codec == "raw" and out is not None and rows is None and out.shape == payload.shape:
        # The path of nearly every frame; what does not fit goes on below, to its error.
        buffer = payload.buffer
        if len(buffer) == out.size * payload.dtype.itemsize:
            pixels = np.ndarray(payload.shape, payload.dtype, buffer)
            if out.dtype == pixels.dtype:
                out[...] = pixels
            else:
                np.copyto(out, pixels, casting="same_kind")
            return out
    wanted = _frame_bytes(payload)
    first, last, step = (rows or slice(None)).indices(payload.shape[0])
    if step != 1:
        raise ValueError(f"rows: {rows}: only step 1 is possible")
    if payload.codec == "raw":
        received = memoryview(payload.buffer).nbytes
        if received != wanted:
            raise CodecError(f"raw frame: {wanted} bytes announced by shape and dtype, {received} received")
        pixels = np.frombuffer(payload.buffer, payload.dtype).reshape(payload.shape)
        part = pixels[first:last]
        if out is None:
            part.flags.writeable = False
            return part
        np.copyto(out, part, casting="same_kind")
        return out
    whole = (first, last) == (0, payload.shape[0])
    direct = out is not None and whole and out.dtype == payload.dtype and out.flags.c_contiguous
    frame: NDArray[Any]
    if direct and out is not None:
        if out.shape != payload.shape:
            raise ValueError(f"out: shape {out.shape}, the frame has {payload.shape}")
        frame = out
    else:
        frame = np.empty(payload.shape, payload.dtype)
    stream, framed = _framed(payload, wanted)
    offsets, block = _walk(framed, stream, wanted, payload.dtype.itemsize)
    _backend()(framed, stream, offsets, block, frame)
    if direct:
        return frame
    if out is None:
        return frame[first:last]
    np.copyto(out, frame[first:last], casting="same_kind")
    return out


def decode_rows(payload: Payload, frame: NDArray[Any], rows: slice) -> NDArray[Any]:
    """Return an array of the frame's shape of which at least `rows` (step 1) hold its pixels.

    Raw pixels come as a view on the message. Others are decoded into `frame` (C-ordered, the payload's shape and dtype) as far
    as `rows` need: of a codec that works in blocks only those that hold them, and what lies in the others is not looked at.
    Raises `CodecError` as `decode` does, for what it reads.
    """
    if payload.codec == "raw" or frame.shape != payload.shape or frame.dtype != payload.dtype:
        return decode(payload)
    wanted = _frame_bytes(payload)
    first, last, _ = rows.indices(payload.shape[0])
    row = wanted // payload.shape[0]
    stream, codec = _framed(payload, wanted)
    offsets, block = _walk(codec, stream, wanted, payload.dtype.itemsize, until=last * row)
    blocks = range(first * row // block, len(offsets) - 1)
    part = _parts()
    if part is None or (blocks.start == 0 and offsets[-1] == stream.nbytes):
        offsets, block = _walk(codec, stream, wanted, payload.dtype.itemsize)
        _backend()(codec, stream, offsets, block, frame)
    else:
        part(codec, stream, offsets, block, frame, blocks)
    return frame


def encode(array: NDArray[Any], codec: str) -> bytes:
    """Return one frame, shape (y, x), encoded as `decode` takes it. Raises `CodecError` for an unknown codec."""
    frame = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    if codec == "raw":
        return frame.tobytes()
    if codec == "lz4block":
        return _lz4_block(int(frame.ctypes.data), frame.nbytes)
    if codec not in FILTER_ID:
        raise CodecError(f"codec {codec!r} is unknown; known are {', '.join(CODECS)}")
    encoder = _encode_library if _library(codec) is not None else _encode_h5py
    return encoder(frame, codec)


@cache
def backends() -> dict[str, Decode]:
    """The backends that this machine has, best first."""
    found: dict[str, Decode] = {}
    try:
        from dectris.compression import decompress  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        pass
    else:
        found["dectris"] = _decode_dectris
    if all(_library(codec) is not None for codec in FILTER_ID):
        found["library"] = _decode_library
    found["h5py"] = _decode_h5py
    return found


@cache
def _backend() -> Decode:
    return next(iter(backends().values()))


@cache
def _parts() -> Callable[[str, memoryview, list[int], int, NDArray[Any], range], None] | None:
    """What decodes some of the blocks, where this machine has it."""
    return _decode_part if "library" in backends() else None


def _frame_bytes(payload: Payload) -> int:
    if payload.codec not in CODECS:
        raise CodecError(f"codec {payload.codec!r} is unknown; known are {', '.join(CODECS)}")
    wanted = payload.dtype.itemsize
    for length in payload.shape:
        wanted *= length
    if wanted <= 0 or wanted > MAX_FRAME_BYTES:
        raise CodecError(f"shape {payload.shape} of {payload.dtype}: {wanted} bytes; possible are 1 to {MAX_FRAME_BYTES}")
    return wanted


def _framed(payload: Payload, wanted: int) -> tuple[memoryview, str]:
    """The stream with its head, and the codec of that."""
    stream = memoryview(payload.buffer).cast("B")
    if payload.codec != "lz4block":
        return stream, payload.codec
    return memoryview(b"".join((_HEAD.pack(wanted, wanted), _LENGTH.pack(stream.nbytes), stream))), "lz4"


def _walk(codec: str, stream: memoryview, wanted: int, itemsize: int, until: int | None = None) -> tuple[list[int], int]:
    """Check head and chain of blocks; return where each block begins and where the last ends, and bytes per block. Not further
    than the block that holds the byte before `until` of the frame, where that is given."""
    if stream.nbytes < _HEAD.size:
        raise CodecError(f"{codec} frame: {stream.nbytes} bytes received, its head alone takes {_HEAD.size}")
    announced, block = _HEAD.unpack_from(stream)
    if announced != wanted:
        raise CodecError(f"{codec} frame: {announced} bytes announced in the stream, {wanted} by shape and dtype")
    tail = 0
    if codec == "bslz4":
        # Bitshuffle works on groups of 8 elements; what is left over is stored behind the blocks as it is.
        tail = wanted % (8 * itemsize)
        if block == 0 or block % (8 * itemsize):
            raise CodecError(f"bslz4 frame: blocks of {block} bytes are no multiple of 8 elements of {itemsize} bytes")
    elif block == 0:
        raise CodecError("lz4 frame: blocks of 0 bytes")
    offsets = [_HEAD.size]
    position, size, left = _HEAD.size, stream.nbytes, wanted - tail
    bound = min(block, wanted) + min(block, wanted) // 255 + 16
    stop = 0 if until is None else wanted - tail - until
    while left > max(stop, 0):
        if position + 4 > size:
            raise CodecError(f"{codec} frame: {size} bytes received, block {len(offsets) - 1} would begin at {position}")
        (length,) = _LENGTH.unpack_from(stream, position)
        position += 4 + length
        if position > size or length > bound:
            raise CodecError(f"{codec} frame: block {len(offsets) - 1} ends at byte {position}, {size} bytes received")
        offsets.append(position)
        left -= block
    if left > 0:
        return offsets, block
    if position + tail != size:
        raise CodecError(f"{codec} frame: {position + tail} bytes announced by its blocks, {size} received")
    return offsets, block


# --- dectris ---------------------------------------------------------------------------------------------------------


def _decode_dectris(codec: str, stream: memoryview, offsets: list[int], block: int, frame: NDArray[Any]) -> None:
    from dectris.compression import decompress

    try:
        pixels = decompress(stream, codec, elem_size=frame.dtype.itemsize)
    except Exception as error:  # the package documents no class of its own
        raise CodecError(f"{codec} frame of {stream.nbytes} bytes received is damaged: {error}") from error
    np.copyto(frame, np.frombuffer(pixels, frame.dtype).reshape(frame.shape))


# --- library ---------------------------------------------------------------------------------------------------------


@cache
def _library(codec: str) -> ctypes.CDLL | None:
    """The filter library of `codec`, or None where it does not export what is needed."""
    import hdf5plugin

    name = {"bslz4": "bshuf", "lz4": "lz4"}[codec]
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    for path in sorted(Path(hdf5plugin.PLUGIN_PATH).glob(f"libh5{name}.*")):
        try:
            library = ctypes.CDLL(str(path))
            if codec == "bslz4":
                for function in (library.bshuf_decompress_lz4, library.bshuf_compress_lz4):
                    function.argtypes = [pointer, pointer, size, size, size]
                    function.restype = ctypes.c_int64
                library.bshuf_compress_lz4_bound.argtypes = [size, size, size]
                library.bshuf_compress_lz4_bound.restype = size
            else:
                for function in (library.LZ4_decompress_safe, library.LZ4_compress_default):
                    function.argtypes = [pointer, pointer, ctypes.c_int, ctypes.c_int]
                    function.restype = ctypes.c_int
                library.LZ4_compressBound.argtypes = [ctypes.c_int]
                library.LZ4_compressBound.restype = ctypes.c_int
        except (OSError, AttributeError):
            continue
        return library
    return None


def _address(buffer: Buffer) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def _decode_library(codec: str, stream: memoryview, offsets: list[int], block: int, frame: NDArray[Any]) -> None:
    library = _library(codec)
    assert library is not None
    source, target = _address(stream), int(frame.ctypes.data)
    itemsize = frame.dtype.itemsize
    if codec == "bslz4":
        used = library.bshuf_decompress_lz4(source + offsets[0], target, frame.size, itemsize, block // itemsize)
        if used != stream.nbytes - offsets[0]:
            raise CodecError(f"bslz4 frame of {stream.nbytes} bytes is damaged: decoding ended with {used}")
        return
    for number, (begin, end) in enumerate(itertools.pairwise(offsets)):
        _decode_lz4_block(library, source, target, begin, end, number, block, frame.nbytes)


def _decode_part(codec: str, stream: memoryview, offsets: list[int], block: int, frame: NDArray[Any], blocks: range) -> None:
    """Decode the blocks of that number; the chain `offsets` may end with the last of them."""
    library = _library(codec)
    assert library is not None
    source, target, itemsize = _address(stream), int(frame.ctypes.data), frame.dtype.itemsize
    if codec == "bslz4":
        first, last = blocks.start * block, min(blocks.stop * block, frame.nbytes)
        begin = source + offsets[blocks.start]
        used = library.bshuf_decompress_lz4(begin, target + first, (last - first) // itemsize, itemsize, block // itemsize)
        expected = (stream.nbytes if last == frame.nbytes else offsets[blocks.stop]) - offsets[blocks.start]
        if used != expected:
            raise CodecError(f"bslz4 frame of {stream.nbytes} bytes is damaged: decoding ended with {used}")
        return
    for number in blocks:
        begin, end = offsets[number : number + 2]
        _decode_lz4_block(library, source, target, begin, end, number, block, frame.nbytes)


def _decode_lz4_block(
    library: ctypes.CDLL, source: int, target: int, begin: int, end: int, number: int, block: int, size: int
) -> None:
    done = number * block
    length, expected = end - begin - 4, min(block, size - done)
    if length == expected:
        # A block that LZ4 could not shorten is stored as it is.
        ctypes.memmove(target + done, source + begin + 4, expected)
    elif library.LZ4_decompress_safe(source + begin + 4, target + done, length, expected) != expected:
        raise CodecError(f"lz4 frame: block {number}: the {length} bytes received do not decode to {expected}")


def _encode_library(frame: NDArray[Any], codec: str) -> bytes:
    library = _library(codec)
    assert library is not None
    source = int(frame.ctypes.data)
    if codec == "bslz4":
        itemsize = frame.dtype.itemsize
        elements = _BITSHUFFLE_BLOCK // itemsize
        target = np.empty(_HEAD.size + library.bshuf_compress_lz4_bound(frame.size, itemsize, elements), np.uint8)
        used = library.bshuf_compress_lz4(source, target.ctypes.data + _HEAD.size, frame.size, itemsize, elements)
        if used < 0:
            raise CodecError(f"bslz4: the frame {frame.shape} of {frame.dtype} could not be encoded ({used})")
        target[: _HEAD.size] = np.frombuffer(_HEAD.pack(frame.nbytes, _BITSHUFFLE_BLOCK), np.uint8)
        return target[: _HEAD.size + used].tobytes()
    return _encode_lz4(frame, min(_LZ4_BLOCK, frame.nbytes))


def _encode_lz4(frame: NDArray[Any], block: int) -> bytes:
    source = int(frame.ctypes.data)
    parts = [_HEAD.pack(frame.nbytes, block)]
    for done in range(0, frame.nbytes, block):
        size = min(block, frame.nbytes - done)
        data = _lz4_block(source + done, size)
        if len(data) >= size:
            data = ctypes.string_at(source + done, size)
        parts += [_LENGTH.pack(len(data)), data]
    return b"".join(parts)


def _lz4_block(source: int, size: int) -> bytes:
    """`size` bytes at `source` as one LZ4 block."""
    library = _library("lz4")
    if library is None:
        raise CodecError("lz4: the library that hdf5plugin ships offers no encoder on this machine")
    scratch = np.empty(library.LZ4_compressBound(size), np.uint8)
    used = library.LZ4_compress_default(source, scratch.ctypes.data, size, scratch.nbytes)
    return scratch[:used].tobytes()


# --- h5py ------------------------------------------------------------------------------------------------------------


def _dataset(file: Any, codec: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    import hdf5plugin

    options = hdf5plugin.Bitshuffle(cname="lz4") if codec == "bslz4" else hdf5plugin.LZ4()
    return file.create_dataset("frame", shape=shape, dtype=dtype, chunks=shape, **options)


def _memory_file() -> Any:
    import h5py

    return h5py.File("frame.h5", "w", driver="core", backing_store=False)


def _decode_h5py(codec: str, stream: memoryview, offsets: list[int], block: int, frame: NDArray[Any]) -> None:
    with _memory_file() as file:
        dataset = _dataset(file, codec, frame.shape, frame.dtype)
        dataset.id.write_direct_chunk((0,) * frame.ndim, bytes(stream))
        try:
            dataset.read_direct(frame)
        except OSError as error:
            raise CodecError(f"{codec} frame of {stream.nbytes} bytes received is damaged: {error}") from error


def _encode_h5py(frame: NDArray[Any], codec: str) -> bytes:
    with _memory_file() as file:
        dataset = _dataset(file, codec, frame.shape, frame.dtype)
        dataset[...] = frame
        mask, stream = dataset.id.read_direct_chunk((0,) * frame.ndim)
        if mask:
            raise CodecError(f"{codec}: the HDF5 filter was not applied (mask {mask})")
        return bytes(stream)
