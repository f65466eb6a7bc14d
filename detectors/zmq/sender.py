"""For those who write a detector server: send frames and samples to ptystream in a few lines."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import zmq
from numpy.typing import ArrayLike, NDArray

from ptystream.codecs import encode
from ptystream.events import Buffer
from ptystream.security import check_listening, secure, stop

from .link import LinkSender, is_envelope, read_control, size_of
from .protocol import DTYPES, frames_parts, header, samples_parts


class SenderError(RuntimeError):
    """A message could not be handed over in time, or the sender is closed."""


class Sender:
    """One stream of messages. Not to be shared between threads; a context manager.

    'acknowledged': keeps every message until the receiver has recorded it, at most `buffer_bytes`; a full buffer makes the
    next call wait (back-pressure), for `timeout_s` at the longest. 'push' and 'pub' are plain sockets: what they lose is
    lost, and the receiver counts it.
    """

    def __init__(
        self,
        address: str = "tcp://127.0.0.1:*",
        link: Literal["acknowledged", "push", "pub"] = "acknowledged",
        *,
        bind: bool = True,
        buffer_bytes: int = 1 << 30,
        timeout_s: float = 30.0,
        high_water_mark: int = 1000,
        keys: str | None = None,
        peer_keys: str | None = None,
        insecure: bool = False,
    ) -> None:
        """`keys`, `peer_keys`: CURVE certificates as of `ptystream.security.secure`. `insecure`: listen beyond loopback without.

        Raises `ValueError` for what cannot be, `OSError` where the address cannot be had.
        """
        kinds = {"acknowledged": zmq.ROUTER, "push": zmq.PUSH, "pub": zmq.PUB}
        if link not in kinds:
            raise ValueError(f"link: {link!r}: must be one of {', '.join(kinds)}")
        if bind:
            check_listening(address, keys, insecure)
        self._timeout_s, self._plain_push = timeout_s, link == "push"
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(kinds[link])
        self._socket.linger = 2000
        self._socket.sndhwm = 0 if link == "acknowledged" else high_water_mark
        self._socket.sndtimeo = int(timeout_s * 1000)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
        try:
            self._authenticator = secure(self._context, self._socket, bind, keys, peer_keys)
        except ValueError:
            self._context.destroy(linger=0)
            raise
        try:
            (self._socket.bind if bind else self._socket.connect)(address)
        except zmq.ZMQError as error:
            stop(self._authenticator)
            self._context.destroy(linger=0)
            raise OSError(f"{address}: {error.strerror}") from error
        self.address = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))
        """Where it is bound or connected; with the port that '*' became."""
        self._sent = 0
        self._closed = False
        self._failure: BaseException | None = None
        self._link = LinkSender(os.urandom(8), buffer_bytes) if link == "acknowledged" else None
        self._scan = ""
        if self._link is not None:
            self._changed = threading.Condition()
            self._wake_read, self._wake_write = os.pipe()
            os.set_blocking(self._wake_write, False)
            self._peer: bytes | None = None
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._thread = threading.Thread(target=self._serve, name="sender", daemon=True)
            self._thread.start()

    # ------------------------------------------------------------------ what a detector says

    def start(self, scan: str, **metadata: Any) -> None:
        """A scan begins; `num_frames` in the metadata lets viewers show how much is to come."""
        if not 0 < len(scan) <= 256:
            raise ValueError(f"scan {scan!r:.40}: must be a text of 1 to 256 characters")
        self._scan = scan
        self._send([header("start", scan=scan, meta=metadata, q=self._sent)])

    def frames(
        self,
        first: int | Sequence[int],
        frames: ArrayLike,
        *,
        timestamps_ns: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        codec: str = "raw",
        copy: bool = True,
    ) -> None:
        """Frames (frame, y, x) or one (y, x), numbered from `first` (or by a list of numbers).

        `positions` (frame, 2), metres (y, x), may come with them. Types: unsigned integers to 32 bits, int32, float32.
        With `copy` False raw pixels are not copied: they must not change until `flush` returns (plain links: ever).
        """
        array = np.asarray(frames)
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or array.size == 0:
            raise ValueError(f"frames: shape {array.shape}: must be (frame, y, x) or (y, x)")
        if array.dtype.newbyteorder("<").str not in DTYPES:
            raise TypeError(
                f"frames: dtype {array.dtype} is not on the wire: use one of {', '.join(sorted(DTYPES))}, as by "
                "frames.astype(numpy.float32)"
            )
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        encoded: list[Buffer]
        if codec == "raw":
            encoded = [array.tobytes() if copy else memoryview(array.data).cast("B")]
        else:
            encoded = [encode(frame, codec) for frame in array]
        stamps = None if timestamps_ns is None else np.atleast_1d(np.asarray(timestamps_ns, np.int64))
        places = None if positions is None else np.asarray(positions, float).reshape(len(array), 2)
        numbers: Any = first if isinstance(first, (int, np.integer)) else [int(number) for number in first]
        for name, values in (("first", numbers), ("timestamps_ns", stamps)):
            if values is not None and not isinstance(values, (int, np.integer)) and len(values) != len(array):
                raise ValueError(f"{name}: {len(values)} values for {len(array)} frames")
        shape = (int(array.shape[1]), int(array.shape[2]))
        self._send(
            frames_parts(self._scan, numbers, encoded, len(array), shape, array.dtype, codec, stamps, places, q=self._sent)
        )

    def samples(self, first: int, *, timestamps_ns: ArrayLike | None = None, **channels: ArrayLike) -> None:
        """Readings of slow channels, SI units, numbered from `first`: samples(0, y=[...], x=[...])."""
        table: Mapping[str, NDArray[np.float64]] = {k: np.atleast_1d(np.asarray(v, float)) for k, v in channels.items()}
        if len({values.shape for values in table.values()}) != 1:
            raise ValueError(f"channels: {[(k, v.shape) for k, v in table.items()]}: one at least, all of one length")
        stamps = None if timestamps_ns is None else np.atleast_1d(np.asarray(timestamps_ns, np.int64))
        self._send(samples_parts(self._scan, first, table, stamps, q=self._sent))

    def end(self, count: int | None = None, reason: str = "completed") -> None:
        """The scan is over, after `count` frames (or samples)."""
        self._send([header("end", scan=self._scan, count=count, reason=reason, q=self._sent)])

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody pulls from a 'push' link; the other links need not, or cannot know. Raises `TimeoutError`."""
        if self._plain_push and not self._socket.poll(int(timeout_s * 1000), zmq.POLLOUT):
            raise TimeoutError(f"{self.address}: nobody came within {timeout_s:g} s")

    def again(self, parts: Sequence[Buffer]) -> None:
        """Send recorded parts as they are, in a new envelope where they had one."""
        self._deliver([bytes(part) for part in (parts[1:] if is_envelope(parts[0]) else parts)])

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything is acknowledged; None: as long as any call may wait. Raises `SenderError` with what is not. Plain
        links do not know: what a 'push' still has to send gets so much time to go, on closing."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if self._link is None:
            if self._plain_push:
                self._socket.linger = int(timeout_s * 1000)
            return
        with self._changed:
            link = self._link
            if not self._changed.wait_for(lambda: link.first == link.next or self._failure is not None, timeout_s):
                raise SenderError(f"{link.next - link.first} of {link.next} messages are not acknowledged after {timeout_s:g} s")
        self._check()

    @property
    def unacknowledged(self) -> int:
        """Messages still held."""
        return 0 if self._link is None else self._link.next - self._link.first

    def close(self) -> None:
        """Close without waiting for acknowledgements (`flush` first). May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._link is not None:
            self._wake()
            self._thread.join(5.0)
            os.close(self._wake_read)
            os.close(self._wake_write)
        else:
            self._socket.close()
        stop(self._authenticator)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    # ------------------------------------------------------------------ inside

    def _send(self, parts: list[Buffer]) -> None:
        if not self._scan:
            raise SenderError("no scan has begun: call start(scan) first")
        self._deliver(parts)

    def _deliver(self, parts: list[Buffer]) -> None:
        if self._closed:
            raise SenderError("the sender is closed")
        self._check()
        if self._link is None:
            try:
                self._socket.send_multipart(parts, copy=False)
            except zmq.Again as error:
                raise SenderError(f"{self.address}: nobody took the message within {self._timeout_s:g} s") from error
        else:
            link, size = self._link, size_of(parts)
            with self._changed:
                if not self._changed.wait_for(lambda: link.fits(size) or self._failure is not None, self._timeout_s):
                    raise SenderError(
                        f"{self.address}: {link.held_bytes} bytes are not acknowledged after {self._timeout_s:g} s; is the "
                        "receiver running?"
                    )
                self._check()
                link.add(parts, size)
                self._pump()
        self._sent += 1

    def _check(self) -> None:
        if self._failure is not None:
            raise SenderError(f"{self.address}: the sender's thread died: {self._failure}") from self._failure

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe has woken it already
            os.write(self._wake_write, b"x")

    def _serve(self) -> None:
        """Thread body: answers the receiver while the caller does other things."""
        ready = select.poll()
        ready.register(int(self._socket.getsockopt(zmq.FD)), select.POLLIN)
        ready.register(self._wake_read, select.POLLIN)
        try:
            while not self._closed:
                ready.poll(1000)
                with self._changed:
                    self._pump()
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._socket.close()
                self._changed.notify_all()

    def _pump(self) -> None:
        """Hear the receiver and send what it may have. With the lock held, which is what lets two threads use the socket."""
        assert self._link is not None
        while True:
            # Each look at EVENTS, and each send, may consume the wake-up of the descriptor: never leave without a last look.
            while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                self._hear(*self._socket.recv_multipart())
            peer = self._peer
            parts = None if peer is None else self._link.take()
            if peer is None or parts is None:
                return
            while parts is not None:
                try:
                    self._socket.send_multipart([peer, *parts], copy=False)
                except zmq.ZMQError as error:
                    if error.errno != zmq.EHOSTUNREACH:
                        raise
                    self._peer = None  # its next greeting tells where to go on
                    break
                parts = self._link.take()

    def _hear(self, identity: bytes, *rest: bytes) -> None:
        word = read_control(rest[0]) if len(rest) == 1 else None
        if word is None:
            return
        assert self._link is not None
        kind, stream, number = word
        if kind == b"HELO":
            if identity != self._peer:
                self._link.hello(stream, number)
            self._peer = identity
        if identity == self._peer:
            self._link.acknowledged(stream, number)
        self._changed.notify_all()
