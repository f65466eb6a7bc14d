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


def citations_of(configuration: Configuration) -> list[str]:
    """One line for each paper, engines first, in the order in which they run. An engine class names its own in `cites`."""
    found: list[str] = []
    for engine in configuration.engines:
        found += getattr(engine.engine, "cites", ())
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
