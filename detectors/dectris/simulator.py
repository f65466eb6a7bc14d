"""A DECTRIS detector that is not there: plays any stack of frames in either format, over the socket that the real one has.

`python -m ptystream.detectors.dectris.simulator --help` plays frames of a file, or of a simulated ptychography scan.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal, Self

import cbor2
import numpy as np
import zmq
from numpy.typing import NDArray

from ptystream.codecs import encode
from ptystream.events import Buffer
from ptystream.security import check_listening

from .stream2 import COLUMN_MAJOR, COMPRESSED, ROW_MAJOR, TAG_OF

Parts = list[bytes]
WAIT_S = 600.0
"""How long a full queue or a peer that does not come is waited for."""
LOOK_S = 0.1
"""How often it is looked meanwhile whether to stop."""


@dataclass(frozen=True, slots=True)
class Camera:
    """What a series says of itself, and how its frames are encoded."""

    format: Literal["v1", "stream2"] = "stream2"
    compression: Literal["bslz4", "lz4", "lz4block", "none"] = "bslz4"
    """'lz4block', without a head, is version 1's alone."""
    detail: Literal["none", "basic", "all"] = "all"
    """What a header holds: nothing; numbers; also pixel mask and flat field."""
    energy_kev: float | None = None
    distance_m: float | None = None
    psize_m: tuple[float, float] | None = None
    """(y, x)."""
    center: tuple[float, float] | None = None
    """Raw pixels (y, x)."""
    saturation: int | None = None
    pixel_mask: NDArray[Any] | None = None
    """DECTRIS bits, 0 where a pixel is sound, (y, x)."""
    flatfield: NDArray[Any] | None = None
    """Factors that counts are to be multiplied with, (y, x)."""
    flatfield_applied: bool = False
    flatfield_name: str = "dflatfield-1.0"
    """As version 1 calls it; some senders leave the first letter out."""
    count_rates: NDArray[Any] | None = None
    """Measured and true ones, (n, 2), per second; None: version 1 sends one of its own."""
    count_rate_applied: bool | None = None
    """None: nothing is said."""
    header_appendix: str | None = None
    """Text of the beamline (`user_data` of stream2)."""
    image_appendix: str | Sequence[str] | None = None
    """One for all images, or one for each."""
    count_time_s: float = 1e-3
    channels: Sequence[str] = ("threshold_1",)
    """Of stream2. Every channel but `shown` holds zeros."""
    shown: str | None = None
    column_major: bool = False
    """Of stream2."""
    big_endian: bool = False
    """Of version 1: uncompressed pixels."""
    date: datetime = field(default_factory=lambda: datetime.now(UTC))

    # ------------------------------------------------------------------ messages

    def header(self, series: int, frames: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> Parts:
        """The header of a series of `frames` images (y, x)."""
        return (self._start if self.format == "stream2" else self._header)(series, frames, shape, dtype)

    def image(self, series: int, number: int, frame: NDArray[Any]) -> Parts:
        """One image, (y, x)."""
        return (self._image2 if self.format == "stream2" else self._image1)(series, number, frame)

    def end(self, series: int) -> Parts:
        """The end of a series."""
        if self.format == "stream2":
            return [cbor2.dumps({"type": "end", "series_id": series, "series_unique_id": f"sim-{series}"})]
        return [_json(htype="dseries_end-1.0", series=series)]

    def _header(self, series: int, frames: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> Parts:
        parts = [_json(htype="dheader-1.0", series=series, header_detail=self.detail)]
        if self.detail != "none":
            y, x = shape
            config: dict[str, Any] = {"nimages": frames, "ntrigger": 1, "trigger_mode": "ints", "compression": self.compression}
            config |= {"x_pixels_in_detector": x, "y_pixels_in_detector": y, "bit_depth_image": 8 * dtype.itemsize}
            config |= {"count_time": self.count_time_s, "frame_time": self.count_time_s, "description": "Simulated EIGER2"}
            config |= {"flatfield_correction_applied": self.flatfield_applied, "detector_distance": self.distance_m or 0.0}
            if self.count_rate_applied is not None:
                config["countrate_correction_applied"] = self.count_rate_applied
            config["photon_energy"] = 1000.0 * (self.energy_kev or 0.0)
            config["y_pixel_size"], config["x_pixel_size"] = self.psize_m or (0.0, 0.0)
            config["beam_center_y"], config["beam_center_x"] = self.center or (0.0, 0.0)
            config["countrate_correction_count_cutoff"] = self.saturation or 0
            parts.append(json.dumps(config).encode())
        if self.detail == "all":
            flat = np.ones(shape, "<f4") if self.flatfield is None else np.asarray(self.flatfield, "<f4")
            mask = np.zeros(shape, "<u4") if self.pixel_mask is None else np.asarray(self.pixel_mask, "<u4")
            table = np.stack([np.linspace(0, 1e6, 20), np.linspace(0, 1.2e6, 20)], axis=1).astype("<f4")
            table = table if self.count_rates is None else np.asarray(self.count_rates, "<f4")
            xy = [shape[1], shape[0]]
            parts += [_json(htype=self.flatfield_name, shape=xy, type="float32"), flat.tobytes()]
            parts += [_json(htype="dpixelmask-1.0", shape=xy, type="uint32"), mask.tobytes()]
            parts += [_json(htype="dcountrate_table-1.0", shape=list(table.shape), type="float32"), table.tobytes()]
        return parts + _appended(self.header_appendix)

    def _image1(self, series: int, number: int, frame: NDArray[Any]) -> Parts:
        if self.compression == "none":
            order, blob = (
                (">" if self.big_endian else "<"),
                frame.astype(frame.dtype.newbyteorder(">" if self.big_endian else "<")),
            )
            encoding, data = order, blob.tobytes()
        else:
            data = encode(frame, self.compression)
            encoding = f"bs{8 * frame.itemsize}-lz4<" if self.compression == "bslz4" else "lz4<"
        y, x = frame.shape
        described = _json(htype="dimage_d-1.0", shape=[x, y], type=frame.dtype.name, encoding=encoding, size=len(data))
        begin = int(number * self.count_time_s * 1e9)
        times = {
            "start_time": begin,
            "stop_time": begin + int(self.count_time_s * 1e9),
            "real_time": int(self.count_time_s * 1e9),
        }
        head = _json(htype="dimage-1.0", series=series, frame=number, hash="0" * 32)
        return [head, described, data, _json(htype="dconfig-1.0", **times), *_appended(self._behind(number))]

    def _behind(self, number: int) -> str | None:
        """The appendix of an image."""
        text = self.image_appendix
        return text if text is None or isinstance(text, str) else text[number]

    def _start(self, series: int, frames: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> Parts:
        y, x = shape
        start: dict[str, Any] = {"type": "start", "arm_date": self.date, "channels": list(self.channels)}
        start |= {"series_id": series, "series_unique_id": f"sim-{series}", "number_of_images": frames}
        start |= {"image_size_x": x, "image_size_y": y, "image_dtype": dtype.name}
        if self.detail != "none":
            start |= {
                "count_time": self.count_time_s,
                "frame_time": self.count_time_s,
                "flatfield_enabled": self.flatfield_applied,
            }
            told = {
                "incident_energy": None if self.energy_kev is None else 1000.0 * self.energy_kev,
                "detector_translation": None if self.distance_m is None else [0.0, 0.0, -self.distance_m],
                "saturation_value": self.saturation,
            }
            start |= {key: value for key, value in told.items() if value is not None}
            for name, pair in (("pixel_size", self.psize_m), ("beam_center", self.center)):
                if pair is not None:
                    start[f"{name}_y"], start[f"{name}_x"] = pair
        if self.detail == "all":
            for name, array, kind in (("pixel_mask", self.pixel_mask, "<u4"), ("flatfield", self.flatfield, "<f4")):
                if array is not None:
                    start[name] = {channel: self._tagged(np.asarray(array, kind)) for channel in self.channels}
        if self.count_rate_applied is not None:
            start["countrate_correction_enabled"] = self.count_rate_applied
        if self.detail == "all" and self.count_rates is not None:
            start["countrate_correction_lookup_table"] = cbor2.CBORTag(70, self._lookup(self.count_rates).tobytes())
        if self.header_appendix is not None:
            start["user_data"] = self.header_appendix
        return [cbor2.dumps(start)]

    def _image2(self, series: int, number: int, frame: NDArray[Any]) -> Parts:
        begin = Fraction(number) * Fraction(self.count_time_s).limit_denominator(10**9)
        shown = self.shown or self.channels[0]
        data = {c: self._tagged(frame if c == shown else np.zeros_like(frame)) for c in self.channels}
        image: dict[str, Any] = {"type": "image", "series_id": series, "series_unique_id": f"sim-{series}", "image_id": number}
        image |= {"series_date": self.date, "start_time": [begin.numerator, begin.denominator], "data": data}
        if self.image_appendix is not None:
            image["user_data"] = self._behind(number)
        return [cbor2.dumps(image)]

    def _lookup(self, rates: NDArray[Any]) -> NDArray[np.uint32]:
        """True counts by measured ones, in one exposure."""
        measured, true = np.asarray(rates, float).T * self.count_time_s
        return np.asarray(np.rint(np.interp(np.arange(int(measured[-1]) + 1), measured, true)), np.uint32)

    def _tagged(self, array: NDArray[Any]) -> cbor2.CBORTag:
        laid = np.ascontiguousarray(array.T if self.column_major else array)
        data: Any = laid.tobytes()
        if self.compression in ("bslz4", "lz4"):
            element = array.itemsize if self.compression == "bslz4" else 0
            data = cbor2.CBORTag(COMPRESSED, [self.compression, element, encode(laid, self.compression)])
        typed = cbor2.CBORTag(TAG_OF[array.dtype.newbyteorder("<").str], data)
        return cbor2.CBORTag(COLUMN_MAJOR if self.column_major else ROW_MAJOR, [list(array.shape), typed])


def series_of(
    camera: Camera,
    number: int,
    frames: NDArray[Any] | Sequence[NDArray[Any]],
    *,
    announced: int | None = None,
    first: int = 0,
    stop: int | None = None,
    header: bool = True,
    end: bool = True,
) -> Iterator[Parts]:
    """The messages of one series of `frames` (frame, y, x): images `first` to `stop`, with or without header and end.

    `announced`: how many the header says there will be, where that is not how many there are.
    """
    count = len(frames)
    if header:
        yield camera.header(number, count if announced is None else announced, frames[0].shape, frames[0].dtype)
    for k in range(first, count if stop is None else stop):
        yield camera.image(number, k, frames[k])
    if end:
        yield camera.end(number)


class Detector:
    """The socket of a detector: PUSH, bound; deals messages out to all that pull from it."""

    def __init__(
        self, address: str = "tcp://127.0.0.1:*", *, high_water_mark: int = 1000, insecure: bool = False, linger_s: float = 30.0
    ) -> None:
        """Listens on loopback alone, or with `insecure` on any interface. Raises `ValueError` otherwise."""
        check_listening(address, None, insecure)
        context: Any = zmq.Context.instance()
        self._socket = context.socket(zmq.PUSH)
        self._socket.linger = int(linger_s * 1000)
        self._socket.sndhwm = high_water_mark
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._socket.close(0)
            raise OSError(f"address {address!r}: {error.strerror}") from error
        self.address: str = self._socket.last_endpoint.decode()

    def send(
        self, messages: Iterable[Sequence[bytes]], rate_hz: float | None = None, wait: Callable[[float], bool] | None = None
    ) -> int:
        """Send messages, at most `rate_hz` of them; waits while nobody takes them. `wait(seconds)` paces it and ends it where it
        answers True. Returns how many were sent. Raises `TimeoutError` where nobody took one for `WAIT_S`."""
        wait, began, sent = wait or threading.Event().wait, time.monotonic(), 0
        for parts in messages:
            ahead = 0.0 if rate_hz is None else began + sent / rate_hz - time.monotonic()
            if ahead > 0 and wait(ahead):
                break
            patience = time.monotonic() + WAIT_S
            while not self.took(parts):
                if wait(0.0):
                    return sent
                if time.monotonic() > patience:
                    raise TimeoutError(f"{self.address}: nobody took message {sent} for {WAIT_S:g} s")
            sent += 1
        return sent

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody pulls. Raises `TimeoutError`."""
        if not self._socket.poll(int(timeout_s * 1000), zmq.POLLOUT):
            raise TimeoutError(f"{self.address}: nobody came within {timeout_s:g} s")

    def took(self, parts: Sequence[Buffer]) -> bool:
        """Send a message, within `LOOK_S`; the peer may go away between the look and the sending."""
        if not self._socket.poll(int(LOOK_S * 1000), zmq.POLLOUT):
            return False
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def linger(self, seconds: float) -> None:
        """Let what is queued so much time to go, on closing."""
        self._socket.linger = int(seconds * 1000)

    def close(self) -> None:
        """Give what is queued the time that was agreed, and end."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _json(**content: Any) -> bytes:
    return json.dumps(content).encode()


def _appended(text: str | None) -> Parts:
    return [] if text is None else [text.encode()]


def _stack(options: argparse.Namespace) -> tuple[NDArray[Any], Mapping[str, Any]]:
    """(frames, what the header tells of the set-up)."""
    if options.file is not None:
        stack = np.load(options.file, mmap_mode="r", allow_pickle=False)
        if stack.ndim != 3:
            raise SystemExit(f"{options.file}: shape {stack.shape}: (frame, y, x) is needed")
        return stack, {}
    from ..simulated.simulator import Beamline

    beam = Beamline(frames=options.frames, side=options.side, seed=options.seed)
    truth, told = (beam.probe(), beam.object()), beam.geometry()
    stack = np.stack([beam.pattern(k, truth) for k in range(beam.frames)])
    if options.positions is not None:
        np.save(options.positions, beam.positions_m())
    set_up = {"energy_kev": told["energy"], "distance_m": told["distance"], "psize_m": (told["psize"],) * 2}
    return stack, {**set_up, "center": (beam.side // 2, beam.side // 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Play series on the command line."""
    parser = argparse.ArgumentParser(prog="ptystream.detectors.dectris.simulator", description=__doc__)
    parser.add_argument("--address", default="tcp://127.0.0.1:31001", help="endpoint to listen on")
    parser.add_argument("--insecure", action="store_true", help="allow an address beyond loopback")
    parser.add_argument("--format", choices=("v1", "stream2"), default="stream2")
    parser.add_argument("--compression", choices=("bslz4", "lz4", "lz4block", "none"), default="bslz4")
    parser.add_argument("--detail", choices=("none", "basic", "all"), default="all", help="what the header holds")
    parser.add_argument("--file", help="frames to play: .npy (frame, y, x); without it a simulated scan is computed")
    parser.add_argument("--frames", type=int, default=400, help="of the simulated scan")
    parser.add_argument("--side", type=int, default=128, help="pixels of its frames")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--positions", help="write its positions, metres (frame, 2), to this .npy file")
    parser.add_argument("--rate", type=float, default=100.0, help="messages per second")
    parser.add_argument("--series", type=int, default=1, help="number of the first series")
    parser.add_argument("--repeat", type=int, default=1, help="how many series")
    parser.add_argument("--header-appendix", help="text for the header")
    options = parser.parse_args(arguments)
    stack, told = _stack(options)
    camera = Camera(options.format, options.compression, options.detail, header_appendix=options.header_appendix, **told)
    with Detector(options.address, insecure=options.insecure) as detector:
        print(json.dumps({"address": detector.address, "frames": len(stack), "shape": list(stack.shape[1:])}), flush=True)
        for number in range(options.series, options.series + options.repeat):
            detector.send(series_of(camera, number, stack), options.rate)


if __name__ == "__main__":
    main()
