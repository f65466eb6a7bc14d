"""How much memory a part of a session may take: asked before it is taken, because a system that runs out of it kills."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path


def allowed_bytes() -> int:
    """Half of the memory that this process may have: the machine's, or less where a container, a job or `ulimit -v` says so."""
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()) // 2


def free_bytes() -> int:
    """Memory that the machine could give now: what is free, and what it holds of files and would drop."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return kilobytes * 1024


def _limits() -> Iterator[int]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    yield soft if soft != resource.RLIM_INFINITY else 1 << 62
    megabytes = os.environ.get("SLURM_MEM_PER_NODE", "")  # set by sbatch --mem, enforced or not
    if megabytes.isdecimal() and int(megabytes) > 0:  # 0: all of the node
        yield int(megabytes) << 20
    yield from cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))


def cgroup_limits(membership: Path, root: Path) -> Iterator[int]:
    """Limits (bytes) of the control groups that `membership` names and of those around them; of versions 1 and 2.

    A container sees the tree from its own group on, while the membership may be told from the machine's: what cannot be found is
    passed over, and the root itself is looked at.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, told = line.partition(":")
        controllers, _, path = told.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal():  # "max": none
                yield int(text)


class Budget:
    """Memory that several share. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit, self._claimed, self._lock = limit, 0, threading.RLock()  # a claim may be collected while another is made

    @property
    def left(self) -> int:
        """Bytes that nobody has claimed."""
        return self.limit - self._claimed

    def claim(self, count: int, size: int) -> int:
        """Claim `count` pieces of `size` bytes; returns how many of them were to be had."""
        with self._lock:
            granted = max(0, min(count, (self.limit - self._claimed) // size))
            self._claimed += granted * size
        return granted

    def give_back(self, count: int, size: int) -> None:
        """So many pieces are free again."""
        with self._lock:
            self._claimed -= count * size


class Claim:
    """Pieces of equal size that one holder has of a budget, given back at the latest when nobody knows the holder any more. Its
    holder sees to it that one thread uses it at a time."""

    def __init__(self, budget: Budget, size: int) -> None:
        self.budget, self.size, self.count = budget, size, 0

    def grow(self, count: int) -> int:
        """Have `count` pieces, or as many as there are; returns how many."""
        if count > self.count:
            self.count += self.budget.claim(count - self.count, self.size)
        return self.count

    def shrink(self, count: int) -> None:
        """Have `count` pieces at most."""
        if count < self.count:
            self.budget.give_back(self.count - count, self.size)
            self.count = count

    def __del__(self) -> None:
        self.shrink(0)


FRAMES = Budget(allowed_bytes())
"""What the prepared frames of all scans of this process take, of runs that overlap or wait too."""
