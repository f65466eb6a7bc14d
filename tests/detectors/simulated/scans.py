"""Helpers: what a simulated source sends, and a session that reconstructs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.codecs import decode
from ptystream.detectors.zmq.protocol import NativeDecoder
from ptystream.events import Frames, Rejected, Samples, ScanEnded, ScanStarted
from ptystream.metrics import Metrics
from ptystream.params.load import load, plugins, source_parameters
from ptystream.params.reference import PtyScanParameters
from ptystream.plan import make_plan
from ptystream.quality import align
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.transport import Surroundings, TransportClosed


def parameters(name: str, **given: Any) -> Any:
    """Checked parameters of a source."""
    return source_parameters(plugins("detectors")[name], PtyScanParameters)(name=name, **given)


def transport(name: str, decoder: NativeDecoder | None = None, *, around: Surroundings | None = None, **given: Any) -> Any:
    """An open transport of a source."""
    made = plugins("detectors")[name].transport(
        parameters(name, **given), "s/data", decoder or NativeDecoder(), around or Surroundings()
    )
    made.open()
    return made


def drain(source: Any, decoder: NativeDecoder | None = None, *, messages: int | None = None) -> list[Any]:
    """Events of (up to so many) messages; None stands for a WAIT."""
    decoder = decoder or NativeDecoder()
    events: list[Any] = []
    while messages is None or messages > 0:
        try:
            message = source.receive(10.0)
        except TransportClosed:
            break
        if message is None:
            events.append(None)
            continue
        events += decoder.feed(message)
        messages = None if messages is None else messages - 1
    assert not any(isinstance(event, Rejected) for event in events)
    return events


def sent(name: str, **given: Any) -> tuple[np.ndarray, np.ndarray]:
    """All frames and positions of a scan."""
    events = drain(transport(name, **given))
    assert isinstance(events[0], ScanStarted)
    assert isinstance(events[-1], ScanEnded)
    frames = np.stack([decode(p) for e in events if isinstance(e, Frames) for p in e.payloads])
    places = np.concatenate([np.stack([e.channels["y"], e.channels["x"]], 1) for e in events if isinstance(e, Samples)])
    assert events[-1].count == len(frames) == len(places)
    return frames, places


def configured(folder: Path, scans: dict[str, dict[str, Any]], numiter: int, **root: Any) -> dict[str, Any]:
    """A configuration of one run of these scans: {label: {'data': …, 'illumination': …}}."""
    return {
        "run": "t",
        "threads": 1,
        "io": {"home": str(folder), "rfile": "%(run)s.ptyr"},
        "scans": {label: {"name": "Full", **entry} for label, entry in scans.items()},
        "engines": {"e": {"name": "DM", "numiter": numiter, "average_last": 5}},
        **root,
    }


def reconstruct(folder: Path, scans: dict[str, dict[str, Any]], numiter: int = 60, **root: Any) -> ptyr.Result:
    """The result of one run."""
    given = load(configured(folder, scans, numiter, **root))
    plan = replace(make_plan(given), warm_up=lambda: None)  # so that the engine looks as soon as frames come
    (path,) = Session(plan, metrics=Metrics()).run()
    return ptyr.read(path)


def agreement(found: Any, truth: Any, coverage: np.ndarray) -> float:
    """Difference to the true object where there was light, without what ptychography cannot know."""
    ours = np.zeros(found.shape, complex)
    top, left = np.subtract(found.offset, truth.offset)
    place = np.s_[max(0, -top) :, max(0, -left) :]
    part = truth.object[0][max(0, top) :, max(0, left) :]
    rows, columns = (min(a, b) for a, b in zip(ours[place].shape, part.shape, strict=True))
    ours[place][:rows, :columns] = part[:rows, :columns]
    return align(ours, found.data[0], coverage * (np.abs(ours) > 0)).complex_rms
