"""Every engine against its own transforms run alone, and while data grow against itself on data that are complete.

Engines are those of the entry points, with their defaults unless the case says otherwise. The transforms of one iteration are
recorded as they are called and then run alone: as many, of the same shapes, on as many threads, in turn with the engine's
iterations, so that what else the machine does enters both alike. One core: time of the process on its cores; several: the
clock's. Ratios are medians over the pairs, in brackets their quartiles.

BLAS, which the OPR engines use, has one thread.

Growing: one engine gets its frames in blocks, with an iteration after each block (`numiter_contiguous: 1`, what a live loop
does), another one all at once; both do the same iterations in turn. A frame-iteration is a frame that is present at an iteration.
The time of the growing one has its taking in of blocks and the growing of its canvas in it.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported: idle threads of BLAS would count as work

import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.fft

sys.path.insert(0, str(Path(__file__).parent))
from scans import Scan, bragg_scan, flat_scan

REACH, GROWING_REACH = 3.0, 1.2
FRAMES = {128: (400, 25), 256: (120, 15)}
"""By side: frames, and how many come at a time."""
VOLUMES = {128: (40, 4), 256: (16, 2)}
"""The same of rocking curves."""
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Case:
    """An engine and how it is asked to work."""

    engine: str
    parameters: dict[str, Any] = field(default_factory=dict)
    threaded: bool = True
    kind: str = "flat"

    @property
    def name(self) -> str:
        """For a table."""
        said = ", ".join(f"{k} {v}" for k, v in self.parameters.items() if k != "ML_type")
        return " ".join(filter(None, (self.engine, self.parameters.get("ML_type", ""), f"({said})" if said else "")))

    @property
    def make(self) -> Any:
        """The engine's class."""
        (point,) = entry_points(group="ptystream.engines", name=self.engine)
        return point.load()

    def scan(self, side: int, modes: int) -> Scan:
        """Its problem."""
        if self.kind == "bragg":
            return bragg_scan(VOLUMES[side][0], side)
        return flat_scan(FRAMES[side][0], side, modes, per_frame=self.kind == "opr")

    def block(self, side: int) -> int:
        """Frames that come at a time."""
        return (VOLUMES if self.kind == "bragg" else FRAMES)[side][1]

    def transforms(self) -> int:
        """About how many times the transform of a frame an iteration takes, over two; for the estimate of the time."""
        return {"EPIE": 3, "ML": 5, "MLOPR": 8}.get(self.engine, 4)


CASES = (
    Case("DM"),
    Case("RAAR"),
    Case("ML"),
    Case("ML", {"ML_type": "poisson"}),
    Case("ML", {"ML_type": "euclid"}),
    Case("EPIE", threaded=False),
    Case("SDR", threaded=False),
    Case("DMOPR", kind="opr"),
    Case("MLOPR", kind="opr"),
    Case("DM_3dBragg", kind="bragg"),
)
MORE = (
    Case("DM", {"subpix": None}),
    Case("DM", {"subpix": "fourier"}),
    Case("ML", {"subpix": None}),
    Case("ML", {"poly_line_coeffs": "all"}),
    Case("ML", {"floating_intensities": True}),
    Case("EPIE", {"subpix": None}, threaded=False),
    Case("EPIE", {"batch": 8}, threaded=True),
    Case("SDR", {"compute_log_likelihood": False}, threaded=False),
    Case("DMOPR", {"subspace_dim": 4}, kind="opr"),
    Case("MLOPR", {"subspace_dim": 4}, kind="opr"),
)
"""With `--more`."""
REFINING = {"start": 0, "amplitude": 2.0, "max_shift": 4.0, "amplitude_decay": False}


def started(case: Case, scan: Scan, threads: int, count: int | None = None, **more: Any) -> Any:
    """An engine with the first `count` frames."""
    engine = case.make(case.make.Parameters(**case.parameters, **more))
    made = scan.begin()
    scan.add(made, 0, count or len(scan))
    engine.start(made, scan.store, scan.context(threads))
    return engine


@contextmanager
def recorded() -> Iterator[Counter[tuple[int, ...]]]:
    """Shapes of all transforms over the last two axes, and how often."""
    calls: Counter[tuple[int, ...]] = Counter()
    lock = threading.Lock()

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(array: Any, *arguments: Any, **named: Any) -> Any:
            with lock:
                calls[array.shape] += 1
            return function(array, *arguments, **named)

        return counted

    with (
        mock.patch.object(scipy.fft, "fft2", counting(scipy.fft.fft2)),
        mock.patch.object(scipy.fft, "ifft2", counting(scipy.fft.ifft2)),
    ):
        yield calls


