"""The scan models by the names that a configuration gives them. Every model is block-buffered: Block names are the same."""

from __future__ import annotations

from collections.abc import Mapping

from ptystream.model.opr import OPR
from ptystream.model.scan_model import Full, ScanModel, Vanilla

MODELS: Mapping[str, type[ScanModel]] = {
    "Vanilla": Vanilla,
    "BlockVanilla": Vanilla,
    "Full": Full,
    "BlockFull": Full,
    "OPRModel": OPR,
    "BlockOPRModel": OPR,
}
