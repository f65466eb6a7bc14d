"""Which way of joining samples to frames a configuration names."""

from __future__ import annotations

from ptystream.scan.join import IndexJoin, Join, TimeJoin
from ptystream.scan.parameters import PositionsParameters
from ptystream.scan.trigger import TriggerJoin


def join(parameters: PositionsParameters, max_frames: int) -> Join:
    """The join that `parameters.interpolate` names; memory is bounded by `max_frames` frames' worth of samples."""
    if parameters.interpolate == "time":
        return TimeJoin(parameters, max_samples=16 * max_frames)
    kind = TriggerJoin if parameters.interpolate == "trigger" else IndexJoin
    return kind(parameters, max_samples=max_frames * parameters.samples_per_frame)
