"""Results: ptypy's layout node by node, everything back, whole or not there, nothing executed."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptystream.reconstruction import Storage
from ptystream.storage import h5, ptyr

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "ptypy" / "moonflower_minimal.ptyr"


def result(**changed: Any) -> ptyr.Result:
    random = np.random.default_rng(0)
    wave = (random.normal(size=(2, 9, 11)) + 1j * random.normal(size=(2, 9, 11))).astype("c8")
    given = {
        "run": "r",
        "probe": {"SaG00": Storage(wave[:, :8, :8].copy(), (1e-8, 2e-8), (0, 0), 0.0, 7.2)},
        "object": {"SaG00": Storage(wave[:1], (1e-8, 2e-8), (-4, -7), 1 - 0.5j, 7.2)},
        "parameters": {"run": "r", "engines": {"e": {"name": "DM", "clip_object": [0.1, 1.0], "probe_support": None}}},
        "iter_info": [
            {"iteration": 1, "iterations": 1, "numiter": 2, "engine": "DM", "duration": 0.5, "error": np.arange(3.0), "frames": 4}
        ],
        "positions_m": random.normal(size=(4, 2)),
        "errors": random.normal(size=(1, 3)),
        "misfit": random.normal(size=(1, 3)),
        "ledger": {"received": 4, "used": 3, "position_missing": 1},
        "ledger_frames": np.ones((4, 3), "f4"),
        "schedule": [{"do": "take", "scan": "a", "indices": [[0, 4]]}, {"do": "iterate", "iterations": 1, "rows": None}],
        "decisions": {"a": {"mean_photons": 3.5}},
        "versions": {"ptystream": "0"},
        "coverage": {"SaG00": np.ones((9, 11), "f4")},
        "last": {"probe": {}, "object": {"SaG00": Storage(wave[1:], (1e-8, 2e-8), (-4, -7), 1 - 0.5j, 7.2)}},
    }
    return ptyr.Result(**(given | changed))


def nodes(path: Path) -> dict[str, tuple[Any, ...]]:
    """name → (type, dtype, rank) of every node of the layout, storage names replaced."""
    found = {}

    def visit(name: str, node: Any) -> None:
        if name.startswith(("content/pars/", "ptystream")):
            return
        if "/iter_info/" in name and "/iter_info/00000" not in name:
            return
        parts = name.split("/")
        if len(parts) > 2 and parts[1] in ("probe", "obj"):
            parts[2] = "ID"
        kind = node.attrs["type"]
        dtype = None if isinstance(node, h5py.Group) else (node.dtype.kind, node.dtype.itemsize, node.ndim)
        found["/".join(parts)] = (kind.decode() if isinstance(kind, bytes) else kind, dtype)

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def test_every_node_of_ptypys_minimal_layout_is_there_with_its_type(tmp_path: Path) -> None:
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE.name} is not here")
    theirs, ours = nodes(SAMPLE), nodes(ptyr.write(tmp_path / "a.ptyr", result()))
    wrong = {name: (kind, ours.get(name)) for name, kind in theirs.items() if ours.get(name) != kind}
    assert wrong == {}
    assert set(ours) - set(theirs) <= {f"content/runtime/iter_info/00000/{key}" for key in ("frames", "count")}


def test_physical_zero_lies_where_the_center_says(tmp_path: Path) -> None:
    with h5py.File(ptyr.write(tmp_path / "a.ptyr", result())) as file:
        node = file["content/obj/SaG00"]
        assert node["_center"][()].tolist() == [4, 7]
        np.testing.assert_allclose(node["_origin"][()], [-4e-8, -14e-8])


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    for pixel in ((1e-8, 2e-8), None):
        wanted = result()
        for held in (wanted.probe, wanted.object):
            held["SaG00"].pixel_size_m = pixel
        back = ptyr.read(ptyr.write(tmp_path / "a.ptyr", wanted))
        assert back.parameters == wanted.parameters
        assert back.schedule == wanted.schedule
        assert back.ledger == wanted.ledger
        assert back.decisions == wanted.decisions
        assert back.iter_info[0]["frames"] == 4
        np.testing.assert_array_equal(back.positions_m, wanted.positions_m)
        for a, b in ((back.probe, wanted.probe), (back.object, wanted.object), (back.last["object"], wanted.last["object"])):
            np.testing.assert_array_equal(a["SaG00"].data, b["SaG00"].data)
            assert a["SaG00"].offset == b["SaG00"].offset
            assert a["SaG00"].fill == b["SaG00"].fill
        assert back.object["SaG00"].pixel_size_m == pixel


def test_a_write_that_fails_leaves_the_old_file_whole_and_no_rest(tmp_path: Path) -> None:
    path = ptyr.write(tmp_path / "a.ptyr", result())
    with pytest.raises(h5.H5Error, match="has no form"):
        ptyr.write(path, result(versions={"bad": object()}))
    assert ptyr.read(path).run == "r"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ptyr"]


def test_a_pickled_node_is_refused_by_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("evil", data=b"cos\nsystem\n").attrs["type"] = "pickle"
        with pytest.raises(h5.H5Error, match=r"evil.*could execute"):
            h5.read(file["evil"])
        with pytest.raises(h5.H5Error, match=r"evil.*could execute"):
            h5.read(file)


@pytest.mark.parametrize(
    "missing",
    [
        "ptystream/storages",
        "ptystream/storages/SaG00/object",
        "ptystream/schedule",
        "content/runtime/run",
        "content/obj/SaG00/data",
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, missing: str) -> None:
    path = ptyr.write(tmp_path / "a.ptyr", result())
    with h5py.File(path, "r+") as file:
        del file[missing]
    with pytest.raises(h5.H5Error, match=r"a\.ptyr: incomplete or damaged .*h5py"):
        ptyr.read(path)


@pytest.mark.parametrize("found", [None, "ptystream-result-99", 3])
def test_another_version_of_the_format_is_refused(tmp_path: Path, found: object) -> None:
    path = ptyr.write(tmp_path / "a.ptyr", result())
    with h5py.File(path, "r+") as file:
        del file["ptystream/format"]
        if found is not None:
            h5.write(file["ptystream"], "format", found)
    with pytest.raises(h5.H5Error, match=f"format is {found!r}; this version reads"):
        ptyr.read(path)


def test_a_file_of_another_program_is_named_as_such(tmp_path: Path) -> None:
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE.name} is not here")
    with pytest.raises(h5.H5Error, match="another program"):
        ptyr.read(SAMPLE)
