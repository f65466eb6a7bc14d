"""`ArrayScan`: a NumPy array as a source, in a `.npy` file that is read where it lies, or in memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, PlainSerializer, field_validator, model_validator

from ptystream.params.attached import Attached, attached
from ptystream.params.base import Branch, parameter
from ptystream.params.errors import ConfigurationError, Fault
from ptystream.params.home import located
from ptystream.transport import Message, TransportClosed

from ..zmq.protocol import header
from .protocol import ArrayDecoder, FrameArray

ArrayInMemory = Annotated[
    np.ndarray | Attached | list[Any] | str | None, AfterValidator(attached), PlainSerializer(str, when_used="json")
]


class ArrayParameters(Branch):
    """Where the frames are: shape (frame, y, x), or (scan y, scan x, y, x), which is read row by row. With `signals` a frame is
    one axis: (frame, signal) or (scan y, scan x, signal)."""

    file: str | None = parameter(None, ours=True)
    """A .npy file, below `io.home`; it is not read into memory. None: `array` is given."""

    array: ArrayInMemory = parameter(None, ours=True)
    """The frames themselves, in a script. None: `file` is given."""

    @field_validator("file")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.endswith(".npy"):
            raise ValueError("must end in .npy; Hdf5Scan reads HDF5 files, and PtydScan .ptyd files")
        return located(value)

    @model_validator(mode="after")
    def _one(self) -> ArrayParameters:
        if (self.file is None) == (self.array is None):
            raise ValueError("file: must be given, or `array`, and not both")
        return self


class ArrayTransport:
    """Gives the frames of an array as messages. See `ptystream.transport.Transport`."""

    def __init__(self, parameters: Any, channel: str, decoder: ArrayDecoder) -> None:
        self.channel = channel
        self._p, self._decoder = parameters, decoder
        self._frames: FrameArray | None = None
        self._next = 0
        self._told = self._ended = False
        self._scan = Path(parameters.file or "array").name[-256:]

    def open(self) -> None:
        """The file must be there; reading goes on where the recording ended."""
        try:
            self._frames = FrameArray(opened(self._p), self._p.signals)
        except (OSError, ValueError) as error:
            raise OSError(f"{self.channel}: {self._p.file or 'array'}: {error}") from error
        self._next, self._told, self._ended = self._decoder.read, self._decoder.started, self._decoder.ended

    def receive(self, timeout_s: float) -> Message | None:
        """The next message. Raises `TransportClosed` behind the last one."""
        assert self._frames is not None
        if self._ended:
            raise TransportClosed(f"{self.channel}: the array is read to its end")
        total = self._frames.total
        if not self._told:
            self._told = True
            parts: list[Any] = [header("start", scan=self._scan, meta={"num_frames": total, "at_once": True})]
        elif self._next < total:
            parts, self._next = self._frames.message(self._scan, self._next)
        else:
            self._ended = True
            parts = [header("end", scan=self._scan, count=total, reason="completed")]
        return Message(time.time_ns(), self.channel, tuple(parts))

    def acknowledge(self, message: Message) -> None:
        """Nothing to do: it lies in an array."""

    def close(self) -> None:
        """Let go of the array."""
        self._frames = None


def opened(parameters: Any) -> NDArray[Any]:
    """The array of these parameters, a file's where it lies. Raises `OSError` or `ValueError`."""
    if parameters.array is not None:
        if parameters.array.array is None:
            raise ValueError("was given in memory, and is gone: give it again, or replay a recording")
        return np.asarray(parameters.array.array)
    with open(parameters.file, "rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("is no .npy file")
    found = np.load(parameters.file, mmap_mode="r", allow_pickle=False)
    return np.asarray(found)


class ArrayScan:
    """Frames from a NumPy array, in a .npy file or in memory: simulated or converted 4D-STEM data."""

    Parameters = ArrayParameters
    unsimulated: ClassVar[str] = "reads an array, and nobody sends: give it one"
    gives_positions: ClassVar[bool] = False

    @staticmethod
    def decoder(parameters: Any, channel: str) -> ArrayDecoder:
        """Who understands the messages."""
        return ArrayDecoder()

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: ArrayDecoder) -> ArrayTransport:
        """Where they come from."""
        return ArrayTransport(parameters, channel, decoder)

    @staticmethod
    def complete(parameters: Any, home: Path) -> Any:
        """The parameters with the frames' side, where `shape` is not given. Raises `ConfigurationError` for what is not there or
        cannot be frames; an array that was in memory is believed to have been right."""
        given = "shape" in parameters.model_fields_set
        if parameters.array is not None and parameters.array.array is None:
            sides = parameters.array.shape[-2:]
            return parameters if given or len(sides) < 2 else parameters.model_copy(update={"shape": min(sides)})
        name = "array" if parameters.array is not None else "file"
        try:
            found = FrameArray(opened(parameters), parameters.signals)
        except (OSError, ValueError) as error:
            why = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise ConfigurationError([Fault(name, getattr(parameters, name), why)]) from error
        return parameters if given else parameters.model_copy(update={"shape": min(found.shape)})
