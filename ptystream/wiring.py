"""What a session is told: the sources, scans and engines of one configuration, already validated, and what to do with results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ptystream.assessment.assessor import Assessor
from ptystream.assessment.looking import Looker
from ptystream.autosave import Autosave
from ptystream.checkpoint import Checkpoint
from ptystream.decoder import Decoder
from ptystream.engine import Context
from ptystream.epochs import EpochMap
from ptystream.loop import LoopSettings
from ptystream.params.load import Configuration
from ptystream.run import Run
from ptystream.run_state import EngineEntry
from ptystream.scan.ptyscan import PtyScan
from ptystream.transport import Transport


@dataclass(frozen=True, slots=True)
class Channel:
    """One source of the configuration: where its messages come from and who understands them."""

    name: str
    """'<scan label>/data', '<scan label>/positions'."""
    transport: Transport
    decoder: Decoder


@dataclass(frozen=True, slots=True)
class ScanEntry:
    """One entry of `scans`: makes what a new run needs of it."""

    label: str
    make: Callable[[Mapping[str, Any] | None], tuple[PtyScan, Any]]
    """Decisions of an earlier run or None → (buffer, scan model)."""
    epochs: EpochMap
    follows: str | None = None
    """Label of the scan after which it comes from the same sources."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a session is told, already validated."""

    name: str
    channels: Sequence[Channel]
    scans: Sequence[ScanEntry]
    engines: Sequence[EngineEntry]
    context: Context
    loop: LoopSettings
    runs: int | None = 1
    """How many runs until the session ends; None: until it is stopped."""
    overlap: int = 1
    """How many of them are reconstructed at a time."""
    aborted: Literal["finish", "save", "discard"] = "finish"
    """What becomes of a scan that its source aborted."""
    publish_interval_s: float = 0.1
    publish_share: float = 1.0
    """Largest share of the engine's time that snapshots may take."""
    timeout_s: float | None = None
    """A scan from which nothing came for so long is ended; None: never."""
    beam_timeout_s: float | None = 3600.0
    """So much longer where the beam was lost; None: without a limit."""
    save: Callable[[Run], Path | None] = lambda run: None
    """Writes the result of a run whose engine has finished, and returns its path."""
    benchmark: Callable[[Run], None] = lambda run: None
    """Told after each engine, when its times are known."""
    autosave: Autosave | None = None
    """Writes dumps while a run is iterating."""
    look: Callable[[Run], None] = lambda run: None
    """Called between two passes: files that an engine's user wants while it runs."""
    over: Callable[[Run], None] = lambda run: None
    """The same when a run is over, before its result is saved."""
    checkpoint: Callable[[str], Checkpoint | None] = lambda name: None
    """Name of a run → what it goes on from, where it was cut off in an interrupted session."""
    close: Callable[[], object] = lambda: None
    """Waits for what is still being written when the runs are over."""
    warm_up: Callable[[], None] = lambda: None
    """Compiles what the engines need, while the session waits for its first frame."""
    configuration: Configuration | None = None
    """What it was made from; parameters that are steered change in it."""
    assess: Callable[[Run], Assessor] = lambda run: Assessor(run, share=0.0)
    """Makes what measures the quality of a run while it runs."""
    look_quickly: Callable[[Run], Looker | None] = lambda run: None
    """Makes what shows a picture without iteration; None: not wanted."""
    quick_frames: int | None = None
    """Frames from which on such a picture is made, before an engine has enough."""
    device: str = ""
    """In one line for the user, where the engines run."""
