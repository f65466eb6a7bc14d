"""Frames of EPICS areaDetector: the ZeroMQ plug-in's stream."""

from .source import AdZmqScan

__all__ = ["AdZmqScan"]
