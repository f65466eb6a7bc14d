"""Frames and positions from prepared `.ptyd` files, finished or still being written."""

from .source import PtydScan, PtydTransport

__all__ = ["PtydScan", "PtydTransport"]
