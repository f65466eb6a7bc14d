"""Documents by Kafka: the values that bluesky-kafka's publisher sends, read with confluent-kafka."""

from __future__ import annotations

import time
from typing import Any

from ptystream.transport import Message


def consumer(settings: dict[str, Any]) -> Any:
    """A consumer of the library. Raises `OSError` where it is not installed."""
    try:
        from confluent_kafka import Consumer
    except ImportError as error:
        raise OSError("via: kafka needs confluent-kafka: pip install 'ptystream[kafka]'") from error
    return Consumer(settings)


class KafkaTransport:
    """Reads topics from where they stand now. See `ptystream.transport.Transport`."""

    def __init__(self, servers: str, topics: tuple[str, ...], channel: str, max_bytes: int) -> None:
        self.channel = channel
        self._topics, self._max_bytes = topics, max_bytes
        self._settings = {
            "bootstrap.servers": servers,
            "group.id": f"ptystream-{channel.replace('/', '-')}-{time.time_ns()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "latest",
            "receive.message.max.bytes": max(max_bytes + 512, 1_000_000),
        }
        self._consumer: Any = None

    def open(self) -> None:
        """Subscribe; the library connects by itself."""
        self._consumer = consumer(self._settings)
        self._consumer.subscribe(list(self._topics))

    def receive(self, timeout_s: float) -> Message | None:
        """The next value, or None after `timeout_s`."""
        polled = self._consumer.poll(timeout_s)
        if polled is None:
            return None
        error = polled.error()
        if error is not None:
            if error.fatal():
                raise OSError(f"{self.channel}: {error.str()}")
            return None  # a broker that is away, or a topic that is not there yet: the library goes on trying
        raw = polled.value()
        return None if raw is None or len(raw) > self._max_bytes else Message(time.time_ns(), self.channel, (raw,))

    def acknowledge(self, message: Message) -> None:
        """Nothing to do: no offset is committed."""

    def close(self) -> None:
        """Leave the group."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
