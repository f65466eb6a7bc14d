"""Plots of a running reconstruction."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from ptystream.params.base import Branch, parameter
from ptystream.params.patterns import checked

LAYOUTS = ("default", "black_and_white", "nearfield", "minimal", "weak", "jupyter", "bragg3d", "nf_black_and_white")
"""Names of the layouts; `viewers/layouts.py` draws them."""

PIXELS = ("png", "jpg", "jpeg", "tif", "tiff")


class AutoplotParameters(Branch):
    """Plotting client parameters"""

    active: bool = parameter(True)
    """Activation switch

    If ``True`` the current reconstruction will be plotted at regular intervals: into image files with `dump`, in a Jupyter
    notebook below the cell, and otherwise in a window, where there is a display and matplotlib finds a way to make one (the
    environment variable MPLBACKEND chooses which). ``ptystream view`` shows it everywhere else."""

    imfile: str = parameter("plots/%(run)s/%(run)s_%(engine)s_%(iterations)04d.png")
    """Plot images file name (or format string)

    Below `home`. Its ending says the format: png, jpg, tif, pdf, svg."""

    interval: int = parameter(1, lower=-1)
    """Number of iterations between plot updates

    0 or less: nothing is plotted. Where drawing takes longer than the iterations (and `threaded` is on), the newest state is
    drawn each time and those in between are left out."""

    threaded: bool = parameter(True)
    """Live plotting switch

    If ``True``, a process of its own draws while the reconstruction goes on. If ``False``, the engine's thread does the
    plotting, pausing the reconstruction: then every interval has its plot."""

    layout: Literal["default", "black_and_white", "nearfield", "minimal", "weak", "jupyter", "bragg3d", "nf_black_and_white"] = (
        parameter("default")
    )
    """Options for default plotter or template name

    - ``default``: amplitude and phase of the object, the probe's modes in colours, errors, misfit, scan map
    - ``black_and_white``: the same in grey
    - ``nearfield``, ``nf_black_and_white``: with amplitude and phase of the probe, which fills its frame
    - ``minimal``: the object's phase and the error
    - ``weak``: for weakly scattering samples: narrow limits for amplitude and phase
    - ``jupyter``: one row that fits below a cell
    - ``bragg3d``: three sections through a three-dimensional object"""

    dump: bool = parameter(False)
    """Switch to dump plots as image files

    Switch to dump plots as image files during reconstruction; see `imfile`."""

    make_movie: bool = parameter(False)
    """Produce reconstruction movie after the reconstruction.

    The plots are then dumped too, and kept. An MP4 file with ``pip install 'ptystream[movie]'``, otherwise a GIF:
    the run's name in the folder of `imfile`, which must then end in png, jpg or tif."""

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        try:
            checked(self.imfile)
        except ValueError as error:
            raise ValueError(f"imfile: {self.imfile!r}: {error}") from error
        ending = self.imfile.rpartition(".")[2].lower()
        known = PIXELS if self.make_movie else (*PIXELS, "pdf", "svg")
        if ending not in known:
            raise ValueError(f"imfile: {self.imfile!r}: must end in {', '.join(known)}")
        return self
