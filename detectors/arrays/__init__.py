"""Frames from a NumPy array, in a file or in memory."""

from .source import ArrayScan, ArrayTransport

__all__ = ["ArrayScan", "ArrayTransport"]
