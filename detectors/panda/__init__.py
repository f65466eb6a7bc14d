"""Encoder readings of a PandABox: its TCP data port, or documents of a re-publisher over ZeroMQ."""

from .source import PandaJsonScan, PandaScan

__all__ = ["PandaJsonScan", "PandaScan"]
