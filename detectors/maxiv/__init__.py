"""Frames of a streaming-receiver as at MAX IV."""

from .source import MaxivScan

__all__ = ["MaxivScan"]
