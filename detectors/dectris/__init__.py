"""DECTRIS detectors (EIGER, PILATUS4, ARINA …): stream version 1 and stream2, as the detector control unit sends them."""

from .source import DectrisScan

__all__ = ["DectrisScan"]
