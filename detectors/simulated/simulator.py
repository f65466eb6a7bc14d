"""A beamline that is not there: its frames and encoder readings on two native-wire senders, at a rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptystream.chance import of_drawing
from ptystream.model.geometry import KEV_METRES
from ptystream.scan.positions import fermat_scan

from ..zmq.sender import Sender
from .exposure import Experiment
from .pictures import flower, moon


@dataclass(frozen=True, slots=True)
class Beamline:
    """What is simulated."""

    frames: int = 400
    side: int = 128
    """Pixels of a frame's side."""
    rate_hz: float = 100.0
    photons: float = 1e6
    """In the beam, per frame."""
    pixel_m: float = 3e-8
    """Object pixel."""
    step_px: float = 9.0
    """Distance of neighbouring positions, object pixels: one frame per its square."""
    samples_per_frame: int = 10
    """Encoder readings during one exposure."""
    encoder_noise_m: float = 2e-9
    """Standard deviation of one reading; readings are independent of each other."""
    frames_per_message: int = 1
    seed: int = 0
    scan_id: str = "simulated"
    places_m: NDArray[np.float64] | None = None
    """Where the beam is, (frame, 2), (y, x), instead of the spiral."""

    def positions_m(self) -> NDArray[np.float64]:
        """Where the beam is, (frame, 2), (y, x): a Fermat spiral, or what was given."""
        return fermat_scan(self.step_px * self.pixel_m, self.frames) if self.places_m is None else self.places_m

    def probe(self) -> NDArray[np.complex128]:
        """(y, x), Σ|P|² = photons."""
        wave = moon((self.side, self.side), self.seed)
        return np.asarray(wave * np.sqrt(self.photons / (np.abs(wave) ** 2).sum()))

    def object(self) -> NDArray[np.complex128]:
        """(y, x); its middle is at physical zero."""
        reach = int(np.ceil(np.abs(self.positions_m()).max() / self.pixel_m)) + self.side // 2 + 2
        return flower((2 * reach, 2 * reach), self.seed)

    def experiment(self, truth: tuple[Any, Any] | None = None) -> Experiment:
        """What is exposed; `truth` is (probe, object) where they are made already."""
        probe, sample = truth or (self.probe(), self.object())
        offset = (-(sample.shape[0] // 2), -(sample.shape[1] // 2))
        return Experiment(probe[None], sample[None], offset, self.positions_m() / self.pixel_m)

    def pattern(self, number: int, truth: tuple[Any, Any] | None = None) -> NDArray[np.uint16]:
        """Counts of one frame, (y, x), zero frequency in the middle: Poisson, keyed by (seed, frame)."""
        random = of_drawing(self.seed, 1000 + number)
        counts = random.poisson(self.experiment(truth).intensity(number))
        return np.asarray(np.minimum(counts, 65534).astype(np.uint16))

    def geometry(self) -> dict[str, float]:
        """Energy, distance and detector pixel that give `pixel_m`, as parameters of `scans.*.data`."""
        energy, distance = 7.2, 2.0
        return {
            "energy": energy,
            "distance": distance,
            "psize": KEV_METRES / energy * distance / (self.side * self.pixel_m),
        }


def run(
    beamline: Beamline,
    frames: Sender,
    positions: Sender | None = None,
    *,
    wait: Callable[[float], bool] | None = None,
) -> None:
    """Send one scan; without `positions` its frames alone. `wait(seconds)` paces it and ends it early where it answers True.

    Patterns are computed before the first one is sent, so that the rate is the detector's and not the simulator's.
    """
    wait = wait or threading.Event().wait
    truth = (beamline.probe(), beamline.object())
    patterns = np.stack([beamline.pattern(k, truth) for k in range(beamline.frames)])
    places = beamline.positions_m()
    random = of_drawing(beamline.seed, 3)
    n = beamline.samples_per_frame
    noise = random.normal(0.0, beamline.encoder_noise_m, (beamline.frames, n, 2))
    readings = places[:, None] + noise
    frames.start(beamline.scan_id, num_frames=beamline.frames)
    if positions is not None:
        positions.start(beamline.scan_id)
    began = time.monotonic()
    sent = 0
    reason = "completed"
    for first in range(0, beamline.frames, beamline.frames_per_message):
        stop = min(first + beamline.frames_per_message, beamline.frames)
        ahead = began + stop / beamline.rate_hz - time.monotonic()
        if ahead > 0 and wait(ahead):
            reason = "stopped"
            break
        stamps = time.time_ns() + np.arange(stop - first)
        frames.frames(first, patterns[first:stop], timestamps_ns=stamps)
        if positions is not None:
            part = readings[first:stop].reshape(-1, 2)
            positions.samples(first * n, y=part[:, 0], x=part[:, 1])
        sent = stop
    frames.end(sent, reason)
    if positions is not None:
        positions.end(sent * n, reason)
    frames.flush()
    if positions is not None:
        positions.flush()
