"""Byte codes of a picture as PNG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

COLOURS = {2: 4, 4: 6}
"""Channels → colour type: grey with alpha, red green blue with alpha."""


def cyclic() -> NDArray[np.uint8]:
    """The colours of the phase codes, as the page draws them: two hues that meet in the dark and in the light. Shape (256, 3)."""
    turn = 2 * np.pi * np.arange(256) / 256
    light, s = 0.5 - 0.46 * np.cos(turn), np.sin(turn)
    up, down = np.maximum(0, s), np.maximum(0, -s)
    red = np.clip(light * (1 + 0.12 * s) + 0.2 * up * (1 - light), 0, 1)
    green = np.clip(light * 0.93 - 0.06 * np.abs(s), 0, 1)
    blue = np.clip(light * (1 - 0.12 * s) + 0.28 * down * (1 - 0.4 * light), 0, 1)
    return np.asarray(255 * np.stack([red, green, blue], axis=1), np.uint8)


def png(pixels: NDArray[np.uint8], texts: Mapping[str, str]) -> bytes:
    """Pixels of shape (y, x, channel) with 2 or 4 channels, and texts by keyword."""
    height, width, channels = pixels.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each line begins with its filter: none
    lines[:, 1:] = pixels.reshape(height, -1)
    parts = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, COLOURS[channels], 0, 0, 0))]
    parts += [_chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode()) for key, text in texts.items()]
    parts += [_chunk(b"IDAT", zlib.compress(lines.data, 6)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
