"""Frames of an EPICS PV: NTNDArray over PVAccess."""

from .source import PvaScan

__all__ = ["PvaScan"]
