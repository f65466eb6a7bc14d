"""`PtydScan`: a `.ptyd` file as a source, read once or followed while another program writes it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ptystream.events import Buffer
from ptystream.params.base import Branch, parameter
from ptystream.params.errors import ConfigurationError, Fault
from ptystream.storage import ptyd_reading as reading
from ptystream.storage.h5 import H5Error
from ptystream.transport import Message, TransportClosed

from ..zmq.protocol import header
from .protocol import PtydDecoder, messages

log = logging.getLogger(__name__)

LOOK_S = 0.1
"""How often a file is looked at while nothing new is in it."""
PATIENCE_S = 5.0
"""A file that cannot be read is tried again for so long: it may be about to be written."""
UNKNOWN_END_S = 60.0
IN_FILE = ("file", None)
"""Values of `source` that mean `dfile`."""


class PtydParameters(Branch):
    """A prepared file, ptypy's or one that `save` wrote."""

    source: str | None = parameter("file")
    """Alternate source file path if data is meant to be reprocessed.

    None or 'file': frames are read from `dfile` as they are: geometry and shape are those in the file, and processing (shape,
    center, rebin, orientation, auto_center) and `save` are off. A path: frames are read from there and processed, the file's
    geometry stands in for what is not given, and `dfile` is where `save` writes; where both are the same file, '_n' is put
    into the name of the second.

    The file must be there; what is added to it is followed until it holds as many frames as it says."""

    idle_s: float | None = parameter(None, lower=0.0, ours=True)
    """A file to which nothing was added for so long is complete, seconds. None: never, where it says how many frames it
    will hold; otherwise after 60 s."""


class PtydTransport:
    """Gives the frames of a file as messages. See `ptystream.transport.Transport`."""

    def __init__(self, path: Path, idle_s: float | None, channel: str, decoder: PtydDecoder) -> None:
        self.channel, self.path = channel, path
        self._idle_s, self._decoder = idle_s, decoder
        self._messages: Iterator[list[Buffer]] = iter(())
        self._meta: reading.Meta | None = None
        self._chunk = self._row = self._read = self._sent = 0
        self._seen: tuple[int, int, int] | None = None
        self._grew = self._looked = 0.0
        self._ended = self._told = False

    def open(self) -> None:
        """The file must be there; reading goes on where the recording ended."""
        self._meta = self._checked()
        held = self._decoder
        self._chunk, self._row, self._read, self._sent = held.chunk, held.row, held.read, held.sent
        self._ended, self._grew = held.ended, time.monotonic()
        self._messages = self._all()

    def _checked(self) -> reading.Meta:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return reading.read_meta(self.path)
            except FileNotFoundError as error:
                raise OSError(f"{self.channel}: {self.path}: there is no such file") from error
            except (OSError, H5Error) as error:
                if time.monotonic() > deadline:
                    raise OSError(f"{self.channel}: {error}") from error
                time.sleep(LOOK_S)

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self._ended:
                raise TransportClosed(f"{self.channel}: {self.path} is read to its end")
            parts = self._next()
            if parts is not None:
                return Message(time.time_ns(), self.channel, tuple(parts))
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(left, LOOK_S))

    def _next(self) -> list[Buffer] | None:
        """The next message that the file has now. A file that is being changed is tried again."""
        try:
            return next(self._messages)
        except StopIteration:
            self._messages = self._all()
        except (OSError, H5Error) as error:
            self._messages = self._all()
            self._seen = None
            if time.monotonic() - self._grew > PATIENCE_S and not isinstance(error, BlockingIOError):
                raise OSError(f"{self.channel}: {error}") from error
            log.debug("%s: %s: is tried again", self.channel, error)
        return None

    def _all(self) -> Iterator[list[Buffer]]:
        """Messages of what is in the file now and was not given yet; the end, where it is reached."""
        stat = self.path.stat()
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if state != self._seen:
            self._meta = reading.read_meta(self.path)
            found, waiting = reading.chunks(self.path)
            scan = self.path.name[-256:]
            if not self._told and self._read == 0:
                number = self._meta.num_frames
                whole = number is not None and not waiting and reading.frames_in(self.path, found) >= number
                yield [header("start", scan=scan, meta={**self._known(), "at_once": whole})]
            self._told = True
            for number in range(self._chunk, len(found)):
                yield from self._of_chunk(scan, number, found[number])
            self._seen = None if waiting else state  # a part that comes late changes no master
        reason = self._over()
        if reason is not None:
            yield [header("end", scan=self.path.name[-256:], count=self._sent, reason=reason)]
            self._ended = True

    def _of_chunk(self, scan: str, number: int, file: Path) -> Iterator[list[Buffer]]:
        assert self._meta is not None
        while self._chunk == number:
            count, piece = reading.read_piece(self.path, number, file, self._row, self._meta.shape)
            yield from messages(scan, piece, number=number, row=self._row, read=self._read)
            self._sent += int(piece.weights.any(axis=(1, 2)).sum())
            self._row += len(piece)
            self._read += len(piece)
            self._grew = time.monotonic()
            if self._row >= count:
                self._chunk, self._row = number + 1, 0

    def _known(self) -> dict[str, Any]:
        assert self._meta is not None
        told = {"num_frames": self._meta.num_frames, "energy": self._meta.energy, "distance": self._meta.distance}
        return {key: value for key, value in told.items() if value is not None}

    def _over(self) -> str | None:
        """Why no more will come; None while more may."""
        assert self._meta is not None
        number, silent = self._meta.num_frames, time.monotonic() - self._grew
        if number is not None and self._read >= number:
            return "completed"
        limit = self._idle_s if self._idle_s is not None else UNKNOWN_END_S if number is None else None
        if limit is not None and silent > limit:
            return f"nothing was added to the file for {limit:g} s"
        return None

    def acknowledge(self, message: Message) -> None:
        """Nothing to do: it lies in a file."""

    def close(self) -> None:
        """Let go of the file."""
        self._messages = iter(())


