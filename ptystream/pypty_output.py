"""Writes PyPty's output folder beside a run: between passes what is due is copied, and written in a thread of its own."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.reconstruction import COLUMN, ROW, Stack
from ptystream.run import Run
from ptystream.scan.memory import free_bytes
from ptystream.storage.pypty import Arrays, Folder, simulated

log = logging.getLogger(__name__)

WAIT_S = 60.0
MOST_WAITING = 4
"""Numbered files that wait to be written; then the engine waits for the disk."""


class PyPtyOutput:
    """Looks at a run between its passes. Errors of the disk are logged once, and end nothing."""

    def __init__(self, home: Path, engines: Mapping[str, Any]) -> None:
        """`engines`: label → parameters, of those that write a folder."""
        self._home, self._engines = home, engines
        self._folders: dict[tuple[str, str], Folder] = {}
        self._seen: dict[tuple[str, str], int] = {}
        self._changed, self._closing = threading.Condition(), False
        self._newest: Callable[[], None] | None = None
        self._waiting: deque[Callable[[], None]] = deque()
        self._failed = False
        self._thread = threading.Thread(target=self._serve, name="pypty output", daemon=True)
        self._thread.start()

    def look(self, run: Run) -> None:
        """Note the epochs since the last look, and have written what is due."""
        entry = run.engine_entry
        if entry is None or entry.label not in self._engines or not run.iter_info:
            return
        info = run.iter_info[-1]
        if info["engine"] != entry.name or "pypty" not in info:
            return
        key, p = (run.name, entry.label), self._engines[entry.label]
        first, done = key not in self._seen, int(info["iteration"])
        seen = self._seen.get(key, done - len(info["pypty"]))  # a run that was resumed has told the ones before
        if done <= seen and not first:
            return
        self._seen[key] = done
        try:
            folder = self._folders.get(key) or self._begin(key, p, p.epoch_prev + seen)
            patterns = getattr(run.engine or run.ended, "simulated", None)
            if p.data_simulation_flag and patterns is not None and first:
                simulated(folder.path / "simulated.h5", patterns())
            told = info["pypty"][-(done - seen) :] if done > seen else []
            for k, each in enumerate(told):
                folder.epoch(p.epoch_prev + done - len(told) + k, each)
        except OSError as error:
            self._fail(error)
            return
        due = [folder.due(p.epoch_prev + number) for number in range(seen + 1, done + 1)]
        if run.engine is None or not any(any(pair) for pair in due):
            return
        held = arrays_of(run)
        if held is None:
            return
        if any(newest for newest, _ in due):
            self._order(lambda: folder.arrays(held), newest=True)
        if any(numbered for _, numbered in due):
            number = p.epoch_prev + done
            self._order(lambda: folder.arrays(held, number), newest=False)

    def finish(self, run: Run) -> None:
        """The run is over: its last epochs are noted and its last arrays written before this returns."""
        self.look(run)
        for (name, label), folder in list(self._folders.items()):
            if name == run.name:
                held = arrays_of(run)
                if held is not None:
                    self._order(lambda folder=folder, held=held: folder.arrays(held), newest=False)  # type: ignore[misc]
                del self._folders[name, label]
        with self._changed:
            self._changed.wait_for(lambda: (not self._waiting and self._newest is None) or self._failed, WAIT_S)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(WAIT_S)

    def _begin(self, key: tuple[str, str], p: Any, epoch: int = 0) -> Folder:
        folder = Folder(
            self._home / p.output_folder,
            p.save_loss_log,
            p.epoch_prev,
            int(p.save_inter_checkpoints),
            int(p.save_checkpoints_every_epoch),
            free_and_total,
        )
        left_out = {"dataset"} if p.strip_dataset_from_params else set()
        folder.begin(p.model_dump(mode="json", exclude=left_out), epoch)
        self._folders[key] = folder
        return folder

    def _order(self, write: Callable[[], None], *, newest: bool) -> None:
        with self._changed:
            if newest:
                self._newest = write
            else:
                self._changed.wait_for(lambda: len(self._waiting) < MOST_WAITING or self._failed, WAIT_S)
                self._waiting.append(write)
            self._changed.notify_all()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._newest is not None or self._closing)
                if self._waiting:
                    write = self._waiting[0]
                elif self._newest is not None:
                    write = self._newest
                else:
                    return
            try:
                if not self._failed:
                    write()
            except Exception as error:
                self._fail(error)
            with self._changed:
                if self._waiting and write is self._waiting[0]:
                    self._waiting.popleft()
                elif write is self._newest:
                    self._newest = None
                self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            log.error("output_folder: no further file is written there: %s", error)
        self._failed = True


def arrays_of(run: Run) -> Arrays | None:
    """What a run consists of now; None where there is nothing."""
    if run.reconstruction is None:
        return None
    held = run.reconstruction.copy() if run.engine is None else run.engine.snapshot()
    refined = getattr(run.engine, "refined", None)
    own: Mapping[str, Any] = run.beside if refined is None else refined()
    probe, stack = next(iter(held.probes.values())), next(iter(held.objects.values()))
    depth = stack.depth if isinstance(stack, Stack) else 1
    rows, pods = run.rows(), run.reconstruction.pods
    corner = pods.address[rows, 0, ROW : COLUMN + 1] - np.asarray(stack.offset) + pods.remainder[rows, 0].astype(float)
    if "positions" in own:
        corner = corner + np.asarray(own["positions"], float)[rows]
    per_frame = {name: own[name] if len(own[name]) == 1 else own[name][rows] for name in ("tilts", "current") if name in own}
    return Arrays(
        np.asarray(stack.data).reshape(-1, depth, *stack.shape),
        np.asarray(probe.data).reshape(-1, max(1, pods.pods // max(len(stack.data) // depth, 1)), *probe.shape),
        corner,
        per_frame.get("tilts"),
        own.get("background"),
        per_frame.get("current"),
        own.get("aberrations"),
    )


def free_and_total() -> tuple[float, float]:
    """Of the machine's memory, GiB."""
    return free_bytes() / 2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
