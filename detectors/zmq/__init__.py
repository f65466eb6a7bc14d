"""Frames and samples over ZeroMQ: the native wire, lossless or plain."""

from .sender import Sender, SenderError
from .source import ZmqScan

__all__ = ["Sender", "SenderError", "ZmqScan"]
