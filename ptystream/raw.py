"""Frames as they came, again: from the recording that a session writes, or that is given back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ptystream.decoder import Decoder
from ptystream.events import Buffer, Frames, Payload
from ptystream.files import Reader, refers
from ptystream.kept import Kept
from ptystream.recording import Recorder, Recording, RecordingError
from ptystream.transport import Message

PATIENCE_S = 0.0
"""Frames in files were read once before: where one cannot be now, it is not waited for."""


class RawFrames:
    """Frames of one channel. What it reads it reads again at every call, a message at a time."""

    def __init__(
        self,
        channel: str,
        decoder: Callable[[], Decoder],
        recorder: Recorder | None,
        recording: Recording | None,
        bare: Callable[[Sequence[Buffer]], Sequence[Buffer]] = lambda parts: parts,
    ) -> None:
        """`decoder` makes a fresh one; `bare` takes from a message what says where it stands among others; `recorder` writes the
        recording, which otherwise is `recording`; None: there is none."""
        self.channel, self._decoder, self._bare = channel, decoder, bare
        self._recorder, self._recording = recorder, recording

    @property
    def there(self) -> bool:
        """Whether there is a recording."""
        return self._recorder is not None or self._recording is not None

    @property
    def lost(self) -> int:
        """Messages that are not in it because the disk was full, as far as is known."""
        if self._recorder is not None:
            return self._recorder.lost
        return 0 if self._recording is None else self._recording.missing

    def frames(
        self, epoch: str, wanted: Mapping[int, int], stopped: threading.Event | None = None
    ) -> Iterator[tuple[int, Payload]]:
        """(number, frame) of the acquisition's frames that are `wanted`: number → arrival of its message, from which whoever asks
        takes what is done with. First by the index, the newest first; what that leaves comes in the order of the recording, and
        of frames whose own message was of no use any other.

        Raises `RecordingError` where it cannot be read.
        """
        if not wanted:
            return
        if self._recorder is not None:
            self._recorder.flush()
        recording = self._recording if self._recorder is None else Recording(self._recorder.path)
        if recording is None:
            return
        halted, reader = stopped or threading.Event(), Reader(PATIENCE_S, stopped, Kept(recording))
        try:
            offsets, index = recording.contents(self.channel)
            entries = index.get(epoch, [])
            if entries:
                decoder, told = self._decoder(), {offset for held in index.values() for offset, _ in held}
                for offset in offsets:
                    if offset >= entries[0][0]:
                        break
                    if offset not in told:
                        decoder.feed(recording.at(offset))  # what the decoder has to know: headers, starts
                for offset, numbers in reversed(entries):
                    if halted.is_set() or not wanted:
                        return
                    if any(number in wanted for number in numbers.tolist()):
                        with suppress(RecordingError):  # damaged: what it held comes again below, or is missing
                            message = recording.at(offset)
                            message = replace(message, parts=tuple(self._bare(message.parts)))
                            yield from _of(message, decoder, reader, epoch, wanted, frozenset())
            decoder, tried = self._decoder(), set[int]()
            for offset in offsets:
                if halted.is_set() or not wanted:
                    return
                for number, payload in _of(recording.at(offset), decoder, reader, epoch, wanted, tried):
                    tried.add(number)
                    yield number, payload
        finally:
            reader.close()


def _of(
    message: Message, decoder: Decoder, reader: Reader, epoch: str, wanted: Mapping[int, int], anyhow: Any
) -> Iterator[tuple[int, Payload]]:
    """The wanted frames in a message; of those `anyhow` whenever it came."""
    for event in decoder.feed(message):
        if not isinstance(event, Frames) or event.epoch != epoch:
            continue
        chosen = [k for k, n in enumerate(event.indices.tolist()) if _is_meant(n, message, wanted, anyhow)]
        for k in reversed(chosen):
            one = Frames(epoch, event.indices[k : k + 1], event.payloads[k : k + 1])
            for read in reader.resolve(one) if refers(one) else [one]:
                if isinstance(read, Frames) and isinstance(read.payloads[0], Payload):
                    yield int(read.indices[0]), read.payloads[0]


def _is_meant(number: int, message: Message, wanted: Mapping[int, int], anyhow: Any) -> bool:
    return number in wanted and (wanted[number] == message.arrival_ns or number in anyhow)
