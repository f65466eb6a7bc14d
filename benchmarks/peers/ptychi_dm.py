"""pty-chi's difference map on the problem in an .npz file; runs in an environment of its own, started by `dm.py --peers`.

Prints one line of JSON: milliseconds per frame and iteration, the median of iterations, by how patches are cut and the length
of the chunks.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

import numpy as np
import torch

# torchvision's wheel is built against CUDA; beside a CPU torch it lacks these operators, of which pty-chi needs none.
for operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import ptychi.api as api  # noqa: E402
from ptychi.api.task import PtychographyTask  # noqa: E402


def main(file: str, threads: int, iterations: int) -> None:
    """`file` holds counts (frame, y, x), zero frequency centred; probe (y, x); corner (frame, 2); size (2)."""
    torch.set_num_threads(threads)
    with np.load(file) as held:
        counts, probe, corner, size = (held[name] for name in ("counts", "probe", "corner", "size"))
    spent: dict[str, float] = {}
    methods = api.PatchInterpolationMethods.BILINEAR, api.PatchInterpolationMethods.FOURIER
    for chunk, method in itertools.product((1, 4, 16, 64, len(counts)), methods):
        options = api.DMOptions()
        options.data_options.data = counts.astype(np.float32)
        options.data_options.wavelength_m = 1e-10
        options.reconstructor_options.num_epochs = iterations
        options.reconstructor_options.chunk_length = chunk
        options.reconstructor_options.default_device = api.Devices.CPU
        options.reconstructor_options.default_dtype = api.Dtypes.FLOAT32
        options.object_options.initial_guess = np.ones((1, *(size + 8)), np.complex64)
        options.object_options.pixel_size_m = 1e-8
        options.object_options.patch_interpolation_method = method
        options.object_options.remove_object_probe_ambiguity.enabled = False
        options.probe_options.initial_guess = probe[None, None].astype(np.complex64)
        options.probe_options.orthogonalize_incoherent_modes.enabled = False
        options.probe_options.orthogonalize_opr_modes.enabled = False
        places = corner - (corner.max(axis=0) + corner.min(axis=0)) / 2
        options.probe_position_options.position_y_px = places[:, 0]
        options.probe_position_options.position_x_px = places[:, 1]
        options.probe_position_options.optimizable = False
        task = PtychographyTask(options)
        task.run(2)
        times = []
        for _ in range(iterations):
            began = time.perf_counter()
            task.run(1)
            times.append(time.perf_counter() - began)
        spent[f"{method}, chunk_length {chunk}"] = 1e3 * float(np.median(times)) / len(counts)
    print(json.dumps(spent))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
