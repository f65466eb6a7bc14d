"""The convention check on a recording: which way detector and positions lie to each other, before anything depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ptystream.loop import Loop, LoopSettings, Step
from ptystream.params.load import Configuration
from ptystream.recording import Recording
from ptystream.session import SessionError
from ptystream.verify import fed

from .convention import ITERATIONS, Convention, code_of


@dataclass(frozen=True, slots=True)
class Found:
    """What the trials came to."""

    scan: str
    present: int
    """`orientation` of the configuration."""
    frames: int
    figure: Mapping[str, Any]
    """As of `Snapshot.quality['convention']`."""

    @property
    def fits(self) -> bool:
        """Whether nothing else than the present orientation fits better."""
        chosen = self._chosen
        return self.present in self._best if chosen is None else chosen == self.present

    @property
    def _best(self) -> list[int]:
        """Orientations that fit best: the first, and its ties."""
        ranking = self.figure["ranking"]
        names = next((tie for tie in self.figure["ties"] if ranking[0]["name"] in tie), [ranking[0]["name"]])
        return [entry["orientation"] for entry in ranking if entry["name"] in names]

    @property
    def _chosen(self) -> int | None:
        named = [entry["orientation"] for entry in self.figure["ranking"] if entry["name"] == self.figure["chosen"]]
        return named[0] if named else None

    def lines(self) -> list[str]:
        """For a person."""
        best, path = self._best, f"scans.{self.scan}.data.orientation"
        told = [f"{self.frames} frames, {ITERATIONS} iterations of each; residual: what is left of the measured amplitudes"]
        for entry in self.figure["ranking"]:
            tie = "  tie" if len(best) > 1 and entry["orientation"] in best else ""
            own = "  (as configured)" if entry["orientation"] == self.present else ""
            told.append(f"  orientation: {entry['orientation']}  residual {entry['misfit']:.4f}  {entry['name']}{own}{tie}")
        told.append(f"the best leads by a factor of {self.figure['lead']:.2f}: {self.figure['why']}")
        chosen = self._chosen
        if chosen is not None and chosen != self.present:
            told.append(f"{path}: write `orientation: {chosen}` instead of {self.present}")
        elif chosen is not None:
            told.append(f"{path}: {self.present} is right")
        elif self.fits:
            told.append(f"{path}: {self.present} is among those that fit best")
        else:
            choice = " or ".join(f"`orientation: {number}`" for number in sorted(best))
            told.append(f"{path}: {self.present} fits worse than the best: try {choice}")
        return told


def try_conventions(
    configuration: Configuration,
    recording: Recording,
    frames: int = 200,
    tell: Callable[[int, int], object] = lambda done, total: None,
) -> Found:
    """Try every class on the first frames of a recording, with the configuration's first engine. Raises `SessionError` where
    the recording has no usable frame."""
    run, _ = fed(recording, configuration)
    loop = Loop(run, LoopSettings(min_frames_for_recon=frames))
    while run.engine is None:
        step = loop.step()
        if step is Step.DONE:
            raise SessionError("no frame of the recording can be used")
        if step is Step.IDLE:
            for scan in run.scans.values():
                scan.buffer.changed(-1, 0.05)
    label, scan = next(iter(run.scans.items()))
    present = code_of(scan.buffer.parameters.operations())
    tried = Convention(run, present, frames)
    try:
        while not tried.done:
            tried.step()
            tell(tried.steps, tried.steps_in_all)
        return Found(label, present, tried.count, tried.figure())
    finally:
        tried.close()
        if run.engine is not None:
            run.engine.finish()
        run.forget()
