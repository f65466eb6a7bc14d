"""Seconds of the engine's thread by what it did: ptypy's benchmark."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTS = ("data_load", "engine_init", "engine_prepare", "engine_iterate", "engine_finalize")


class Stopwatch:
    """Adds up the time of nested parts; a moment belongs to the innermost. Not thread-safe."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """What happens in here is `part`."""
        self._turn()
        self._open.append(part)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def write_benchmark(path: Path, seconds: dict[str, float], wanted: str) -> Path:
    """Write all parts ('all') or one as JSON; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    chosen = {part: round(spent, 6) for part, spent in seconds.items() if wanted in ("all", part)}
    partial.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path
