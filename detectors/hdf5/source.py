"""`Hdf5Scan`: frames, positions or both from HDF5 files, finished or followed while another program writes them."""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import field_validator, model_validator

from ptystream.events import Buffer
from ptystream.params.base import Branch, parameter
from ptystream.params.errors import ConfigurationError, Fault
from ptystream.params.home import located
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.storage.h5 import H5Error
from ptystream.storage.opened import Opened
from ptystream.transport import Message, TransportClosed

from ..zmq.protocol import header
from .follow import Follow, Wanted, known, mask_of
from .found import look
from .paths import Place, parse
from .protocol import Hdf5Decoder
from .reading import FrameDataset, NumberDataset

log = logging.getLogger(__name__)

LOOK_S = 0.05
"""How often a file, or the folder for the next one, is looked at while nothing new is there."""
PATIENCE_S = 10.0
"""A file that cannot be read, or lacks what is to be read, is tried again for so long: it is being made."""


class Hdf5Parameters(Branch):
    """What is read from which file. Places in a file are written as '/group/dataset', a column of a table as
    '/group/table[:,1]' (a row as '[1,:]'), an attribute as '/group/dataset@name'; ' in um' behind them is the unit, where
    the dataset's own attribute 'units' does not tell it."""

    file: str = parameter("scan.h5", ours=True)
    """The file, below `io.home`; or a pattern with '*' or '?': then each file of that name that appears is the next scan."""

    existing: bool = parameter(False, ours=True)
    """Of a pattern: whether the files that are there already are read too, the oldest first."""

    frames: str | None = parameter(None, ours=True)
    """Dataset of the frames, (frame, y, x); further axes before the last two count frames too. None: no frames are read."""

    samples: dict[str, str] = parameter({}, ours=True)
    """Channel → where its readings are, such as {y: '/entry/stage/y in um', x: '/entry/stage/x in um'}. Beside frames, y and x
    are the positions, one per frame; in a source of positions, `channels` says what the names mean."""

    times: str | None = parameter(None, ours=True)
    """Time stamps of the frames, or of the samples where no frames are read; seconds where no unit is told."""

    energy_from: str | None = parameter(None, ours=True)
    """Where the photon energy is (keV where no unit is told); used where `scans.*.data.energy` is not given."""

    distance_from: str | None = parameter(None, ours=True)
    """Where the detector's distance is (metres where no unit is told); used where `distance` is not given."""

    psize_from: str | tuple[str, str] | None = parameter(None, ours=True)
    """Where the detector's pixel size is, one place or (y, x); used where `psize` is not given."""

    center_from: tuple[str, str] | None = parameter(None, ours=True)
    """Where the beam centre is, (y, x) in pixels; used where `center` is not given."""

    mask_from: str | None = parameter(None, ours=True)
    """Where the detector's mask is, (y, x): pixels that are not 0 are ignored, as NeXus and CXI have it. Used where `mask` is
    not given."""

    expected: str | None = parameter(None, ours=True)
    """Where the number of frames (or samples) is told that will come: the scan ends with them."""

    finished: str | None = parameter(None, ours=True)
    """What becomes other than 0, or not empty, when the file is complete: '/entry@finished', '/entry/end_time'."""

    idle_s: float | None = parameter(60.0, lower=0.0, ours=True)
    """A file to which nothing was added for so long is complete, seconds; None: never. A file that its writer has closed is
    complete at once."""

    folders: tuple[str, ...] = parameter((), ours=True)
    """Further folders to whose files links and virtual datasets may lead, beside the folder of the file itself."""

    @field_validator("file")
    @classmethod
    def _below_home(cls, value: str) -> str:
        if not value or value.endswith("/") or "\0" in value:
            raise ValueError("must be the name of a file, or a pattern of names")
        return located(value)

    @field_validator("folders")
    @classmethod
    def _folders_below_home(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(located(folder) for folder in value)

    @field_validator(
        "samples", "times", "energy_from", "distance_from", "psize_from", "center_from", "mask_from", "expected", "finished"
    )
    @classmethod
    def _places(cls, value: Any) -> Any:
        texts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
        for text in texts:
            if text is not None:
                parse(text)
        return value

    @field_validator("frames")
    @classmethod
    def _whole(cls, value: str | None) -> str | None:
        if value is not None and parse(value) != Place(value.strip()):
            raise ValueError("must be the path of a dataset, without attribute, index or unit")
        return value

    @model_validator(mode="after")
    def _something(self) -> Self:
        if isinstance(self, PtyScanParameters) and self.frames is None:
            raise ValueError("frames: None: a source of frames needs the path of a dataset, such as '/entry/data/data'")
        if isinstance(self, PositionsParameters) and not self.samples:
            raise ValueError("samples: {}: a source of positions needs channels, such as {y: '/entry/y in um', x: …}")
        return self


def wanted_of(p: Any) -> Wanted:
    """What the parameters ask for, as places."""

    def place(text: str | None) -> Place | None:
        return None if text is None else parse(text)

    told = {"energy": p.energy_from, "distance": p.distance_from, "psize": p.psize_from, "center": p.center_from}
    places = {
        name: tuple(parse(text) for text in ((value,) if isinstance(value, str) else value))
        for name, value in told.items()
        if value is not None
    }
    return Wanted(
        p.frames,
        {name: parse(text) for name, text in p.samples.items()},
        place(p.times),
        places,
        place(p.mask_from),
        place(p.expected),
        place(p.finished),
        p.folders,
        getattr(p, "signals", None) is not None,
    )


class Hdf5Transport:
    """Gives what is in the files as messages. See `ptystream.transport.Transport`."""

    def __init__(self, parameters: Any, channel: str, decoder: Hdf5Decoder) -> None:
        self.channel = channel
        self._p, self._decoder, self._wanted = parameters, decoder, wanted_of(parameters)
        self._file = Path(parameters.file).absolute()
        self._pattern = glob.has_magic(parameters.file)
        self._old: set[str] = set()
        """Names that match the pattern and are not read (again)."""
        self._follow: Follow | None = None
        self._messages: Iterator[list[Buffer]] = iter(())
        self._read_at = 0.0
        """When the file could last be read."""

    def open(self) -> None:
        """Looks what is there; reading goes on where the recording ended."""
        folder = self._file.parent
        while glob.has_magic(str(folder)):
            folder = folder.parent
        if not folder.is_dir():
            raise OSError(f"{self.channel}: {self._file}: there is no folder {folder}")
        held = self._decoder
        self._old = set(held.over)
        if self._pattern and not self._p.existing:
            # After a restart, files that appeared while nobody looked are new.
            self._old |= {p.name[-256:] for p in self._there() if p.name[-256:] != held.scan and not self._is_later(p)}
        if not self._pattern and self._file.name[-256:] in held.over:
            raise OSError(f"{self.channel}: {self._file}: was read to its end before the session was interrupted")

    def _is_later(self, path: Path) -> bool:
        return 0 < self._decoder.newest_ns < path.stat().st_mtime_ns

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None after `timeout_s`. Raises `TransportClosed` behind the only file."""
        deadline = time.monotonic() + timeout_s
        while True:
            parts = self._next()
            if parts is not None:
                return Message(time.time_ns(), self.channel, tuple(parts))
            if self._follow is not None and self._follow.ended:
                if not self._pattern:
                    raise TransportClosed(f"{self.channel}: {self._file} is read to its end")
                self._old.add(self._follow.scan)
                self._follow = None
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(left, LOOK_S))

    def _next(self) -> list[Buffer] | None:
        """The next message that is there now. A file that is being made is tried again."""
        if self._follow is None:
            self._begin()
        follow = self._follow
        if follow is None or follow.ended:
            return None
        try:
            parts = next(self._messages, None)
        except (OSError, H5Error, ValueError, KeyError, RuntimeError) as error:
            # h5py tells damaged structures by several classes; none of them may end more than this file.
            self._messages = follow.look()
            if time.monotonic() - self._read_at < PATIENCE_S or isinstance(error, BlockingIOError):
                log.debug("%s: %s: is tried again", self.channel, error)
                return None
            if not self._pattern:
                raise OSError(f"{self.channel}: {error}") from error
            log.error("%s: %s: the file is given up", self.channel, error)
            follow.ended = True
            return [header("end", scan=follow.scan, count=None, reason=f"the file cannot be read: {error}"[:200])]
        self._read_at = time.monotonic()
        if parts is None:
            self._messages = follow.look()
        return parts

    def _begin(self) -> None:
        path = self._file
        if self._pattern:
            fresh = [p for p in self._there() if p.name[-256:] not in self._old]
            if not fresh:
                return
            held = self._decoder.scan
            path = next((p for p in fresh if p.name[-256:] == held), fresh[0])
        elif not path.exists():
            return
        resumed = self._decoder.scan == path.name[-256:]
        frames, samples = (self._decoder.frames, self._decoder.samples) if resumed else (0, 0)
        self._follow = Follow(path, self._wanted, frames=frames, samples=samples, told=resumed, idle_s=self._p.idle_s)
        self._messages, self._read_at = self._follow.look(), time.monotonic()

    def _there(self) -> list[Path]:
        """Files that match, the oldest first."""
        found = []
        for name in glob.iglob(str(self._file)):
            try:
                found.append((os.stat(name).st_mtime_ns, name))
            except OSError:  # renamed or removed meanwhile
                continue
        return [Path(name) for _, name in sorted(found)]

    def acknowledge(self, message: Message) -> None:
        """Nothing to do: it lies in a file."""

    def close(self) -> None:
        """Let go of the file."""
        self._messages = iter(())


class Hdf5Scan:
    """Datasets of HDF5 files (NeXus, CXI, whatever has frames in it), finished or growing."""

    Parameters = Hdf5Parameters
    unsimulated: ClassVar[str] = "`python -m ptystream.detectors.hdf5.simulator FILE` writes a growing file that it can follow"
    tells_geometry: ClassVar[bool] = True

    @staticmethod
    def decoder(parameters: Any, channel: str) -> Hdf5Decoder:
        """Who understands the messages."""
        return Hdf5Decoder()

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: Hdf5Decoder) -> Hdf5Transport:
        """Where they come from."""
        return Hdf5Transport(parameters, channel, decoder)

    @staticmethod
    def found(parameters: Any, transport: Any, decoder: Any, seconds: float) -> Iterator[str]:
        """Lines for a person: the file, and every place in it. Raises `OSError` with what is wrong, and what to do."""
        return look(parameters, wanted_of(parameters))

    @staticmethod
    def complete(parameters: Any, home: Path) -> Any:
        """The parameters with what the file knows, where it is there already.

        Raises `ConfigurationError` where it can be read and what is asked for is not in it.
        """
        path = Path(parameters.file)
        if glob.has_magic(parameters.file) or not path.exists():
            return parameters
        wanted = wanted_of(parameters)
        try:
            with Opened(path.absolute(), wanted.folders) as file:
                told, mask = known(file, wanted), mask_of(file, wanted)
                FrameDataset(file, parameters.frames, wanted.vectors)
                for place in wanted.samples.values():
                    NumberDataset(file, place)
        except H5Error as error:
            raise ConfigurationError([Fault("file", parameters.file, str(error))]) from error
        except OSError as error:
            log.info("%s: cannot be read yet: %s", path, error)
            return parameters
        told.pop("num_frames", None)
        told |= {} if mask is None else {"mask": mask.astype(np.uint8)}
        given = parameters.model_fields_set
        return parameters.model_copy(update={key: _pair(value) for key, value in told.items() if key not in given})


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
