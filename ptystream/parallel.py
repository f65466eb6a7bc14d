"""Several processes for one reconstruction: started together by an MPI launcher (`mpirun -n 4 ptystream live …`).

Rank 0 is the program: it takes data in, decides, publishes and saves. The others hold a part of the frames and do, step by
step, what rank 0's engine does (`spread`). This module knows who there is and how they speak; MPI is loaded only where a
launcher has started more than one.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import sys
import threading
import time
from functools import lru_cache
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK")
"""Environment variables by which MPI launchers (Open MPI, MPICH and Intel MPI, PMIx) make themselves known."""

SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Where they say how many they have started: the first that is there is the innermost launcher's. A shell that was started by
one, as clusters give them out, leaves its variables to everything that runs in it."""

CORES = 8192
"""More than Linux numbers."""

SPIN_S = 0.002
"""How long a rank looks for the next message without pause."""
NAP_S = 0.001
"""Then it sleeps so long between two looks: MPI has no wait that leaves the processor to others."""

MESSAGE, FRAMES = 1, 2
"""Tags."""


class Ranks(Protocol):
    """Those who work on one reconstruction, as an engine sees them. All of them call the same methods in the same order."""

    rank: int
    """This process, from 0."""
    size: int

    def total(self, array: NDArray[Any]) -> NDArray[Any]:
        """The sum over all ranks, the same bits on each. May be done in place."""

    def exchange(self, rows: NDArray[np.int64], *values: NDArray[Any]) -> NDArray[np.int64]:
        """Each rank gives the lines `rows` of `values` (row, …) and gets those of the others in place; returns all rows
        given, those of rank 0 first."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def total(self, array: NDArray[Any]) -> NDArray[Any]:
        """See `Ranks.total`."""
        return array

    def exchange(self, rows: NDArray[np.int64], *values: NDArray[Any]) -> NDArray[np.int64]:
        """See `Ranks.exchange`."""
        return rows


ALONE = Alone()


class Team(Ranks, Protocol):
    """Ranks that also send each other what they work on."""

    place: int
    """Which of the ranks on this machine this one is, from 0."""
    cores: int
    """This rank's part of the machine's."""

    def tell(self, message: bytes) -> None:
        """Rank 0 to all others."""

    def hear(self, timeout_s: float = math.inf) -> bytes | None:
        """On another rank: wait for what rank 0 tells; None where it told nothing in time."""

    def give(self, rank: int, array: NDArray[Any]) -> None:
        """Rank 0 to one other."""

    def receive(self, array: NDArray[Any]) -> None:
        """On another rank: fill `array` with what rank 0 gives."""

    def abort(self) -> NoReturn:
        """End the whole job: a rank cannot go on, and the others would wait for it."""


class Mpi:
    """A team over MPI's world communicator. Raises `ImportError` where mpi4py is not installed."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi, self._world = MPI, MPI.COMM_WORLD
        self.rank, self.size = int(self._world.rank), int(self._world.size)
        machine = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        self.place, users = int(machine.rank), np.zeros(CORES, np.int64)
        users[list(os.sched_getaffinity(0))] = 1
        own = users.astype(bool)
        machine.Allreduce(MPI.IN_PLACE, users)
        self.cores = part(users[own])

    def total(self, array: NDArray[Any]) -> NDArray[Any]:
        """See `Ranks.total`."""
        array = np.asarray(array, order="C")
        self._world.Allreduce(self._mpi.IN_PLACE, array)
        return array

    def exchange(self, rows: NDArray[np.int64], *values: NDArray[Any]) -> NDArray[np.int64]:
        """See `Ranks.exchange`."""
        counts = np.zeros(self.size, np.int64)
        self._world.Allgather(np.array([len(rows)]), counts)
        every = np.empty(int(counts.sum()), np.int64)
        self._world.Allgatherv(np.ascontiguousarray(rows, np.int64), (every, counts))
        for held in values:
            line = held.dtype.itemsize * int(np.prod(held.shape[1:], dtype=np.int64))
            found = np.empty((len(every), *held.shape[1:]), held.dtype)
            given = np.ascontiguousarray(held[rows])
            self._world.Allgatherv(_bytes(given), (_bytes(found), counts * line))
            held[every] = found
        return every

    def tell(self, message: bytes) -> None:
        """See `Team.tell`."""
        for rank in range(1, self.size):
            self._world.Send(np.frombuffer(message, np.uint8), rank, MESSAGE)

    def hear(self, timeout_s: float = math.inf) -> bytes | None:
        """See `Team.hear`."""
        status, since = self._mpi.Status(), time.monotonic()
        while (found := self._world.Improbe(0, MESSAGE, status)) is None:
            waited = time.monotonic() - since
            if waited > timeout_s:
                return None
            if waited > SPIN_S:
                time.sleep(NAP_S)
        buffer = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
        found.Recv(buffer)
        return buffer.tobytes()

    def give(self, rank: int, array: NDArray[Any]) -> None:
        """See `Team.give`."""
        self._world.Send(_bytes(np.ascontiguousarray(array)), rank, FRAMES)

    def receive(self, array: NDArray[Any]) -> None:
        """See `Team.receive`."""
        self._world.Recv(_bytes(array), 0, FRAMES)

    def leave(self) -> NoReturn:
        """End this process alone, from any thread."""
        self._mpi.Finalize()
        os._exit(0)

    def abort(self) -> NoReturn:
        """See `Team.abort`."""
        sys.stderr.flush()
        self._world.Abort(1)
        os._exit(1)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8)


def part(users: NDArray[np.int64]) -> int:
    """How many of the cores a rank may use are its part, by how many ranks may use each: a launcher may have bound it to its own,
    or left all to all."""
    return max(1, int((1 / users).sum() + 1e-9))


def _launched() -> bool:
    """Whether a launcher has started this process, and perhaps others."""
    size = next((os.environ[name] for name in SIZES if name in os.environ), None)
    return any(name in os.environ for name in LAUNCHED) and size != "1"


@lru_cache(maxsize=1)
def team() -> Team | None:
    """The ranks of this job; None where this process is the only one.

    It returns on rank 0 alone. The others work for it in here until it ends, and then exit: whatever a script does before
    and after a reconstruction is done once. Raises `SystemExit` with what to do where mpi4py is missing.
    """
    if not _launched():
        return None
    try:
        found = Mpi()
    except ImportError:
        raise SystemExit("started by an MPI launcher, but mpi4py is not installed: pip install 'ptystream[mpi]'") from None
    if found.size == 1:
        return None
    from ptystream import spread

    if found.rank == 0:
        atexit.register(spread.dismiss, found)
        return found
    here = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGINT, signal.SIGTERM) if here else ():  # launchers send them to all; rank 0 decides what they mean
        signal.signal(number, signal.SIG_IGN)
    logging.getLogger(__package__).setLevel(logging.ERROR)  # what engines warn of is the same on all: rank 0 says it
    spread.serve(found)
    if not here:  # leaving a thread would not end the process
        found.leave()
    raise SystemExit(0)
