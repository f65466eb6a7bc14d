"""A measured scan, live and offline: data misfit, Fourier ring correlation of odd and even frames, live against offline.

Needs siemens-star-small.npz.bz2; its path is the argument, or ../shared/data/ beside the checkout.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ptystream.detectors.zmq import Sender
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.quality import align, crop_to_cover, fit_ramp, fourier_ring_correlation, remove_ramp
from ptystream.reconstruction import Storage
from ptystream.session import Session
from ptystream.storage import ptyr

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "siemens-star-small.npz.bz2"
sys.path.insert(0, str(ROOT / "examples" / "siemens_star"))


def reconstruct(
    file: Path, folder: Path, *, rate: float, minimum: int, restart: bool = False, rows: slice = slice(None), **engine: Any
) -> ptyr.Result:
    """Stream (a part of) the scan through a live session and read its result; rate 0: everything at once (offline)."""
    from stream_npz import load as read

    data, scan, probe = read(str(file))
    data, scan = data[rows], scan[rows]
    valid = np.ones(data.shape[1:], np.uint8)
    valid[124:128] = 0
    valid[0, 1] = 0
    np.save(folder / "probe.npy", probe)
    np.save(folder / "mask.npy", np.fft.fftshift(valid))
    with Sender(timeout_s=120) as frames, Sender(timeout_s=120) as positions:
        source = {"name": "ZmqScan"}
        configuration = load(
            {
                "run": "star",
                "min_frames_for_recon": minimum,
                "live": {"restart_probe": restart},
                "io": {"home": str(folder), "rfile": "star.ptyr", "recording": {"active": False}},
                "scans": {
                    "star": {
                        "name": "Full",
                        "data": {
                            **source,
                            "address": frames.address,
                            "shape": 128,
                            "center": [64, 64],
                            "auto_center": False,
                            "mask": str(folder / "mask.npy"),
                            "positions": {**source, "address": positions.address, "unit": "px"},
                        },
                        "illumination": {"model": str(folder / "probe.npy")},
                    }
                },
                "engines": {"dm": {"name": "DM", "numiter": 50, "average_last": 20, "subpix": None, **engine}},
            }
        )

        def send() -> None:
            pause = threading.Event()
            frames.start("star", num_frames=len(data))
            positions.start("star")
            for k in range(len(data)):
                if rate:
                    pause.wait(1 / rate)
                frames.frames(k, data[k])
                positions.samples(k, y=scan[k, :1], x=scan[k, 1:])
            frames.end(len(data))
            positions.end(len(data))

        sender = threading.Thread(target=send)
        session = Session(make_plan(configuration), metrics=Metrics(), on_ready=sender.start)
        (path,) = session.run()
        sender.join()
    return ptyr.read(path)


def common(first: Storage, second: Storage) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the lattice that both hold, as index of each."""
    low = np.maximum(first.offset, second.offset)
    high = np.minimum(np.add(first.offset, first.shape), np.add(second.offset, second.shape))
    parts = [tuple(slice(int(a - o), int(b - o)) for a, b, o in zip(low, high, s.offset, strict=True)) for s in (first, second)]
    return parts[0], parts[1]  # type: ignore[return-value]


def compare(a: ptyr.Result, b: ptyr.Result, *, last: bool = False) -> tuple[float, float, float]:
    """(phase std, complex rms, half-bit resolution in parts of Nyquist) of two results."""
    name = next(iter(a.object))
    first, second = (r.last["object"][name] if last else r.object[name] for r in (a, b))
    one, two = common(first, second)
    weight = np.minimum(a.coverage[name][one], b.coverage[name][two])
    aligned = align(first.data[0][one], second.data[0][two], weight)
    crop = crop_to_cover(weight)
    return aligned.phase_std, aligned.complex_rms, fourier_ring_correlation(aligned.first[crop], aligned.second[crop]).resolution


def spokes(result: ptyr.Result) -> float:
    """How far the phase of the spokes lies below that of the gaps, radians: the distance of the means of the two classes."""
    name = next(iter(result.object))
    image, weight = result.object[name].data[0], result.coverage[name]
    phase = np.angle(remove_ramp(image, fit_ramp(image, weight)))[weight > 0.5 * weight.max()]
    border = float(np.median(phase))
    for _ in range(50):
        border = float(phase[phase < border].mean() + phase[phase >= border].mean()) / 2
    return float(phase[phase >= border].mean() - phase[phase < border].mean())


def main(file: Path = DATA) -> None:
    """Print the table."""
    if not file.exists():
        print(f"{file}: not there; give the path of siemens-star-small.npz.bz2")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        live = reconstruct(file, folder, rate=200, minimum=32, restart=True)
        going_on = reconstruct(file, folder, rate=200, minimum=32)
        offline = reconstruct(file, folder, rate=0, minimum=516)
        longer = reconstruct(file, folder, rate=0, minimum=516, numiter=100)
        default = reconstruct(file, folder, rate=200, minimum=0, subpix="linear")
        odd, even = (reconstruct(file, folder, rate=0, minimum=258, rows=slice(k, None, 2)) for k in (0, 1))
    std, rms, _ = compare(live, offline)
    on_std, on_rms, _ = compare(going_on, offline)
    ref_std, ref_rms, _ = compare(offline, longer)
    print(f"data misfit of the last iterate, amplitude          {live.misfit[-1, 0]:.3f}   (reach <= 0.75)")
    print(f"odd/even, half-bit resolution, mean of iterates     {compare(odd, even)[2]:.3f}   (reach >= 0.38)")
    print(f"odd/even, half-bit resolution, last iterate         {compare(odd, even, last=True)[2]:.3f}   (reach >= 0.27)")
    print(f"spokes below gaps (rad)                             {spokes(live):.2f}    (reach 0.64 +- 0.1)")
    print(f"live against offline, phase std (rad), complex rms  {std:.3f}, {rms:.3f}   (reach <= 0.06, 0.06)")
    print(f"without live.restart_probe, the same                {on_std:.3f}, {on_rms:.3f}")
    print(f"offline 50 against 100 iterations, the same         {ref_std:.3f}, {ref_rms:.3f}")
    std, rms, _ = compare(default, offline)
    print(f"with the tree's defaults, against offline           {std:.3f}, {rms:.3f}, misfit {default.misfit[-1, 0]:.3f}")


if __name__ == "__main__":
    main(*(Path(p) for p in sys.argv[1:2]))
