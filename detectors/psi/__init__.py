"""Frames of PSI's detectors: slsDetectorPackage's stream of half modules."""

from .source import SlsScan

__all__ = ["SlsScan"]