class Bare:
    """Transforms alone, in buffers that stay in a core's cache; with `depth` over so many slices as well."""

    def __init__(self, threads: int, depth: int = 0) -> None:
        self.threads, self.depth, self._pool = threads, depth, ThreadPoolExecutor(threads)

    def of(self, calls: Counter[tuple[int, ...]]) -> Callable[[], Any]:
        """Those that were recorded, on the threads."""
        shares = [
            [(np.ones(shape, np.complex64), n // self.threads + (part < n % self.threads)) for shape, n in calls.items()]
            for part in range(self.threads)
        ]
        return (lambda: self._work(shares[0])) if self.threads == 1 else lambda: list(self._pool.map(self._work, shares))

    def _work(self, share: list[tuple[Any, int]]) -> None:
        for buffer, times in share:
            stack = buffer.reshape(-1, self.depth, *buffer.shape[-2:]) if self.depth else buffer
            for _ in range(times):
                scipy.fft.fftn(stack, axes=range(-3 if self.depth else -2, 0), norm="ortho", overwrite_x=True, workers=1)


def seconds(work: Callable[[], Any], threads: int) -> float:
    """Of the process on its core, or with several threads of the clock."""
    clock = time.process_time if threads == 1 else time.perf_counter
    began = clock()
    work()
    return clock() - began


@dataclass
class Found:
    """Of one case: seconds of an iteration and of its transforms, pair by pair."""

    engine: list[float]
    alone: list[float]

    @property
    def ratio(self) -> float:
        """Median over pairs."""
        return float(np.median(np.divide(self.engine, self.alone)))

    @property
    def quartiles(self) -> str:
        """Within which half of the pairs lie."""
        return "{:.2f}-{:.2f}".format(*np.quantile(np.divide(self.engine, self.alone), [0.25, 0.75]))


def complete(case: Case, scan: Scan, threads: int, repeats: int) -> tuple[Found, float]:
    """(pairs, transforms per frame and mode); of iterations with as many transforms as most: ML has others now and then."""
    engine, alone = started(case, scan, threads), Bare(threads, len(scan.probe) if scan.bragg else 0)
    engine.iterate(3)
    engines, transforms, numbers = [], [], []
    for _ in range(repeats):
        with recorded() as calls:
            engines.append(seconds(lambda: engine.iterate(1), threads))
        transforms.append(seconds(alone.of(calls), threads))
        numbers.append(sum(n * int(np.prod(shape[:-2])) for shape, n in calls.items()))
    engine.finish()
    usual = max(numbers, key=numbers.count)
    found = Found(*([v for v, n in zip(values, numbers, strict=True) if n == usual] for values in (engines, transforms)))
    return found, usual / len(scan) / (scan.modes if scan.bragg is None else len(scan.probe))


def growing(case: Case, scan: Scan, block: int, threads: int) -> Found:
    """Seconds per frame-iteration while frames come (`engine`) and with all of them (`alone`): one pair."""
    late, whole = started(case, scan, threads, block), started(case, scan, threads)
    frames, spent, other = 0, 0.0, 0.0
    for present in range(block, len(scan) + 1, block):

        def step(present: int = present) -> None:
            if present > block:
                late.extend(scan.add(late.reconstruction, present - block, present))
            late.iterate(1)

        spent += seconds(step, threads)
        other += seconds(lambda: whole.iterate(1), threads)
        frames += present
    late.finish()
    whole.finish()
    iterations = len(range(block, len(scan) + 1, block))
    return Found([spent / frames], [other / (iterations * len(scan))])


def table(cases: list[Case], sides: list[int], modes: list[int], cores: list[int], repeats: int, rounds: int) -> bool:
    """Print it, a line as it is found; whether a reach was missed."""
    lines = [
        (case, side, count, threads)
        for case in cases
        for side in sides
        for count in (modes if case.kind != "bragg" else [1])
        for threads in (cores if case.threaded else [1])
    ]
    work = 3 + 2 * repeats + 14 * rounds  # iterations of a line, more or less
    costs = [c.transforms() * work * count * (0.11 if side == 256 else 0.07) for c, side, count, _ in lines]
    print(f"{len(lines)} lines, in about {sum(costs) / 60:.0f} min on an idle machine", file=sys.stderr)
    print("engine                  side modes cores  FFTs   ms/frame  x FFTs (quartiles)   growing x complete")
    missed, scans = False, {}
    for number, (case, side, count, threads) in enumerate(lines):
        key = case.kind, side, count
        if key not in scans:
            scans = {key: case.scan(side, count)}
        scan = scans[key]
        found, ffts = complete(case, scan, threads, repeats)
        late = "" if found.ratio <= REACH else f"  above {REACH}"
        told = f"{1e3 * float(np.median(found.engine)) / len(scan):9.3f} {found.ratio:8.2f} ({found.quartiles})"
        if rounds:
            grown = [growing(case, scan, case.block(side), threads) for _ in range(rounds)]
            ratio = float(np.median([g.ratio for g in grown]))
            late += "" if ratio <= GROWING_REACH else f"  growing above {GROWING_REACH}"
            told += f"  {ratio:8.2f}"
        missed |= bool(late)
        print(f"{case.name:24s} {side:3d} {count:5d} {threads:5d} {ffts:5.2f} {told}{late}", flush=True)
        print(f"{number + 1} of {len(lines)}, {sum(costs[: number + 1]) / sum(costs):.0%} of the work", file=sys.stderr)
    return missed


def refining(sides: list[int], repeats: int) -> None:
    """Print what an iteration costs that also refines positions, beside one that does not; one core."""
    print("refining positions, 4 shifts; one core, 1 mode      ms/frame   without   more, per trial")
    for case in (Case("DM"), Case("ML"), Case("EPIE"), Case("SDR")):
        for side in sides:
            scan = case.scan(side, 1)
            one, other = started(case, scan, 1), started(case, scan, 1, position_refinement=REFINING)
            one.iterate(3)
            other.iterate(3)
            pairs = [(seconds(lambda: one.iterate(1), 1), seconds(lambda: other.iterate(1), 1)) for _ in range(repeats)]  # noqa: B023
            one.finish()
            other.finish()
            without, refined = (1e3 * float(np.median(v)) / len(scan) for v in zip(*pairs, strict=True))
            print(f"{case.name:8s} {side:4d} {refined:48.3f} {without:9.3f} {(refined - without) / 5:9.3f}", flush=True)


def memory(case: Case, side: int, modes: int) -> None:
    """Print the highest memory of this process while the engine works, beside what it must hold."""
    from ptystream.engines.tiles import PARTIAL_SUMS

    small = Case(case.engine, case.parameters, kind=case.kind)
    few = bragg_scan(2, 32) if case.kind == "bragg" else flat_scan(9, 32, modes, per_frame=case.kind == "opr")
    warm = started(small, few, CORES)
    warm.iterate(3)
    warm.finish()
    scan = case.scan(side, modes)
    page = resource.getpagesize()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * page - scan.counts.nbytes
    engine = started(case, scan, CORES)
    engine.iterate(4)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    probe, sample = engine.reconstruction.probes["S"].data, engine.reconstruction.objects["S"].data
    waves = sum(tile.waves.nbytes for tile in engine.tiles if tile.waves is not None)
    sums = 1 if case.engine in ("EPIE", "SDR") else PARTIAL_SUMS
    held = scan.counts.nbytes + waves + probe.nbytes + sample.nbytes + sums * sample.nbytes * 1.5
    held += probe.nbytes * (1.5 if case.kind == "opr" else 0)
    told = f"{scan.counts.nbytes / 1e6:8.0f} {waves / 1e6:8.0f} {probe.nbytes / 1e6:8.0f} {sample.nbytes / 1e6:8.0f}"
    print(f"{case.name:16s} {side:4d} {modes:5d} {told} {held / 1e6:9.0f} {peak / 1e6:9.0f} {peak / held:7.2f}", flush=True)


def memories(names: list[str], sides: list[int], modes: list[int]) -> None:
    """`memory` of each case in a process of its own."""
    print("memory, MB       side modes   counts    waves   probes   object  must hold     peak   ratio", flush=True)
    for number, case in enumerate(CASES):
        if case.parameters or (names and case.engine not in names):
            continue
        for side in sides:
            for count in modes if case.kind != "bragg" else [1]:
                asked = ["--memory-of", str(number), "--sides", str(side), "--modes", str(count)]
                subprocess.run([sys.executable, "-P", __file__, *asked], check=True)


def main() -> int:
    """Print what was asked for; 1 where an engine misses what it should reach."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("engines", nargs="*", help="names of engines; none: all")
    asked.add_argument("--sides", type=int, nargs="+", choices=sorted(FRAMES), default=sorted(FRAMES))
    asked.add_argument("--modes", type=int, nargs="+", default=[1, 3], help="probe modes")
    asked.add_argument("--cores", type=int, nargs="+", default=sorted({1, CORES}), help="threads")
    asked.add_argument("--repeats", type=int, default=7, help="pairs of an iteration and its transforms")
    asked.add_argument("--rounds", type=int, default=3, help="pairs of a growing and a complete run; 0: none")
    asked.add_argument("--more", action="store_true", help="also with parameters that are not the defaults")
    asked.add_argument("--only", choices=("table", "refining", "memory"), help="one part alone")
    asked.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.memory_of is not None:
        memory(CASES[given.memory_of], given.sides[0], given.modes[0])
        return 0
    cases = [c for c in (*CASES, *(MORE if given.more else ())) if not given.engines or c.engine in given.engines]
    missed = False
    if given.only in (None, "table"):
        missed = table(cases, given.sides, given.modes, given.cores, given.repeats, given.rounds)
    if given.only in (None, "refining"):
        refining(given.sides, given.repeats)
    if given.only in (None, "memory"):
        memories(given.engines, given.sides, given.modes)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
