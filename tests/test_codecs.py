"""Every backend against the original pixels, against the HDF5 library's own encoding, and against damage."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptystream import codecs
from ptystream.codecs import CodecError, decode, encode
from ptystream.events import Payload

DTYPES = ["<u1", "<u2", "<u4", "<i4", "<f4"]


def frame_of(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.3, 30.0, shape)).astype(dtype)


def hdf5_stream(frame, codec):
    """The chunk as the HDF5 library's filter writes it: an encoder that is not ours."""
    options = hdf5plugin.Bitshuffle(cname="lz4") if codec == "bslz4" else hdf5plugin.LZ4()
    with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("d", data=frame, chunks=frame.shape, **options)
        return bytes(dataset.id.read_direct_chunk((0, 0))[1])


@pytest.fixture(params=list(codecs.backends()))
def backend(request, monkeypatch):
    monkeypatch.setattr(codecs, "_backend", lambda: codecs.backends()[request.param])
    return request.param


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 64), (127, 255), (700, 901)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", ["bslz4", "lz4"])
def test_every_backend_reads_what_the_hdf5_filter_wrote(backend, codec, dtype, shape):
    frame = frame_of(shape, dtype)
    np.testing.assert_array_equal(decode(Payload(hdf5_stream(frame, codec), codec, frame.dtype, shape)), frame)


@pytest.mark.parametrize("codec", ["bslz4", "lz4"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (127, 255), (700, 901)])
def test_the_hdf5_filter_reads_what_we_encode(codec, shape):
    frame = frame_of(shape, "<u2")
    options = hdf5plugin.Bitshuffle(cname="lz4") if codec == "bslz4" else hdf5plugin.LZ4()
    with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("d", shape=shape, dtype=frame.dtype, chunks=shape, **options)
        dataset.id.write_direct_chunk((0, 0), encode(frame, codec))
        np.testing.assert_array_equal(dataset[...], frame)


@settings(max_examples=60, deadline=None)
@given(
    codec=st.sampled_from(codecs.CODECS),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 99),
    noise=st.booleans(),
)
def test_decoding_gives_back_what_was_encoded(codec, dtype, shape, seed, noise):
    frame = frame_of(shape, dtype, seed)
    if noise:  # cannot be compressed: stored blocks
        frame = np.frombuffer(np.random.default_rng(seed).bytes(frame.nbytes), dtype).reshape(shape)
    decoded = decode(Payload(encode(frame, codec), codec, np.dtype(dtype), shape))
    assert decoded.tobytes() == frame.tobytes()


@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("rows", [None, slice(0, 0), slice(3, 40), slice(60, None)])
@pytest.mark.parametrize("out_dtype", [None, "<u2", "<u4", "<f4"])
def test_rows_and_destination_choose_what_is_written_where(backend, codec, rows, out_dtype):
    frame = frame_of((65, 33), "<u2")
    expected = frame[rows or slice(None)]
    out = None if out_dtype is None else np.full(expected.shape, 7, out_dtype)
    got = decode(Payload(encode(frame, codec), codec, frame.dtype, frame.shape), out, rows)
    assert out is None or got is out
    np.testing.assert_array_equal(got, expected)


def test_a_raw_payload_is_a_view_and_not_a_copy():
    data = frame_of((8, 9), "<u2").tobytes()
    pixels = decode(Payload(memoryview(data), "raw", np.dtype("<u2"), (8, 9)), rows=slice(2, 4))
    assert pixels.ctypes.data == np.frombuffer(data, np.uint8).ctypes.data + 2 * 9 * 2
    assert not pixels.flags.writeable


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_a_frame_cut_anywhere_is_an_error_that_names_the_bytes(backend, codec):
    frame = frame_of((19, 23), "<u2")
    stream = encode(frame, codec)
    for length in range(len(stream)):
        with pytest.raises(CodecError, match=r"\d+"):
            decode(Payload(stream[:length], codec, frame.dtype, frame.shape))
    with pytest.raises(CodecError, match="received"):
        decode(Payload(stream + b"\0", codec, frame.dtype, frame.shape))


@settings(max_examples=300, deadline=None)
@given(codec=st.sampled_from(["bslz4", "lz4"]), data=st.data())
def test_flipped_bytes_give_an_error_or_pixels_and_never_a_crash(codec, data):
    frame = frame_of((40, 52), "<u4")
    stream = bytearray(encode(frame, codec))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    for function in codecs.backends().values():
        try:
            offsets, block = codecs._walk(codec, memoryview(stream), frame.nbytes, 4)
            function(codec, memoryview(stream), offsets, block, np.empty_like(frame))
        except CodecError:
            pass


def test_an_announced_size_takes_no_memory():
    huge = struct.pack(">QI", 1 << 62, 8192) + bytes(64)
    with pytest.raises(CodecError, match=f"{1 << 62} bytes announced"):
        decode(Payload(huge, "bslz4", np.dtype("<u2"), (64, 64)))
    with pytest.raises(CodecError, match="possible are"):
        decode(Payload(huge, "bslz4", np.dtype("<u4"), (1 << 20, 1 << 20)))


def test_an_unknown_codec_is_named():
    with pytest.raises(CodecError, match="'zip' is unknown"):
        decode(Payload(b"", "zip", np.dtype("<u2"), (4, 4)))
    with pytest.raises(CodecError, match="'zip' is unknown"):
        encode(np.zeros((4, 4), "<u2"), "zip")


def test_threads_decode_side_by_side():
    frames = [frame_of((128, 130), "<u2", seed) for seed in range(24)]
    payloads = [Payload(encode(f, "bslz4"), "bslz4", f.dtype, f.shape) for f in frames]
    with ThreadPoolExecutor(4) as pool:
        for got, frame in zip(pool.map(decode, payloads * 4), frames * 4, strict=True):
            np.testing.assert_array_equal(got, frame)