class PtydScan:
    """A prepared file in ptypy's `.ptyd` format, finished or growing."""

    Parameters = PtydParameters
    unsimulated: ClassVar[str] = "reads a file, and nobody sends: give it one"

    @staticmethod
    def decoder(parameters: Any, channel: str) -> PtydDecoder:
        """Who understands the messages."""
        return PtydDecoder()

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: PtydDecoder) -> PtydTransport:
        """Where they come from."""
        return PtydTransport(_file(parameters, Path()), parameters.idle_s, channel, decoder)

    @staticmethod
    def complete(parameters: Any, home: Path) -> Any:
        """The parameters with what the file knows. Raises `ConfigurationError` where it cannot be read."""
        file, field = _file(parameters, home), "dfile" if parameters.source in IN_FILE else "source"
        try:
            meta = reading.read_meta(file)
        except (OSError, H5Error) as error:
            why = "there is no such file (yet): begin when its first chunk is written" if not file.exists() else str(error)
            raise ConfigurationError([Fault(field, getattr(parameters, field), f"{file}: {why}")]) from error
        known = {
            "shape": meta.shape,
            "center": meta.center,
            "psize": meta.psize,
            "energy": meta.energy,
            "distance": meta.distance,
            "label": meta.label,
        }
        if parameters.source in IN_FILE:
            off = {"rebin": None, "orientation": None, "auto_center": False, "save": None}
            return parameters.model_copy(update={**known, **off, "dfile": str(file)})
        if (wrong := parameters.off_frame(meta.shape)) is not None:
            raise ConfigurationError([Fault("center", parameters.center, wrong)])
        given = parameters.model_fields_set
        update = {"source": str(file)} | {key: value for key, value in known.items() if key not in given}
        if parameters.auto_center and "center" not in given:
            update["center"] = None
        if parameters.dfile is not None:
            sink = (home / parameters.dfile).absolute()
            update["dfile"] = str(sink.with_name(f"{sink.stem}_n{sink.suffix}") if sink.resolve() == file.resolve() else sink)
        return parameters.model_copy(update=update)


def _file(parameters: Any, home: Path) -> Path:
    """The file that is read."""
    own = parameters.source in IN_FILE
    name = getattr(parameters, "dfile", None) if own else parameters.source
    if not name:
        raise ConfigurationError([Fault("dfile" if own else "source", name, "needs the name of a .ptyd file")])
    return Path(home / str(name)).absolute()
