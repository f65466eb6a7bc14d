"""Random numbers by key: the same for the same key, whoever asks, in whatever order and on however many threads."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A generator of its own for (seed, purpose, numbers): purpose in words, numbers such as that of the frame."""
    key = [seed, zlib.crc32(purpose.encode()), *numbers]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
