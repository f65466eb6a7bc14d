"""A result as an entry of a Tiled server: a container with arrays and metadata, which its own clients read."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptystream.publish.snapshot import LEDGER_CODES
from ptystream.quality import fit_ramp, remove_ramp
from ptystream.reconstruction import Storage
from ptystream.schedule import steered

from . import ptyr
from .nexus import moment

Entry: TypeAlias = tuple[str, NDArray[Any], list[str], dict[str, Any]]
"""(key, array, names of its axes, metadata)"""
SPEC = "ptystream.result"
"""By which a client of Tiled finds such entries."""
KEY_VARIABLE = "TILED_API_KEY"
MAX_KEY = 4096


class TiledError(RuntimeError):
    """A result cannot be put there; the text says why and what to do."""


def is_installed() -> bool:
    """Whether the extra `tiled` is there, with what its client needs for arrays."""
    return all(importlib.util.find_spec(name) is not None for name in ("tiled", "httpx", "ndindex", "dask"))


def key_of(file: Path | None) -> str:
    """The API key: the file's first line, or the environment's. Raises `TiledError` where there is none: without one the client
    would ask whoever sits at the terminal."""
    if file is None:
        if not (known := os.environ.get(KEY_VARIABLE, "")):
            raise TiledError(f"no API key: set the environment variable {KEY_VARIABLE}, or io.tiled.api_key_file")
        return known
    try:
        with open(file, encoding="utf-8") as lines:
            key = lines.readline(MAX_KEY).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TiledError(f"{file}: {error}") from error
    if not key:
        raise TiledError(f"{file}: its first line is empty; it must be the API key")
    return key


def wrong(uri: str, key: str, timeout_s: float = 10.0) -> str | None:
    """What keeps a server from being written to, and what to do; None where it lets `key` in. Slow: it loads the client."""
    import httpx
    from tiled.client import from_uri

    try:
        place = from_uri(uri, api_key=key, timeout=httpx.Timeout(timeout_s), remember_me=False, show_progress=False)
        place.context.close()
    except Exception as error:  # the client's library raises whatever its own libraries do
        told = f"{type(error).__name__}: {error}".replace(key, "…")[:300]
        return f"{told}; start the server, or correct uri and key"
    return None


def put(path: Path, uri: str, *, key: str, container: str = "", timeout_s: float = 120.0) -> str:
    """Write the result in a file into a Tiled server; returns the address of its entry.

    `container`: below `uri`, its parts with '/' between; made where it is not there. An entry that was not finished has
    `complete: false` in its metadata. Raises `TiledError`; its text never holds the key.
    """
    import httpx
    from tiled.client import from_uri

    deadline, opened = time.monotonic() + timeout_s, ExitStack()
    try:
        result = ptyr.read(path)
        place = from_uri(uri, api_key=key, timeout=httpx.Timeout(timeout_s), remember_me=False, show_progress=False)
        opened.callback(place.context.close)
        for part in container.split("/") if container else ():
            place = place[part] if part in place else place.create_container(part)
        about = json.loads(json.dumps(metadata(result, path), default=ptyr.plain, allow_nan=True))
        entry = place.create_container(name_of(result), metadata=_without_nan(about), specs=[SPEC])
        for name, array, dims, told in arrays(result):
            if time.monotonic() > deadline:
                raise TiledError(f"{entry.uri}: not written within {timeout_s:g} s; the entry is not complete")
            entry.write_array(np.ascontiguousarray(array), key=name, dims=dims, metadata=told)
        entry.update_metadata({"complete": True})
    except TiledError:
        raise
    except Exception as error:  # the client's library raises whatever its own libraries do
        text = f"{type(error).__name__}: {error}"
        raise TiledError(f"{uri}: {text.replace(key, '…')}"[:1000]) from None
    finally:
        opened.close()
    return str(entry.uri)


def name_of(result: ptyr.Result) -> str:
    """Key of the entry: the run's name, and what tells it from another run of that name."""
    return f"{result.run}_{(result.uid or str(int(result.started)))[:8]}"


def metadata(result: ptyr.Result, path: Path) -> dict[str, Any]:
    """What is told of a result, as plain values."""
    last = result.iter_info[-1] if result.iter_info else {}
    known = result.misfit[:, 1][np.isfinite(result.misfit[:, 1])] if len(result.misfit) else np.zeros(0)
    return {
        "complete": False,
        "run": result.run,
        "uid": result.uid,
        "started": moment(result.started),
        "ended": moment(result.ended),
        "scans": result.scans,
        "engines": [{k: e.get(k) for k in ("label", "name")} for e in result.schedule if e["do"] == "engine"],
        "iterations": last.get("iterations", 0),
        "misfit_photon": float(known[-1]) if len(known) else None,
        "frames": int(result.ledger.get("used", 0)),
        "ledger": dict(result.ledger),
        "decisions": result.decisions,
        "quality": {name: dict(figure) for name, figure in result.quality.items()},
        "steering": steered(result.schedule),
        "versions": dict(result.versions),
        "made_by": dict(result.made_by),
        "configuration": result.parameters,
        "file": str(path.absolute()),
    }


def arrays(result: ptyr.Result) -> Iterator[Entry]:
    """What is written. Complex images have real ones beside them, of what Tiled can draw."""
    for kind, held in (("object", result.object), ("probe", result.probe)):
        for name, storage in held.items():
            told = {"pixel_size_m": storage.pixel_size_m, "offset": storage.offset, "energy_kev": storage.energy_kev}
            yield f"{kind}_{name}", storage.data, ["layer", "y", "x"], told
            if kind == "object":
                yield from _for_the_eye(name, storage, result)
    for name, seen in result.coverage.items():
        yield f"coverage_{name}", seen, ["y", "x"], {}
    yield "positions_m", result.positions_m, ["frame", "axis"], {"columns": ["y", "x"], "unit": "m"}
    if len(result.frame_numbers):
        yield "frame_numbers", result.frame_numbers, ["frame", "column"], {"columns": ["scan", "frame"]}
    for name, curve, columns in (
        ("misfit", result.misfit, ["amplitude", "photon", "poisson_expectation"]),
        ("errors", result.errors, ["fourier", "photon", "exit"]),
    ):
        if len(curve):
            yield name, curve, ["iteration", "column"], {"columns": columns}
    if len(result.ledger_frames):
        states = {"columns": ["y", "x", "state"], "states": list(LEDGER_CODES), "unit": "object pixels"}
        yield "ledger", result.ledger_frames, ["frame", "column"], states


def _for_the_eye(name: str, storage: Storage, result: ptyr.Result) -> Iterator[Entry]:
    image, seen = np.asarray(storage.data[0]), result.coverage.get(name)
    lit = seen if seen is not None and seen.shape == image.shape else np.ones(image.shape, np.float32)
    ramp = fit_ramp(image, lit)
    flat = remove_ramp(image, ramp)
    told = {"ramp": list(ramp), "about": "first layer, without constant and ramp of the phase"}
    yield f"object_{name}_amplitude", np.abs(flat).astype(np.float32), ["y", "x"], told
    yield f"object_{name}_phase", np.angle(flat).astype(np.float32), ["y", "x"], told


def _without_nan(value: Any) -> Any:
    """JSON has no form for what is no number."""
    if isinstance(value, dict):
        return {key: _without_nan(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_without_nan(held) for held in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
