"""What ptypy's parameter files hold besides the tree: other names, tuning, loaders that are not here, files on files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ptystream.params.errors import ConfigurationError, Fault
from ptystream.params.plain import merged

log = logging.getLogger(__name__)

SUFFIXES = ("_stream", "_nostream", "_serial", "_pycuda", "_cupy", "_ocl", "_npy")
"""Endings of ptypy's accelerated engine names, outermost first: the same engine here."""
TUNING = (
    "probe_update_cuda_atomics",
    "object_update_cuda_atomics",
    "fft_lib",
    "smooth_gradient_method",
    "compute_exit_error",
    "compute_fourier_error",
)
"""Their tuning parameters: accepted, not needed (those errors are always computed)."""
LOADERS = {
    "Hdf5Loader": "HDF5 files",
    "Hdf5LoaderFast": "HDF5 files",
    "SwmrLoader": "HDF5 files that are being written",
    "EpsicHdf5Loader": "HDF5 files",
    "NumpyScan": "NumPy files",
    "DiamondNexus": "NeXus files of Diamond",
    "DlsScan": "files of Diamond",
    "I08Scan": "files of Diamond I08",
    "I08_1Scan": "files of Diamond I08-1",
    "I13ScanFFP": "files of Diamond I13",
    "I13ScanNFP": "files of Diamond I13",
    "ID16AScan": "files of ESRF ID16A",
    "ID16Anfp": "files of ESRF ID16A",
    "ID13Scan": "files of ESRF ID13",
    "CSAXSScan": "files of PSI cSAXS",
    "ALS5321Scan": "files of ALS 5.3.2.1",
    "AMOScan": "files of LCLS AMO",
    "Optiklabor": "files of an optics laboratory",
    "FliSpecScan": "files of a FLI camera",
    "SavuScan": "data of Savu",
    "NanomaxScan": "files of MAX IV NanoMAX",
    "NanomaxStepscanNov2016": "files of MAX IV NanoMAX",
    "NanomaxFlyscanJune2017": "files of MAX IV NanoMAX",
    "NanomaxContrast": "files of MAX IV NanoMAX",
    "NanomaxZmqScan": "a stream of MAX IV NanoMAX",
    "Bragg3dSimScan": "a simulated Bragg scan",
}
"""Loaders of ptypy that are no part of its parameter tree, and what they read."""
MAX_BASES = 8


def engine_name(name: str) -> str:
    """The plain name of one of ptypy's accelerated engines."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def without_tuning(entry: dict[str, Any], path: str) -> dict[str, Any]:
    """The entry of an engine without ptypy's tuning parameters, which are logged."""
    for key in TUNING:
        if entry.pop(key, None) is not None:
            log.info("%s.%s: accepted, not needed here", path, key)
    return entry


def instead_of(loader: str) -> str | None:
    """What to do where a file names a loader of ptypy that is not here; None: it is none that is known."""
    reads = LOADERS.get(loader)
    if reads is None and not loader.startswith(("Nanomax", "NanoMax")):
        return None
    return (
        f"ptypy's loader for {reads or LOADERS['NanomaxScan']} is not here: send the frames with `Sender` and take them with "
        "ZmqScan (docs/how-to/write-a-detector-server.md), or prepare a .ptyd file with ptypy and take it with PtydScan"
    )


def with_base(given: dict[str, Any], path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The tree of a file as `ptypy.run` takes it: `parameter_tree`, laid over that of `base_file` where one is named.

    A relative `base_file` is looked for beside the file that names it. A file without `parameter_tree` and `base_file` is
    the tree itself. Raises `ConfigurationError` for what cannot be read and for files that name each other in a ring.
    """
    trees: list[Mapping[str, Any]] = []
    for _ in range(MAX_BASES):
        if not {"base_file", "parameter_tree"} & given.keys():
            trees.append(given)
            break
        tree, base = given.get("parameter_tree") or {}, given.get("base_file")
        if not isinstance(tree, Mapping):
            raise ConfigurationError([Fault("parameter_tree", tree, f"{path}: must be a mapping")])
        more = sorted(given.keys() - {"base_file", "parameter_tree"})
        if more:
            told = f"{path}: must stand inside `parameter_tree`, as this file has one or a `base_file`"
            raise ConfigurationError([Fault(name, given[name], told) for name in more])
        trees.append(tree)
        if base is None:
            break
        if not isinstance(base, str):
            raise ConfigurationError([Fault("base_file", base, f"{path}: must be the name of a file")])
        path = path.parent / base
        given = read(path)
    else:
        raise ConfigurationError([Fault("base_file", str(path), f"more than {MAX_BASES} files on top of each other")])
    made: dict[str, Any] = {}
    for tree in reversed(trees):
        made = merged(made, tree)
    return made
