"""A recording given back: which of it, at what pace, with which faults; into a session or to whoever asks for its channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ptystream.faults import Damaged, Faults, Restamp, damage
from ptystream.params.errors import ConfigurationError, Fault
from ptystream.params.load import Configuration
from ptystream.recording import Recording
from ptystream.replay import Replay
from ptystream.transport import Message, Transport


@dataclass(slots=True)
class Playback:
    """What is given back, and how. `speed` as of `Replay`."""

    file: str
    speed: float = float("inf")
    faults: Faults = field(default_factory=Faults)
    damaged: Damaged | None = None
    """What the faults did, once `replay` was called."""
    total: int = 0
    """Messages that are given, once `replay` was called."""
    pace: Replay | None = None
    """The replay itself, for its progress."""

    def transports(self, configuration: Configuration) -> dict[str, Transport]:
        """Transports in the place of a configuration's sources. Raises `ConfigurationError` where nothing is recorded of any."""
        sources: dict[str, Any] = {}
        for scan in configuration.scans:
            sources[f"{scan.label}/data"] = scan.data.plugin
            if scan.positions is not None:
                sources[f"{scan.label}/positions"] = scan.positions.plugin
        pace = self.replay(Recording(self.file), sources)
        return {name: pace.transport(name) for name in pace.channels}

    def replay(self, recording: Recording, sources: Mapping[str, Any]) -> Replay:
        """The replay of channels that the plug-ins `sources` read.

        Raises `ValueError` for faults that cannot be done, `ConfigurationError` where nothing is recorded of the channels.
        """
        every = list(_bare(recording, sources)) if self.faults.any else None
        self.total = sum(message.channel in sources for message in recording) if every is None else len(every)
        channels = [name for name in sources if name in recording.channels.values()]
        if not channels:
            there = ", ".join(sorted(set(recording.channels.values()))) or "nothing"
            told = f"{self.file} holds none of these channels; it holds {there}"
            raise ConfigurationError([Fault("scans", sorted(sources), told)])
        if every is None:
            self.pace = Replay(recording, channels, self.speed)
            return self.pace
        restamp: dict[str, Restamp] = {n: plugin.restamped for n, plugin in sources.items() if hasattr(plugin, "restamped")}
        self.damaged = damage(every, self.faults, restamp)
        self.total = len(self.damaged.messages)
        self.pace = Replay(recording, channels, self.speed, self.damaged.messages)
        return self.pace


def _bare(messages: Iterable[Message], sources: Mapping[str, Any]) -> Iterator[Message]:
    for message in messages:
        if message.channel in sources:
            strip = getattr(sources[message.channel], "bare", None)
            parts = message.parts if strip is None else tuple(strip(message.parts))
            yield Message(message.arrival_ns, message.channel, parts)
