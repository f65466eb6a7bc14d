"""Results: ptypy's layout node by node, everything back, whole or not there, nothing executed."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from samples import sample

from ptystream.reconstruction import Storage
from ptystream.storage import h5, layout, ptyr


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


@pytest.mark.parametrize("kind", ["minimal", "dls", "dump"])
def test_every_node_of_ptypys_layout_is_there_with_its_type(tmp_path: Path, kind: ptyr.Kind) -> None:
    theirs, ours = nodes(sample(f"moonflower_{kind}.ptyr")), nodes(ptyr.write(tmp_path / "a.ptyr", result(), kind))
    wrong = {name: (node, ours.get(name)) for name, node in theirs.items() if ours.get(name) != node}
    assert wrong == {}
    assert set(ours) - set(theirs) <= {f"content/runtime/iter_info/00000/{key}" for key in ("frames", "count")}
    assert ptyr.kind_of(tmp_path / "a.ptyr") == kind


def test_a_dump_has_the_last_iteration_alone(tmp_path: Path) -> None:
    infos = [{**result().iter_info[0], "iterations": k} for k in (1, 2, 3)]
    for kind, wanted in (("minimal", [1, 2, 3]), ("dump", [3])):
        back = ptyr.read(ptyr.write(tmp_path / "a.ptyr", result(iter_info=infos), kind))
        assert [info["iterations"] for info in back.iter_info] == wanted


def test_used_params_are_scans_and_engines_with_their_defaults(tmp_path: Path) -> None:
    used = {"run": "r", "io": {"home": "./"}, "engines": {"e": {"name": "DM", "alpha": 1.0, "clip_object": (0.1, 1.0)}}}
    for kind, wanted in (("minimal", result().parameters["engines"]), ("used_params", used["engines"])):
        with h5py.File(ptyr.write(tmp_path / "a.ptyr", result(used=used), kind)) as file:
            pars = h5.read(file["content/pars"])
            assert file["content/pars/engines/e"].attrs["type"] == "param"
        assert pars["engines"] == wanted
        assert pars["io"] == {"home": "./"}


def test_refined_positions_stand_where_ptypy_puts_them(tmp_path: Path) -> None:
    held = {"SaG00": np.arange(8.0).reshape(4, 2)}
    path = ptyr.write(tmp_path / "a.ptyr", result(refined_m=held))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["content/positions/SaG00"][()], held["SaG00"])
    np.testing.assert_array_equal(ptyr.read(path).refined_m["SaG00"], held["SaG00"])


@pytest.mark.parametrize("kind", ["minimal", "dls", "dump"])
def test_what_ptypy_wrote_is_read(kind: str) -> None:
    path = sample(f"moonflower_{kind}.ptyr")
    found = ptyr.read(path)
    with h5py.File(path) as file:
        node = file["content/obj/SMFG00"]
        data, center, pixel = node["data"][()], node["_center"][()], node["_psize"][()]
    storage = found.object["SMFG00"]
    np.testing.assert_array_equal(storage.data, data)
    assert storage.offset == tuple(-center.astype(int))
    assert storage.pixel_size_m == tuple(pixel)
    assert storage.energy_kev == 7.2
    assert found.probe["SMFG00"].data.shape == (1, 32, 32)
    assert found.iter_info[-1]["iterations"] == 20
    np.testing.assert_allclose(found.errors[-1], [48.3526, 20.7572, 19.5264], rtol=1e-5)
    assert found.parameters["engines"]["e0"] == {"name": "DM", "numiter": 20}
    assert found.run == "fixture"


def test_the_grids_are_the_coordinates_that_ptypy_writes() -> None:
    with h5py.File(sample("moonflower_dls.ptyr")) as file:
        theirs = file["content/obj/SMFG00/grids"][()]
    found = ptyr.read(sample("moonflower_dls.ptyr")).object["SMFG00"]
    ours = layout.node("SMFG00", found, 1, probe=False, grids=True)["grids"]
    np.testing.assert_allclose(np.array(ours), theirs, rtol=1e-12, atol=1e-18)


def test_what_ptypy_wrote_is_the_same_after_our_writing(tmp_path: Path) -> None:
    path = sample("moonflower_dls.ptyr")
    found = ptyr.read(path)
    again = ptyr.write(tmp_path / "a.ptyr", found, "dls")
    different = []

    def compare(name: str, node: Any) -> None:
        skipped = name.startswith(("content/runtime/", "header")) or name.endswith("/numID")
        if skipped or isinstance(node, h5py.Group):
            return
        if not np.array_equal(node[()], ours[name][()]):
            close = node.dtype.kind in "fc" and np.allclose(node[()], ours[name][()], rtol=1e-12, atol=1e-18)
            different.extend([] if close else [name])
        assert dict(node.attrs) == dict(ours[name].attrs), name

    with h5py.File(path) as theirs, h5py.File(again) as ours:
        theirs.visititems(compare)
    assert different == []


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


def test_a_file_that_is_none_and_one_that_is_cut_off_are_named(tmp_path: Path) -> None:
    path = ptyr.write(tmp_path / "a.ptyr", result())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(h5.H5Error, match=r"a\.ptyr: no HDF5 file, or not a whole one"):
        ptyr.read(path)
    with h5py.File(tmp_path / "b.ptyr", "w") as file:
        file["something"] = 1
    with pytest.raises(h5.H5Error, match=r"b\.ptyr: no /content"):
        ptyr.read(tmp_path / "b.ptyr")
    with pytest.raises(FileNotFoundError, match=r"c\.ptyr"):
        ptyr.read(tmp_path / "c.ptyr")


def _huge(group: h5py.Group) -> None:
    group.create_dataset("data", shape=(1, 1 << 17, 1 << 17), dtype="c8", chunks=(1, 64, 64))


def _huge_pieces(group: h5py.Group) -> None:
    group.create_dataset("data", shape=(1, 1 << 17, 1 << 14), dtype="f8", chunks=(1, 1 << 14, 1 << 14), compression="gzip")


def _announced(group: h5py.Group) -> None:
    group.create_dataset("data", shape=(1, 1024, 1024), dtype="c8", chunks=(1, 64, 64))


def _external(group: h5py.Group) -> None:
    group["data"] = h5py.ExternalLink("/etc/passwd", "/")


def _outside(group: h5py.Group) -> None:
    group.create_dataset("data", shape=(1, 4, 4), dtype="f4", external=[("/etc/passwd", 0, 64)])


def _virtual(group: h5py.Group) -> None:
    source = h5py.VirtualLayout((1, 4, 4), "f4")
    source[0] = h5py.VirtualSource("/etc/passwd", "a", (4, 4))
    group.create_virtual_dataset("data", source)


def _objects(group: h5py.Group) -> None:
    group.create_dataset("data", shape=(2,), dtype=h5py.special_dtype(vlen=np.dtype("u1")))


def _references(group: h5py.Group) -> None:
    group.create_dataset("data", shape=(2,), dtype=h5py.ref_dtype)


def _ring(group: h5py.Group) -> None:
    group["data"] = group


def _nowhere(group: h5py.Group) -> None:
    group["data"] = h5py.SoftLink("/nothing")


def _flat(group: h5py.Group) -> None:
    group["data"] = np.zeros(7, "c8")


@pytest.mark.parametrize(
    ("evil", "said"),
    [
        (_huge, "bytes, 4294967296 are allowed"),
        (_huge_pieces, "bytes, 4294967296 are allowed"),
        (_announced, "nothing is stored"),
        (_external, "link to another file"),
        (_outside, "other files, which are not opened"),
        (_virtual, "other files, which are not opened"),
        (_objects, "are not read"),
        (_references, "are not read"),
        (_ring, "links in a ring"),
        (_nowhere, "leads to nothing"),
        (_flat, "not complex"),
    ],
)
def test_a_hostile_file_is_refused_before_memory_is_taken(tmp_path: Path, evil: Any, said: str) -> None:
    path = ptyr.write(tmp_path / "a.ptyr", result())
    with h5py.File(path, "r+") as file:
        del file["ptystream"]  # as another program would write it
        group = file["content/obj/SaG00"]
        del group["data"]
        evil(group)
    with pytest.raises(h5.H5Error, match=said) as raised:
        ptyr.read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        (1.5, "scalar"),
        (1 - 2j, "scalar"),
        (np.complex64(1 - 2j), "scalar"),
        (True, "scalar"),
        (None, "None"),
        ("naïve", "string"),
        ("", "string"),
        ([1, 2, 3], "arraylist"),
        ((1.0, 2.0), "arraytuple"),
        ([1j, 2j], "arraylist"),
        ([True, False], "arraylist"),
        ([], "list"),
        ((), "tuple"),
        ([1, 2.5, "x", None], "list"),
        (("a", [1, {"b": (None,)}]), "tuple"),
        ({"a/b": {"c": 1}}, "dict"),
        ({}, "dict"),
        ([10**30, 1], None),
        (b"raw", None),
        (np.array(["a"]), None),
        (np.array([None]), None),
    ],
)
def test_every_kind_of_value_comes_back_or_is_refused_by_name(tmp_path: Path, value: Any, tag: str | None) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if tag is None:
            with pytest.raises(h5.H5Error, match=r"node.*has no form"):
                h5.write(file, "node", value)
            return
        h5.write(file, "node", value)
        assert file["node"].attrs["type"] == tag
        back = h5.read(file["node"])
    assert back == value
    assert isinstance(back, type(value)) or isinstance(value, np.generic)


def test_a_list_of_arrays_of_one_shape_is_one_dataset(tmp_path: Path) -> None:
    value = (np.arange(6.0).reshape(2, 3), np.ones((2, 3)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        h5.write(file, "node", value)
        assert (file["node"].attrs["type"], file["node"].shape) == ("arraytuple", (2, 2, 3))
        back = h5.read(file["node"])
    assert isinstance(back, tuple)
    np.testing.assert_array_equal(back, value)


def test_a_parameter_without_a_form_is_told_by_its_text(tmp_path: Path) -> None:
    given = {"run": "r", "engines": {"e": {"path": Path("a/b"), "many": 10**30}}}
    back = ptyr.read(ptyr.write(tmp_path / "a.ptyr", result(parameters=given)))
    assert back.parameters["engines"]["e"] == {"path": "a/b", "many": 10**30}
    with h5py.File(tmp_path / "a.ptyr") as file:
        assert h5.read(file["content/pars/engines/e"]) == {"path": "a/b", "many": str(10**30)}
