"""One thread per source: transport → recorder → decoder → scan. The only place where these four meet."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ptystream.decoder import Decoder
from ptystream.events import Event, Frames, Rejected
from ptystream.transport import Message, Transport, TransportClosed

log = logging.getLogger(__name__)

POLL_S = 0.2
"""How long a receive waits before the thread looks whether it should stop."""


class Tap(Protocol):
    """What keeps messages before they are acknowledged: a `Recorder`."""

    lost: int
    """Messages that could not be kept because the disk was full."""
    full: bool
    """Whether it is full now."""

    def write(self, message: Message, recorded: Callable[[Message], None] | None = None) -> None:
        """Queue `message`; `recorded` is called once it is kept. Blocks while the queue is full."""

    def index(self, message: Message, epoch: str, indices: NDArray[np.int64]) -> None:
        """Note which frames `message` holds, the last that its channel wrote."""

    def flush(self, timeout_s: float) -> None:
        """Wait until what is queued now is kept. Raises `RuntimeError` where it is not within `timeout_s`, or never will be."""


class Route(Protocol):
    """Where events go."""

    def __call__(self, channel: str, event: Event, message: Message) -> None:
        """Take over one event; must not raise on bad data."""


class Source(threading.Thread):
    """Feeds one channel until the transport ends or `stop` is called. A failure is kept in `failure` and told at once."""

    def __init__(
        self,
        transport: Transport,
        decoder: Decoder,
        route: Route,
        *,
        tap: Tap | None = None,
        on_message: Callable[[Message], None] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        super().__init__(name=f"source {transport.channel}", daemon=True)
        self.transport, self.decoder = transport, decoder
        self.failure: BaseException | None = None
        self._route, self._tap = route, tap
        self._on_message = on_message
        self._on_failure = on_failure
        self._stop_asked = threading.Event()
        self._opened = threading.Event()
        self._logged: set[str] = set()

    def run(self) -> None:
        """Thread body."""
        try:
            self.transport.open()
            self._opened.set()
            while not self._stop_asked.is_set():
                message = self.transport.receive(POLL_S)
                if message is not None:
                    self.take(message)
        except TransportClosed:
            log.info("%s: the transport ended", self.transport.channel)
        except BaseException as error:
            self.failure = error
            if self._on_failure is not None:
                self._on_failure(error)
        finally:
            self._opened.set()
            self.transport.close()

    def take(self, message: Message) -> None:
        """Record, decode and route one message; acknowledged when recorded, or when taken over where nothing records."""
        if self._on_message is not None:
            self._on_message(message)
        if self._tap is not None:
            self._tap.write(message, self.transport.acknowledge)
        for event in self.deliver(message):
            if self._tap is not None and isinstance(event, Frames):
                self._tap.index(message, event.epoch, event.indices)
        if self._tap is None:
            self.transport.acknowledge(message)

    def deliver(self, message: Message) -> list[Event]:
        """Decode and route a message that needs no recording: new ones after `take`, recorded ones after a restart."""
        events = self.decoder.feed(message)
        for event in events:
            if isinstance(event, Rejected) and event.reason not in self._logged:
                self._logged.add(event.reason)
                log.warning("%s: %s (logged once per reason): %s", message.channel, event.reason, event.detail)
            self._route(message.channel, event, message)
        return events

    def wait_open(self, timeout_s: float) -> bool:
        """Whether the transport is open (or has failed) within `timeout_s`."""
        return self._opened.wait(timeout_s)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask the thread to end and wait for it."""
        self._stop_asked.set()
        if self.is_alive():
            self.join(timeout_s)
