"""The example of 4D-STEM, in a small size: a microscope on the native wire, a quick look, and two slices."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ptystream.cli.app import app
from ptystream.cli.simulate import simulate
from ptystream.metrics import Metrics
from ptystream.params.load import load, read
from ptystream.plan import make_plan
from ptystream.session import Session
from ptystream.storage import ptyr

EXAMPLE = Path(__file__).parents[1] / "examples" / "stem"
STEPS = (18, 16)


def small(folder: Path, **scan: Any) -> tuple[Path, dict[str, Any], str]:
    """A file of the microscope, the configuration, and the address of both."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    file = folder / "microscope.yaml"
    file.write_text(yaml.safe_dump(read(EXAMPLE / "microscope.yaml") | {"steps": list(STEPS)}))
    given = read(EXAMPLE / "stem.yaml")
    given["io"] |= {"home": str(folder)}
    for part in ("publish", "metrics", "steering", "autosave", "autoplot"):
        given["io"].setdefault(part, {})["active"] = False
    given["min_frames_for_recon"], given["threads"], given["engines"]["a"]["numiter"] = 100, 1, 2
    data = given["scans"]["sheets"]["data"]
    data["address"], data["raster"] = address, data["raster"] | {"points": list(STEPS)} | scan
    return file, given, address


def test_the_example_shows_a_quick_look_and_leaves_two_slices(tmp_path: Path) -> None:
    file, given, address = small(tmp_path)
    sender = threading.Thread(
        target=simulate, args=(None, address, None, None, 2000.0, None, 0, False, 1, 1, False, str(file)), daemon=True
    )
    session = Session(make_plan(load(given)), metrics=Metrics(), on_ready=sender.start)
    (path,) = session.run()
    sender.join(30)
    assert not sender.is_alive()
    run = session.current
    assert run is not None and set(run.looks) == {"quick look: icom"}
    assert run.quality["quick_look"]["frames"] == STEPS[0] * STEPS[1]
    assert run.ledger()["flyback"] == 2 * (STEPS[0] - 1)
    result = ptyr.read(path)
    assert next(iter(result.object.values())).data.shape[0] == 2


def test_the_geometry_of_both_files_is_the_same(tmp_path: Path) -> None:
    told, known = read(EXAMPLE / "microscope.yaml"), read(EXAMPLE / "stem.yaml")
    data, engine = known["scans"]["sheets"]["data"], known["engines"]["a"]
    assert tuple(data["raster"]["points"]) == tuple(told["steps"]) and data["raster"]["flyback"] == told["flyback"]
    assert data["shape"] == told["shape"] and data["raster"]["step"] == told["step"]
    assert engine["acc_voltage"] == told["acc_voltage"] and engine["pixel_size_x_A"] == pytest.approx(1e10 * told["pixel"])
    assert engine["num_slices"] == told["slices"] and engine["slice_distances"] == [1e10 * told["slice_distance"]]


@pytest.mark.parametrize(
    ("file", "options", "said"),
    [
        ("steps: [0, 4]", [], "must be above 0"),
        ("semiangl: 0.01", [], "did you mean 'semiangle'?"),
        ("semiangle: 0.5", [], "patterns reach to"),
        ("steps: [4, 4]", ["--side", "64"], "--side 64"),
        ("steps: [4, 4]", ["--stem"], "--stem"),
        ("{steps: [2000, 2000], step: 1.0e-13, shape: 1024, pixel: 1.0e-11}", [], "4000000 patterns take"),
    ],
)
def test_a_microscope_that_cannot_be_is_refused(file: str, options: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(file)
    done = CliRunner().invoke(app, ["simulate", "--microscope", str(tmp_path / "m.yaml"), *options])
    assert done.exit_code != 0 and said in done.output.replace("\n", " ")
