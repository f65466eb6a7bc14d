"""pty-chi's difference map on the problem in an .npz file; runs in an environment of its own, started by `dm.py`.

Prints one line of JSON: the versions, and for each choice of options the milliseconds per frame and iteration (median and
fastest of the iterations, after two to warm up). pty-chi shifts the probe of every frame by what is left of its position after
rounding, even where that is nothing; the options are how it does so (`nearest` is refused by its DM) and how many frames it takes
at once. Except in the row `as shipped`, what it does after an iteration beyond DM (orthogonal modes, removal of the
ambiguity of object and probe) is off.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # a wheel built against CUDA lacks these operators beside a CPU torch; pty-chi needs neither
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import ptychi.api as api
from ptychi.api.task import PtychographyTask


def options_for(problem: dict[str, np.ndarray]) -> api.DMOptions:
    """All defaults, but the device."""
    options = api.DMOptions()
    options.data_options.data = problem["counts"].astype(np.float32)
    options.data_options.wavelength_m = 1e-10
    options.reconstructor_options.default_device = api.Devices.CPU
    options.object_options.initial_guess = np.ones((1, *(problem["size"] + 8)), np.complex64)
    options.object_options.pixel_size_m = 1e-8
    options.probe_options.initial_guess = problem["probe"][None, None]
    corner = problem["corner"]
    centred = corner - (corner.max(axis=0) + corner.min(axis=0)) // 2  # whole pixels, so that shifts are by nothing
    options.probe_position_options.position_y_px = centred[:, 0]
    options.probe_position_options.position_x_px = centred[:, 1]
    options.probe_position_options.optimizable = False
    return options


def timed(options: api.DMOptions, iterations: int) -> dict[str, float]:
    """Milliseconds per frame and iteration."""
    task = PtychographyTask(options)
    task.run(2)
    spent = []
    for _ in range(iterations):
        began = time.perf_counter()
        task.run(1)
        spent.append((time.perf_counter() - began) * 1e3 / len(options.data_options.data))
    return {"median": float(np.median(spent)), "fastest": min(spent)}


def main(file: str, threads: int, iterations: int) -> None:
    """`file` holds counts (frame, y, x), zero frequency centred; probe (y, x); corner (frame, 2); size (2), all in pixels."""
    torch.set_num_threads(threads)
    with np.load(file) as held:
        problem = dict(held)
    rows = [{"shift": "fourier", "options": "as shipped", **timed(options_for(problem), iterations)}]
    for method in (api.PatchInterpolationMethods.FOURIER, api.PatchInterpolationMethods.BILINEAR):
        for chunk in (4, 16, 64, len(problem["counts"])):
            options = options_for(problem)
            options.reconstructor_options.chunk_length = chunk
            options.object_options.patch_interpolation_method = method
            options.object_options.remove_object_probe_ambiguity.enabled = False
            options.probe_options.orthogonalize_incoherent_modes.enabled = False
            options.probe_options.orthogonalize_opr_modes.enabled = False
            rows.append({"shift": str(method), "options": f"chunk_length {chunk}", **timed(options, iterations)})
    print(json.dumps({"versions": {name: version(name) for name in ("ptychi", "torch")}, "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
