"""Random numbers by key: the same for the same key, whoever asks, in whatever order and on however many threads.

The only source of them. A key is the run's seed, the purpose in words, and numbers such as the iteration's and the frame's.
Philox4x32-10 for many frames at once, NumPy's own Philox behind a generator: J. Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC'11.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A generator of its own for (seed, purpose, numbers): purpose in words, numbers such as that of the frame."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _number_of(purpose), *numbers])))


def of_drawing(seed: int, number: int) -> np.random.Generator:
    """A generator for drawings and simulated frames, by a number instead of words: what was measured on them, and the limits
    that tests hold it to, are for the very same pictures."""
    return np.random.Generator(np.random.Philox(key=[seed, number]))


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Four random words of 32 bits for each counter of four such words. Shape (…, 4)."""
    c = [counter[..., k] for k in range(4)]
    for turn in range(ROUNDS):
        k0, k1 = (np.uint64((part + turn * step) & 0xFFFFFFFF) for part, step in zip(key, WEYL, strict=True))
        p, q = MULTIPLIERS[0] * c[0], MULTIPLIERS[1] * c[2]
        c = [(q >> HALF) ^ c[1] ^ k0, q & LOW, (p >> HALF) ^ c[3] ^ k1, p & LOW]
    return np.stack(c, axis=-1)


def uniform(seed: int, purpose: str, iteration: int, scan: int, index: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """`count` pairs of numbers in [0, 1) for each frame, which scan and `index` name. Shape (frame, count, 2).

    Vectorised over frames: a `generator` for each would cost more than what it decides.
    """
    counter = np.empty((len(index), count, 4), np.uint64)
    number = index.astype(np.uint64)[:, None]
    counter[..., 0], counter[..., 1] = number & LOW, (number >> HALF) ^ np.uint64(scan << 16)
    counter[..., 2], counter[..., 3] = np.uint64(iteration & 0xFFFFFFFF), np.arange(count, dtype=np.uint64)
    words = philox(counter, ((seed ^ seed >> 32) & 0xFFFFFFFF, _number_of(purpose)))
    whole = (words[..., 0::2] << HALF | words[..., 1::2]) >> np.uint64(11)
    return whole.astype(np.float64) * 2.0**-53


def _number_of(purpose: str) -> int:
    return zlib.crc32(purpose.encode())
