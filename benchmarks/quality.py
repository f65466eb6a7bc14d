"""What live quality costs and tells on a measured scan: iterations of the run with shares of 0, 0.1 and 0.3 side by side, the
Fourier ring correlation of the halves by their iterations, and the convention check.

    python benchmarks/quality.py cost [seconds]       a table
    python benchmarks/quality.py convention [frames]  a table
    python benchmarks/quality.py figure FILE.png      the correlation and the halves, drawn

Needs siemens-star-small.npz.bz2 in ../shared/data/ beside the checkout.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from ptystream.assessment.assessor import Assessor
from ptystream.assessment.convention import Convention
from ptystream.assessment.correlation import correlate
from ptystream.assessment.halves import Halves
from ptystream.engine import Context
from ptystream.engines.dm import DM
from ptystream.events import Frames, Payload, Samples, ScanStarted
from ptystream.loop import Loop, LoopSettings
from ptystream.model.geometry import Geometry
from ptystream.model.scan_model import Full
from ptystream.quality import crop_to_cover, fit_ramp, remove_ramp
from ptystream.run import Run
from ptystream.run_state import EngineEntry, Scan
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters
from ptystream.scan.ptyscan import PtyScan

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "siemens-star-small.npz.bz2"
sys.path.insert(0, str(ROOT / "examples" / "siemens_star"))
SHARES = (0.0, 0.1, 0.3)
ROUNDS = 3


def star(count: int = 516, *, shuffled: bool = False) -> Run:
    """A run that has the first frames of the scan and waits for more. `shuffled`: the pixels of each frame are mixed up."""
    from stream_npz import load

    frames, places, probe = (part[:count] if k < 2 else part for k, part in enumerate(load(str(DATA))))
    frames = np.asarray(frames, "u2")
    if shuffled:
        frames = np.random.default_rng(0).permuted(frames.reshape(count, -1), axis=1).reshape(frames.shape)
    mask = np.ones((128, 128), np.uint8)
    mask[124:] = 0
    mask[0, 1] = 0
    given = PtyScanParameters(name="ZmqScan", shape=128, center=(64, 64), auto_center=False, mask=np.fft.fftshift(mask))
    buffer = PtyScan("s", given, PositionsParameters(unit="px"))
    model = Full("s", 0, Full.Parameters(illumination={"model": probe}), Geometry((128, 128)))
    engine = EngineEntry("e", "DM", DM.Parameters(subpix=None, numiter=100000), DM)
    run = Run("star", [Scan("s", 0, buffer, model)], [engine], Context(threads=2))
    buffer.feed("data", ScanStarted("a"), 0)
    payloads = tuple(Payload(p.tobytes(), "raw", np.dtype("<u2"), p.shape) for p in frames)
    buffer.feed("data", Frames("a", np.arange(count), payloads), 1)
    buffer.feed("positions", Samples("a", 0, {"y": places[:, 0], "x": places[:, 1]}), 1)
    return run


def cost(seconds: float) -> None:
    """Iterations of the run for a second of the processors' time, by share, in turn: by the clock a busy machine would count."""
    told: dict[float, list[tuple[float, float, float]]] = {share: [] for share in SHARES}
    for _ in range(ROUNDS):
        for share in SHARES:
            run = star()
            loop, assessor = Loop(run, LoopSettings(min_frames_for_recon=516)), Assessor(run, share=share)
            loop.step()
            before, longest = run.iterations, 0.0
            begun = last = time.perf_counter()
            cpu = time.process_time()
            while (now := time.perf_counter()) - begun < seconds:
                longest, last = max(longest, now - last), now
                loop.step()
                assessor.work()
            rate = (run.iterations - before) / (time.process_time() - cpu)
            iterations = 0 if assessor.halves is None else assessor.halves.iterations
            finest = run.quality.get("frc", {}).get("resolution_m")
            told[share].append((rate, assessor.purse.part, longest))
            told_of = f"{rate:.2f} iterations/CPU s, halves {iterations} iterations, resolution {finest} px"
            print(f"  share {share:g}: {told_of}", flush=True)
            assessor.close()
    print("share | spent | iterations/CPU s | of those without | longest pass, s")
    for share, rounds in told.items():
        rate, part, longest = (median(values) for values in zip(*rounds, strict=True))
        of = rate / median(values[0] for values in told[0.0])
        print(f"{share:5g} | {part:5.3f} | {rate:16.2f} | {of:16.2f} | {longest:.3f}")


def convention(frames: int) -> None:
    """The ranking of the classes."""
    run = star(frames)
    Loop(run, LoopSettings(min_frames_for_recon=frames)).step()
    check, begun = Convention(run, 0, frames), time.perf_counter()
    while not check.done:
        check.step()
    figure = check.figure()
    print(f"{frames} frames, {time.perf_counter() - begun:.1f} s, lead {figure['lead']:.2f}, ties {figure['ties']}")
    print(f"chosen: {figure['chosen']}: {figure['why']}")
    for one in sorted(check.tried, key=lambda one: one.misfit):
        print(f"  orientation {one.orientation}  {one.misfit:.3f}  coupling {one.phase:+.2f}  {one.name}")


def figure(path: Path) -> None:
    """The correlation after so many iterations of the halves, that of shuffled frames, and the phase of both halves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    canvas, axes = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=(1.5, 1, 1), layout="constrained")
    for shuffled, counts in ((False, (5, 20, 60)), (True, (20,))):
        run = star(shuffled=shuffled)
        loop = Loop(run, LoopSettings(min_frames_for_recon=516))
        loop.step()
        halves = Halves(run)
        for count in counts:
            while halves.iterations < count:
                halves.step()
            pictures = halves.pictures(next(iter(run.starting)))
            found = correlate(*pictures)
            finest = found["resolution_m"]
            name = (
                f"{count} iterations: {finest:.1f} px" if not shuffled else f"pixels of each frame shuffled, {count} iterations"
            )
            print(name, flush=True)
            style = {"color": "0.6", "linestyle": ":"} if shuffled else {}
            axes[0].plot(found["frequency_per_m"], found["correlation"], label=name, **style)
        if not shuffled:
            threshold = found["frequency_per_m"], found["threshold"]
            lit = np.minimum(*(np.abs(seen.data[0]) for _, seen in pictures))
            crop = crop_to_cover(lit)
            for number, (image, _) in enumerate(pictures):
                flat = remove_ramp(image.data[0], fit_ramp(image.data[0], lit))[crop]
                axes[1 + number].imshow(np.angle(flat), cmap="twilight", vmin=-1, vmax=1)
                axes[1 + number].set_title(f"half {'AB'[number]}: phase, ±1 rad")
                axes[1 + number].set_axis_off()
        halves.close()
    axes[0].plot(*threshold, color="black", linewidth=1, label="half-bit threshold")
    axes[0].set(xlabel="spatial frequency (1/pixel)", ylabel="Fourier ring correlation", xlim=(0, 0.5), ylim=(-0.2, 1.05))
    axes[0].legend(fontsize=8)
    canvas.savefig(path, dpi=110)


if __name__ == "__main__":
    what, *given = sys.argv[1:] or ["cost"]
    if not DATA.exists():
        print(f"{DATA}: not there")
    elif what == "figure":
        figure(Path(given[0]))
    else:
        {"cost": lambda: cost(float((given or ["20"])[0])), "convention": lambda: convention(int((given or ["100"])[0]))}[what]()
