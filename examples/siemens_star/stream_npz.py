"""Stream a measured scan over the native wire, as its beamline would have: frames on one sender, positions on another.

usage: stream_npz.py FILE [--rate HZ] [--frames ADDRESS] [--positions ADDRESS] [--write-inputs FOLDER]

FILE is an .npz (also .npz.bz2) with `data` (…, frame, y, x), zero frequency at the corner, `scan` (…, frame, 2) in object
pixels (y, x), and `probe` (…, y, x). --write-inputs leaves the probe and the mask that star.yaml names in FOLDER and ends.
"""

import argparse
import bz2
import io
import threading
import time
from pathlib import Path

import numpy as np

from ptystream.detectors.zmq import Sender


def load(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames with zero frequency in the middle, positions, probe."""
    opened = bz2.open(path) if path.endswith(".bz2") else open(path, "rb")  # noqa: SIM115
    with opened as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as archive:
        data, scan, probe = archive["data"], archive["scan"], archive["probe"]
    data = data.reshape(-1, *data.shape[-2:])
    return np.fft.fftshift(data, axes=(1, 2)), scan.reshape(-1, 2), probe.reshape(-1, *probe.shape[-2:])[0]


def main() -> None:
    """Body of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--frames", default="tcp://127.0.0.1:5570")
    parser.add_argument("--positions", default="tcp://127.0.0.1:5571")
    parser.add_argument("--write-inputs", metavar="FOLDER")
    options = parser.parse_args()
    data, scan, probe = load(options.file)
    if options.write_inputs:
        folder = Path(options.write_inputs)
        valid = np.ones(data.shape[1:], np.uint8)
        valid[124:128] = 0  # split double pixels
        valid[0, 1] = 0  # hot
        np.save(folder / "probe.npy", probe)
        np.save(folder / "mask.npy", np.fft.fftshift(valid))
        return
    with Sender(options.frames, timeout_s=600) as frames, Sender(options.positions, timeout_s=600) as positions:
        frames.start("star", num_frames=len(data))
        positions.start("star")
        pause, began = threading.Event(), time.monotonic()
        for k in range(len(data)):
            pause.wait(max(0.0, began + k / options.rate - time.monotonic()))
            frames.frames(k, data[k])
            positions.samples(k, y=scan[k, :1], x=scan[k, 1:])
        frames.end(len(data))
        positions.end(len(data))
        frames.flush(600)
        positions.flush(600)


if __name__ == "__main__":
    main()
