"""Parameters of what is measured of a run's quality while it runs."""

from __future__ import annotations

from ptystream.params.base import Branch, parameter


class QualityParameters(Branch):
    """What is measured of a run's quality while it runs

    Convergence, coverage and drift cost next to nothing and are always there. None of it changes a bit of the reconstruction."""

    share: float = parameter(0.1, lower=0.0, upper=0.5, steerable=True, ours=True)
    """Share of the engine thread's time for two engines that each have half of the frames, and for `convention_check`; 0: neither

    The two have an object, a probe and a state of their own; what their pictures agree on, as the Fourier ring correlation tells,
    was measured. They need about as much memory as the run's own engine: as long as a quarter of that which a session may take
    suffices. Not over several ranks, and not for volumes."""

    convention_check: int = parameter(0, lower=0, upper=10000, ours=True)
    """On how many of a run's first frames all orientations of the detector relative to the positions are tried, within `share`;
    0: on none. 100 suffice

    Each of the eight takes 20 iterations on them, and the split halves wait until all are done: with frames of 128 × 128 pixels
    some seconds of the engine's time, at a share of 0.1 ten times as many by the clock. `ptystream check CONFIG --convention
    RECORDING` does the same offline."""
