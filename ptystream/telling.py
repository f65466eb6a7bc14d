"""What a session tells of its runs: snapshots for viewers, plots, metrics, and numbers for a progress line."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import headline
from ptystream.metrics import Metrics
from ptystream.publish.documenting import Documents
from ptystream.publish.measured import told
from ptystream.publish.pace import Pace
from ptystream.publish.plotting import Plotter
from ptystream.publish.publisher import Publisher
from ptystream.publish.snapshot import Image, Snapshot
from ptystream.run import Run


class Follower(Protocol):
    """Is given snapshots while somebody wants them; `offer` does not wait."""

    wanted: bool

    def offer(self, run: Run, snapshot: Snapshot) -> None: ...


class Teller:
    """Publishes and plots runs where that is due, and keeps the metrics up to date. Called from the engine's thread."""

    def __init__(
        self,
        metrics: Metrics,
        publisher: Publisher | None,
        plotter: Plotter | None,
        interval_s: float,
        follower: Follower | None = None,
        share: float = 1.0,
        documents: Documents | None = None,
    ) -> None:
        """`interval_s`, `share`: as of `io.publish`."""
        self.metrics, self.publisher, self.plotter = metrics, publisher, plotter
        self.interval_s, self.share = interval_s, share
        self.follower, self.documents = follower, documents
        self._told: dict[int, Told] = {}

    def of(self, run: Run) -> Told:
        """What was told of this run."""
        told = self._told.get(id(run))
        return told if told is not None else self._told.setdefault(id(run), Told(self))

    @property
    def runs(self) -> int:
        """Those that share the engine's time."""
        return max(1, len(self._told))

    def rates(self, run: Run) -> dict[str, float]:
        """Those told last, of a run that is not over."""
        told = self._told.get(id(run))
        return {"frames_per_second": 0.0} if told is None else dict(told.rates)

    def forget(self, run: Run) -> None:
        """The run is over."""
        if self.documents is not None:
            self.documents.over(run)
        self.metrics.forget(run)
        self._told.pop(id(run), None)


class Told:
    """What was told of one run, and when."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self.rates: dict[str, float] = {"frames_per_second": 0.0}
        self._pace = Pace()
        self._received_before: tuple[float, int] = (time.monotonic(), 0)

    def tell(self, run: Run, *, force: bool, current: bool = True) -> None:
        """Publish and plot a snapshot where one is due, and bring the metrics up to date.

        `force`: whatever the intervals say. `current`: of this run the gauges tell; of all runs the counters do.
        """
        teller, now = self._teller, time.monotonic()
        publish = force or self._pace.due(now, teller.interval_s)
        plotter = teller.plotter
        plot = plotter is not None and bool(run.iterations) and plotter.due(run.name, run.iterations, last=force)
        if not publish and not plot:
            return
        if teller.documents is not None:
            teller.documents.tell(run)
        ledger = run.ledger()
        if publish:
            then, before = self._received_before
            if now - then >= 1.0 or force:
                self.rates["frames_per_second"] = max(0, ledger.get("received", 0) - before) / max(now - then, 1e-3)
                self._received_before = (now, ledger.get("received", 0))
        follower = teller.follower if publish and current else None
        snapshot = None
        if teller.publisher is not None or plot or (follower is not None and follower.wanted):
            if run.newest_arrival_ns is not None:
                self.rates["latency_seconds"] = (run.used_ns - run.newest_arrival_ns) / 1e9
            snapshot = run.snapshot(self.rates)
        if plotter is not None and plot and snapshot is not None:
            plotter.offer(snapshot, run.iter_info[-1] | run.series.keys(), last=force)
        if follower is not None and snapshot is not None:
            follower.offer(run, snapshot)
        if publish:
            if teller.publisher is not None and snapshot is not None:
                teller.publisher.offer(with_looks(snapshot, run.looks))
                teller.metrics.viewers(teller.publisher.viewers)
            teller.metrics.run(run, ledger, time.time_ns(), current=current)
            self._pace.made(now, time.monotonic(), teller.share / teller.runs)


def with_looks(snapshot: Snapshot, looks: Mapping[str, tuple[Image, NDArray[np.float32] | None]]) -> Snapshot:
    """What viewers see: behind the objects, or alone where there are none yet, the pictures that needed no iteration."""
    if not looks:
        return snapshot
    images = {name: image for name, (image, _) in looks.items()}
    known = {name: there for name, (_, there) in looks.items() if there is not None}
    return replace(snapshot, object={**snapshot.object, **images}, coverage={**snapshot.coverage, **known})


def status_of(run: Run) -> dict[str, Any]:
    """Numbers of a run for a progress line."""
    ledger = run.ledger()
    errors, misfit = (run.errors[-1:], run.misfit[-1:])
    age = None if run.newest_arrival_ns is None else (time.time_ns() - run.newest_arrival_ns) / 1e9
    return {
        "run": run.name,
        "state": run.state,
        "failures": run.failures,
        "received": ledger.get("received", 0),
        "expected": ledger.get("expected", 0),
        "used": ledger.get("used", 0),
        "iteration": run.iterations,
        "error": headline(errors[0][-1]) if errors else None,
        "misfit": float(misfit[0][-1, 0]) if misfit else None,
        "age_s": age,
        "quality": told(run.quality, time.time_ns(), in_metres=run.in_metres),
    }
