"""Ranks of one job as threads of one process, for tests of what they say to each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any, NoReturn

import numpy as np

from ptystream.packing import unpack
from ptystream.spread import Worker, dismiss

WAIT_S = 60.0


class Board:
    """What the ranks of a job share."""

    def __init__(self, size: int) -> None:
        self.size, self.slots = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=WAIT_S)
        self.told: list[Queue[bytes]] = [Queue() for _ in range(size)]
        self.given: list[Queue[np.ndarray]] = [Queue() for _ in range(size)]

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found


class Thread:
    """One of them: a `Team`."""

    def __init__(self, board: Board, rank: int) -> None:
        self.board, self.rank, self.size = board, rank, board.size
        self.place, self.cores = rank, 1

    def total(self, array: np.ndarray) -> np.ndarray:
        found = self.board.gather(self.rank, np.array(array))
        return sum(found[1:], found[0].copy())

    def exchange(self, rows: np.ndarray, *values: np.ndarray) -> np.ndarray:
        found = self.board.gather(self.rank, (rows, [v[rows].copy() for v in values]))
        for theirs, lines in found:
            for held, line in zip(values, lines, strict=True):
                held[theirs] = line
        return np.concatenate([theirs for theirs, _ in found])

    def tell(self, message: bytes) -> None:
        for queue in self.board.told[1:]:
            queue.put(message)

    def hear(self, timeout_s: float = WAIT_S) -> bytes | None:
        try:
            return self.board.told[self.rank].get(timeout=min(timeout_s, WAIT_S))
        except Empty:
            return None

    def give(self, rank: int, array: np.ndarray) -> None:
        self.board.given[rank].put(np.array(array))

    def receive(self, array: np.ndarray) -> None:
        array[...] = self.board.given[self.rank].get(timeout=WAIT_S)

    def abort(self) -> NoReturn:
        self.board.barrier.abort()
        raise RuntimeError("aborted")


@contextmanager
def team(size: int, engines: Mapping[str, Callable[[Any], Any]]) -> Iterator[Thread]:
    """Rank 0 of a team whose other ranks work in threads; what went wrong there is raised at the end."""
    board, died = Board(size), []
    leader = Thread(board, 0)

    def work(rank: int) -> None:
        mine = Thread(board, rank)
        worker = Worker(mine, engines)
        try:
            while worker.obey(unpack(mine.hear() or b"")):
                pass
        except BaseException as error:
            died.append(error)
            board.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(1, size)]
    for thread in threads:
        thread.start()
    try:
        yield leader
    finally:
        dismiss(leader)
        for thread in threads:
            thread.join(WAIT_S)
        if died:
            raise died[0]
        assert not any(thread.is_alive() for thread in threads)
