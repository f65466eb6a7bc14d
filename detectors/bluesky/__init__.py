"""Bluesky documents: over ZeroMQ, in process, from a JSONL file, by Kafka."""

from .process import Documents
from .source import BlueskyScan

__all__ = ["BlueskyScan", "Documents"]
