"""What a result rests on: the papers of the engines and methods that a configuration uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptystream.params.load import Configuration

MODES = "P. Thibault, A. Menzel, Reconstructing state mixtures from diffraction measurements, Nature 494, 68 (2013), doi:10.1038/nature11806"  # noqa: E501
POSITIONS = "A. M. Maiden et al., An annealing algorithm to correct positioning errors in ptychography, Ultramicroscopy 120, 64 (2012), doi:10.1016/j.ultramic.2012.06.001"  # noqa: E501
NEAR_FIELD = "M. Stockmar et al., Near-field ptychography: phase retrieval for inline holography using a structured illumination, Sci. Rep. 3, 1927 (2013), doi:10.1038/srep01927"  # noqa: E501
RELAXATION = "M. Odstrcil et al., Ptychographic coherent diffractive imaging with orthogonal probe relaxation, Opt. Express 24, 8360 (2016), doi:10.1364/OE.24.008360"  # noqa: E501
PARAMETERS = "B. Enders, P. Thibault, A computational framework for ptychographic reconstructions, Proc. R. Soc. A 472, 20160640 (2016), doi:10.1098/rspa.2016.0640"  # noqa: E501
DIFFERENCE_MAP = "P. Thibault et al., Probe retrieval in ptychographic coherent diffractive imaging, Ultramicroscopy 109, 338 (2009), doi:10.1016/j.ultramic.2008.12.011"  # noqa: E501
LIKELIHOOD = "P. Thibault, M. Guizar-Sicairos, Maximum-likelihood refinement for coherent diffractive imaging, New J. Phys. 14, 063004 (2012), doi:10.1088/1367-2630/14/6/063004"  # noqa: E501

ENGINES: Mapping[str, tuple[str, ...]] = {
    "DM": (DIFFERENCE_MAP,),
    "DMOPR": (DIFFERENCE_MAP, RELAXATION),
    "RAAR": (
        "D. R. Luke, Relaxed averaged alternating reflections for diffraction imaging, Inverse Problems 21, 37 (2005), doi:10.1088/0266-5611/21/1/004",  # noqa: E501
    ),
    "EPIE": (
        "A. M. Maiden, J. M. Rodenburg, An improved ptychographical phase retrieval algorithm for diffractive imaging, Ultramicroscopy 109, 1256 (2009), doi:10.1016/j.ultramic.2009.05.012",  # noqa: E501
    ),
    "SDR": (
        "M. Pham et al., Semi-implicit relaxed Douglas-Rachford algorithm (sDR) for ptychography, Opt. Express 27, 31246 (2019), doi:10.1364/OE.27.031246",  # noqa: E501
    ),
    "ML": (LIKELIHOOD,),
    "MLOPR": (LIKELIHOOD, RELAXATION),
    "DM_3dBragg": (
        DIFFERENCE_MAP,
        "S. O. Hruszkewycz et al., High-resolution three-dimensional structural microscopy by single-angle Bragg ptychography, Nat. Mater. 16, 244 (2017), doi:10.1038/nmat4798",  # noqa: E501
    ),
    "PyPty": (
        "A. M. Maiden et al., Ptychographic transmission microscopy in three dimensions using a multi-slice approach, J. Opt. Soc. Am. A 29, 1606 (2012), doi:10.1364/JOSAA.29.001606",  # noqa: E501
        "D. C. Liu, J. Nocedal, On the limited memory BFGS method for large scale optimization, Math. Program. 45, 503 (1989), doi:10.1007/BF01589116",  # noqa: E501
    ),
}
"""Of the engines that the parameter tree names; one of another distribution names its own in its class's `cites`."""


def citations_of(configuration: Configuration) -> list[str]:
    """One line for each paper, engines first, in the order in which they run. An engine class may name its own in `cites`."""
    found: list[str] = []
    for engine in configuration.engines:
        found += getattr(engine.engine, "cites", ENGINES.get(engine.name, ()))
        if _refines(engine.parameters):
            found.append(POSITIONS)
    for scan in configuration.scans:
        parameters = scan.parameters
        modes = getattr(parameters, "coherence", None)
        if modes is not None and max(modes.num_probe_modes, modes.num_object_modes) > 1:
            found.append(MODES)
        if parameters.propagation == "nearfield":
            found.append(NEAR_FIELD)
        if "OPR" in scan.model.__name__ or "OPR" in str(parameters.name):
            found.append(RELAXATION)
    found.append(PARAMETERS)
    return list(dict.fromkeys(found))


def _refines(parameters: Any) -> bool:
    """Whether an engine's parameters switch the refinement of positions on: a branch, or the word for it."""
    wanted = getattr(parameters, "position_refinement", False)
    active = getattr(wanted, "active", wanted)
    return bool(active) if not isinstance(active, Mapping) else True
