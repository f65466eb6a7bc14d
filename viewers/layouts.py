"""What a figure shows where: the layouts of `io.autoplot.layout`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Panels in rows, all of the same length, and how their pictures are coloured."""

    panels: tuple[tuple[str, ...], ...]
    """Names of `panels.PANELS`."""
    size: tuple[float, float]
    """Width and height, inches."""
    grey: bool = False
    """Pictures without colours: for print, and for those who see none."""
    weak: bool = False
    """Limits as narrow as the values, however small the contrast is."""


_FAR = (("amplitude", "phase", "probe"), ("error", "misfit", "map"))
_NEAR = (("amplitude", "phase", "error"), ("probe amplitude", "probe phase", "map"))
_WIDE = (13.5, 8.0)

LAYOUTS = {
    "default": Layout(_FAR, _WIDE),
    "black_and_white": Layout(_FAR, _WIDE, grey=True),
    "nearfield": Layout(_NEAR, _WIDE),
    "nf_black_and_white": Layout(_NEAR, _WIDE, grey=True),
    "minimal": Layout((("phase", "error"),), (9.0, 4.4)),
    "weak": Layout(_FAR, _WIDE, weak=True),
    "jupyter": Layout((("phase", "probe", "error"),), (11.0, 3.8)),
    "bragg3d": Layout(
        (("section 1", "section 2", "section 3"), ("phase 1", "phase 2", "phase 3"), ("error", "misfit", "map")), (13.5, 11.5)
    ),
}
"""By the names that `ptystream.params.autoplot.LAYOUTS` declares."""
