"""The quick look: a picture of the frames that came, made without iteration, before the first one and beside them.

The engine's thread looks at frames for a small share of its time; pictures are made in a thread of their own. Nothing of it
changes the reconstruction, or can end a run: what goes wrong is said once, and the quick look is given up.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone

import numpy as np
from numpy.typing import NDArray

from ptystream.direct.quick import Found, Kept, Kind, Told, found
from ptystream.publish.measured import of_scan
from ptystream.publish.snapshot import Image
from ptystream.run import Run
from ptystream.run_state import Scan

from .convention import code_of
from .following import Following

log = logging.getLogger(__name__)

BUSY_S, IDLE_S = 0.02, 0.2
"""Longest time that frames are looked at between two passes, and while the run waits for frames."""
SHARE = 0.05
"""Of the engine's time, where passes follow each other."""
INTERVAL_S = 0.5
"""Shortest time between two pictures of a scan."""
RARELY = 10.0
"""So many times as long as one took passes before the next is begun: of one processor a tenth at most."""
LAST_S = 10.0
"""How long the end of a run waits for the last pictures, all in all."""
MARGIN = math.radians(1.0)
"""By so much an angle differs from the configured one before the log says so again."""


class Looker:
    """The quick look at one run. Every call comes from the engine's thread."""

    def __init__(self, run: Run, kind: Kind) -> None:
        self.run, self.kind = run, kind
        self._following: dict[str, Following] = {}
        self._pending: tuple[Future[tuple[Found, float]], Scan, Following, int] | None = None
        """The picture that is being made: of which scan, of what was kept of it, and of how many frames."""
        self._due: dict[str, float] = {}
        self._shown: dict[str, tuple[int, int]] = {}
        """By scan, of what there is a picture, or is being made: as of `_mark`."""
        self._said: dict[str, float] = {}
        """By scan, the angle that the log knows."""
        self._why = ""
        self._over = False
        self._owed, self._looked = 0.0, time.monotonic()

    def work(self, *, idle: bool = False) -> bool:
        """Look at frames that came, and have a picture made where that is due. Returns whether frames wait to be looked at.
        `idle`: the run has nothing else to do."""
        if self._over:
            return False
        now = time.monotonic()
        self._owed, self._looked = min(self._owed + SHARE * (now - self._looked), BUSY_S), now
        try:
            self._collect(0.0)
            behind, took = self._look(IDLE_S if idle else self._owed)
            if not idle:
                self._owed -= took
            return behind
        except Exception as error:
            self._give_up(error)
            return False

    def finish(self) -> None:
        """The run is over: all of its frames come into the picture."""
        if self._over:
            return
        until = time.monotonic() + LAST_S
        try:
            self._collect(LAST_S)
            self._look(LAST_S, until=until)
        except Exception as error:
            self._give_up(error)
        self.close()

    def close(self) -> None:
        """Give back memory; a picture that is still being made is nobody's. May be called again."""
        self._over = True
        self._following, self._pending = {}, None

    def _give_up(self, error: Exception) -> None:
        log.warning("%s: quick look (%s): given up: %s: %s", self.run.name, self.kind, type(error).__name__, error)
        self.close()

    # ------------------------------------------------------------------ frames

    def _look(self, seconds: float, *, until: float | None = None) -> tuple[bool, float]:
        """For so long at each scan, and have one picture made; with `until` one of each, and waited for until then. Returns
        whether frames wait to be looked at, and how long it took."""
        behind, began = False, time.perf_counter()
        for scan in self.run.scans.values():
            if not scan.taken and not scan.waiting:
                continue
            following = self._of(scan)
            following.look(seconds if until is None else until - time.monotonic())
            behind |= following.behind
            due = until is not None or time.monotonic() >= self._due.get(scan.label, 0.0)
            mark = _mark(scan, following)
            if following.frames and self._pending is None and due and mark != self._shown.get(scan.label):
                kept = following.kept()
                if kept is not None:
                    self._shown[scan.label] = mark
                    self._make(scan, following, kept)
                    self._collect(0.0 if until is None else until - time.monotonic())
        return behind, time.perf_counter() - began

    def _of(self, scan: Scan) -> Following:
        following = self._following.get(scan.label)
        if following is not None and following.outdated:
            log.info("%s: %s: quick look: begins anew, frames are cut another way", self.run.name, scan.label)
            following = None
            self._shown.pop(scan.label, None)
        if following is None:
            following = self._following[scan.label] = Following(self.run, scan, self.kind)
        return following

    # ------------------------------------------------------------------ pictures

    def _make(self, scan: Scan, following: Following, kept: Kept) -> None:
        made: Future[tuple[Found, float]] = Future()
        self._pending = made, scan, following, len(kept.places_m)
        # not of a pool: a picture that takes its time would keep the process from its end
        threading.Thread(target=_into, args=(made, kept, self.kind), name="quick look", daemon=True).start()

    def _collect(self, wait_s: float) -> None:
        """Take a picture that is ready."""
        if self._pending is None:
            return
        future, scan, following, frames = self._pending
        if not future.done() and wait_s <= 0:
            return
        try:
            made, took = future.result(wait_s)
        except NotDone:
            return
        except ValueError as error:  # too little yet, as a rule
            self._pending = None
            self._due[scan.label] = time.monotonic() + INTERVAL_S
            if str(error) != self._why:
                self._why = str(error)
                log.info("%s: %s: quick look (%s): not yet: %s", self.run.name, scan.label, self.kind, error)
            return
        self._pending = None
        if self._following.get(scan.label) is not following or following.outdated:
            return  # of frames as they were cut before
        self._due[scan.label] = time.monotonic() + max(INTERVAL_S, RARELY * took)
        self._show(scan, made, frames)

    def _show(self, scan: Scan, made: Found, frames: int) -> None:
        run = self.run
        name = f"quick look: {self.kind}" + (f" of {scan.label}" if len(run.scans) > 1 else "")
        in_metres = scan.model.geometry.pixel_size_m is not None
        image = Image(shown(made, self.kind)[None].astype(np.complex64), made.pixel_m if in_metres else None, made.first)
        run.looks = {**run.looks, name: (image, None if self.kind == "dpc" else made.known.astype(np.float32))}
        figure: dict[str, object] = {"kind": self.kind, "frames": frames}
        if made.fit is not None and made.fit.used is not None:  # without, none were found
            figure["aberrations_m"] = [float(c) for c in made.fit.coefficients_m]
        if made.told is not None:
            figure |= self._figures(scan, made.told)
            self._say(scan, made.told)
        run.quality = {**run.quality, "quick_look": figure | {"measured_ns": time.time_ns(), "iteration": run.iterations}}

    def _figures(self, scan: Scan, told: Told) -> dict[str, object]:
        """Rotation as `raster.rotation` is, degrees; the centre of the disk, and by how much it moves from the first row to the
        last and from the first column to the last, pixels of the prepared frame."""
        per_pixel = np.asarray(self._following[scan.label].per_pixel)
        raster = scan.buffer.parameters.raster
        slope = told.plane.slope / per_pixel[:, None]
        if raster is not None:
            slope = slope * (np.subtract(raster.points, 1) * np.broadcast_to(raster.step, 2))
        moved = {"descan_px": [float(v) for v in slope.T.ravel()]} if raster is not None else {}
        return {
            "rotation_deg": -math.degrees(told.angle),
            "curl": told.rest,
            "mirrored": "yes" if told.mirrored else "no",
            "center_px": [float(v) for v in told.plane.offset / per_pixel],
            **moved,
        }

    def _say(self, scan: Scan, told: Told) -> None:
        """Once for each angle that is new, and once where patterns are mirrored: what was found, and what to set."""
        angle = math.inf if told.mirrored else told.angle
        before = self._said.get(scan.label)
        if before == angle or (before is not None and abs(angle - before) < MARGIN) or not (told.believed or told.mirrored):
            return
        self._said[scan.label] = angle
        lines = "; ".join(f"{name}: {text}" for name, text in of_scan(self._figures(scan, told)).items())
        path, p = f"scans.{scan.label}.data", scan.buffer.parameters
        if told.mirrored:
            transpose, flipud, fliplr = p.operations()
            lines += f"; to mirror them back: {path}.orientation: {code_of((transpose, flipud, not fliplr))}"
        elif p.raster is not None:
            lines += f"; to take it into account: {path}.raster.rotation: {-math.degrees(told.angle):.1f}"
        log.warning("%s: %s: %s", self.run.name, scan.label, lines)


def shown(made: Found, kind: Kind) -> NDArray[np.complex128]:
    """What viewers get: phases are weak as a rule, so the amplitude has them too, from the least to the largest."""
    if kind in ("dpc", "tcbf"):
        return made.wave
    low, high = (float(edge(made.picture[made.known])) for edge in (np.min, np.max))
    return np.asarray((made.picture - low + max(1e-3 * (high - low), 1e-9)) * np.exp(1j * np.angle(made.wave)))


def _mark(scan: Scan, following: Following) -> tuple[int, int]:
    """What a picture would be made of: another where frames have come, or were withdrawn."""
    return following.frames, scan.frames


def _into(made: Future[tuple[Found, float]], kept: Kept, kind: Kind) -> None:
    """Make a picture, and measure its time on a processor."""
    began = time.thread_time()
    try:
        made.set_result((found(kept, kind), time.thread_time() - began))
    except BaseException as error:
        made.set_exception(error)
