"""Documents of a real RunEngine with simulated devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.detectors.bluesky import BlueskyScan
from ptystream.detectors.bluesky.payload import packed
from ptystream.detectors.bluesky.protocol import BlueskyDecoder
from ptystream.detectors.bluesky.simulator import (
    Camera,
    FlyingDetector,
    ResourceCamera,
    Stage,
    fly_plan,
    motors,
    step_plan,
)
from ptystream.detectors.simulated.simulator import Beamline
from ptystream.events import Event, Rejected
from ptystream.transport import Message

Documents = list[tuple[str, dict[str, Any]]]
BEAMLINE = Beamline(frames=92, side=32, photons=2e5, step_px=3.0)
_STAGE: list[Stage] = []
_ENGINE: list[Any] = []
STEP = {"y": "event:stage_y; sign=-1", "x": "event:stage_x; sign=-1"}
FLY = {"y": "event:fly-y; sign=-1", "x": "event:fly-x; sign=-1"}


def stage() -> Stage:
    """The sample stage, its exposures counted from 0 again."""
    if not _STAGE:
        _STAGE.append(Stage(BEAMLINE))
    _STAGE[0].exposures = 0
    return _STAGE[0]


def engine() -> Any:
    """The RunEngine, without subscribers."""
    if not _ENGINE:
        from bluesky import RunEngine

        _ENGINE.append(RunEngine({}))
    _ENGINE[0].unsubscribe_all() if hasattr(_ENGINE[0], "unsubscribe_all") else None
    return _ENGINE[0]


def run(plan: Any, *subscribers: Any) -> Documents:
    """Run a plan; returns its documents."""
    documents: Documents = []
    RE = engine()
    tokens = [RE.subscribe(each) for each in (*subscribers, lambda name, document: documents.append((name, document)))]
    RE(plan)
    for token in tokens:
        RE.unsubscribe(token)
    return documents


def plan_of(kind: str, folder: Path, frames: int | None = None, **options: Any) -> Any:
    """A plan: 'step' (frames in the events), 'files' (Resource and Datum) or 'fly' (StreamResource and StreamDatum)."""
    place = stage()
    where = motors()
    path = place.path_um()[:frames]
    if kind == "fly":
        return fly_plan(FlyingDetector(place, folder, **{"rate_hz": 400.0, "samples_per_frame": 4, **options}))
    camera = Camera(place, where) if kind == "step" else ResourceCamera(place, where, folder)
    return step_plan(camera, where, path, options)


def decoder(role: str = "data", **given: Any) -> BlueskyDecoder:
    """A decoder of what `messages` gives."""
    return BlueskyScan.decoder(BlueskyScan.Parameters(**{"via": "process", **given}), f"s/{role}")


def feed(held: BlueskyDecoder, documents: Documents) -> list[Event]:
    """All events."""
    return [e for name, document in documents for e in held.feed(Message(0, "s/data", (packed(name, document),)))]


def rejected(events: list[Event]) -> dict[str, int]:
    """Reason → count."""
    found: dict[str, int] = {}
    for event in events:
        if isinstance(event, Rejected):
            found[event.reason] = found.get(event.reason, 0) + event.count
    return found


def lines(documents: Documents) -> str:
    """As JSON lines."""

    def plain(item: Any) -> Any:
        return item.tolist() if isinstance(item, (np.ndarray, np.generic)) else str(item)

    return "".join(json.dumps([name, document], default=plain) + "\n" for name, document in documents)
