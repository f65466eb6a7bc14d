"""How much memory a part of a session may take: asked before it is taken, because a system that runs out of it kills."""

from __future__ import annotations

import os


def allowed_bytes() -> int:
    """Half of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
