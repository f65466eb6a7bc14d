"""The scan models by the names that a configuration gives them.

Every model is block-buffered: Block names are the same. An engine keeps exit waves only where its algorithm needs them, whatever
the model: Grad names are the same too.
"""

from __future__ import annotations

from collections.abc import Mapping

from ptystream.model.bragg_model import Bragg3d
from ptystream.model.opr import OPR
from ptystream.model.parameters import BareParameters
from ptystream.model.scan_model import Full, ScanModel, Vanilla
from ptystream.params.base import Branch

MODELS: Mapping[str, type[ScanModel]] = {
    "Vanilla": Vanilla,
    "BlockVanilla": Vanilla,
    "Full": Full,
    "BlockFull": Full,
    "GradFull": Full,
    "BlockGradFull": Full,
    "OPRModel": OPR,
    "BlockOPRModel": OPR,
    "Bragg3dModel": Bragg3d,
}

BARE: Mapping[str, type[Branch]] = {"ScanModel": BareParameters, "BlockScanModel": BareParameters}
"""What the models have in common, under the names that the parameter reference knows; no scan can be one of them."""
