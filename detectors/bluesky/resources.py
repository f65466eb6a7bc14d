"""Files that documents name: Resource with Datum, StreamResource with StreamDatum."""

from __future__ import annotations

import posixpath
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlparse

from ptystream.events import FileRows

from ..wire import WireError

MAX_RESOURCES = 1 << 16
MAX_DATUMS = 1 << 20
MAX_ROW = 1 << 48
HDF5 = "application/x-hdf5"
AREA_DETECTOR = "/entry/data/data"
"""Dataset of areaDetector's HDF5 plugin, and of the files of an EIGER."""
TIFF_TEMPLATE = re.compile(r"[^%]*%s[^%]*%s[^%]*%(?:\d{1,2})?(?:\.\d{1,2})?d[^%]*")
"""Folder, name and number of a TIFF file: nothing else is formatted."""
READ = "HDF5, NPY_SEQ, AD_TIFF and AD_EIGER are; let the detector's plugin write HDF5, or take its frames over ZeroMQ"


@dataclass(slots=True)
class Stream:
    """One StreamResource: a file to which rows are added."""

    file: str
    dataset: str
    key: str
    run: str
    first: int | None = None
    """Index of its first row; None before the first StreamDatum."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One Resource of classic ophyd."""

    spec: str
    file: str
    dataset: str
    frames: int | None
    """Frames of one datum; None: as the descriptor says."""
    template: str | None = None
    """Of files that hold a frame each."""
    name: str = ""
    """Of TIFF files, what the template wants beside folder and number."""
    per_file: int | None = None
    """Of an EIGER, frames of one file."""


@dataclass(slots=True)
class Files:
    """What is known of files. Bounded: the oldest are forgotten."""

    path_map: Mapping[str, str]
    dataset: str | None
    folders: tuple[str, ...] | None = None
    """Where files may be read: as of `ptystream.events.FileRows`."""
    streams: OrderedDict[str, Stream] = field(default_factory=OrderedDict)
    elsewhere: OrderedDict[str, str] = field(default_factory=OrderedDict)
    """StreamResources of kinds that are not read → their kind."""
    resources: OrderedDict[str, Resource] = field(default_factory=OrderedDict)
    datums: OrderedDict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=OrderedDict)
    """Datum id → (resource, arguments)."""
    _newest: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    """(run, data key) → (its newest stream, index behind its last row)."""

    def located(self, path: str) -> str:
        """The path where it is mounted here: the longest entry of `path_map` that it begins with is replaced."""
        for there in sorted(self.path_map, key=len, reverse=True):
            if path == there or path.startswith(there if there.endswith("/") else f"{there}/"):
                return self.path_map[there].rstrip("/") + "/" + path[len(there) :].lstrip("/")
        return path

    def _path(self, uri: str) -> str:
        if (mapped := self.located(uri)) != uri:
            uri = mapped
        url = urlparse(uri)
        if url.scheme not in ("file", ""):
            raise WireError("unknown_uri", f"{uri!r:.200}: only files are read; map it with path_map")
        return self.located(unquote(url.path))

    def ignore(self, uid: str, why: str) -> None:
        """Rows of this StreamResource are not read."""
        _remember(self.elsewhere, uid, why, MAX_RESOURCES)

    def stream_resource(self, document: Mapping[str, Any]) -> None:
        """Take over a StreamResource. Raises `WireError`."""
        uid, key, run = (_text(document, name) for name in ("uid", "data_key", "run_start"))
        arguments = document.get("parameters", document.get("resource_kwargs", {}))
        arguments = arguments if isinstance(arguments, Mapping) else {}
        kind = document.get("mimetype", HDF5 if "hdf5" in str(document.get("spec", "")).lower() else document.get("spec"))
        if kind != HDF5:
            self.ignore(uid, str(kind)[:100])
            raise WireError("unknown_mimetype", f"{key!r:.60} is {kind!r:.60}: its frames must come from elsewhere")
        if "uri" in document:
            file = self._path(_text(document, "uri"))
        else:
            file = self.located(posixpath.join(str(document.get("root", "")), _text(document, "resource_path")))
        dataset = self.dataset or arguments.get("dataset") or arguments.get("path")
        if not isinstance(dataset, str):
            raise WireError("malformed", f"the stream_resource of {key!r:.60} names no dataset: give one with `dataset`")
        if uid not in self.streams:
            _remember(self.streams, uid, Stream(file, dataset, key, run), MAX_RESOURCES)

    def rows(self, uid: str, start: int, stop: int) -> int:
        """Row in the file of a stream's index `start`. Raises `WireError` where a file's first row cannot be known."""
        stream = self.streams[uid]
        key = (stream.run, stream.key)
        newest, end = self._newest.get(key, (uid, 0))
        if stream.first is None:
            if newest == uid or start < end:
                stream.first = 0  # the first file of this key, or one that counts from 0 again
            elif start == end:
                stream.first = start
            else:
                raise WireError("gap", f"rows {end} to {start - 1} of {stream.key!r:.60} are missing where the file changed")
        if newest != uid or stop > end:
            self._newest[key] = (uid, stop)
            while len(self._newest) > MAX_RESOURCES:
                del self._newest[next(iter(self._newest))]
        if start < stream.first:
            raise WireError("malformed", f"index {start} of {stream.key!r:.60} lies before its file")
        return start - stream.first

    def resource(self, document: Mapping[str, Any]) -> None:
        """Take over a Resource. Raises `WireError`."""
        uid, spec, path = (_text(document, name) for name in ("uid", "spec", "resource_path"))
        arguments = document.get("resource_kwargs", {})
        arguments = arguments if isinstance(arguments, Mapping) else {}
        file = self.located(posixpath.join(str(document.get("root", "")), path))
        frames = arguments.get("frame_per_point", arguments.get("multiplier"))
        dataset = self.dataset or arguments.get("dataset") or arguments.get("path") or arguments.get("key") or AREA_DETECTOR
        template: Any = None
        name: Any = ""
        per_file = None
        if spec == "NPY_SEQ":
            template, dataset = f"{file}_{{}}.npy", ""
        elif spec.startswith("AD_TIFF"):
            template, name, dataset = arguments.get("template"), arguments.get("filename"), ""
            if not isinstance(template, str) or len(template) > 256 or not TIFF_TEMPLATE.fullmatch(template):
                raise WireError(
                    "malformed", f"the resource {uid!r:.60} has the template {template!r:.60}, not like '%s%s_%6.6d.tiff'"
                )
            if not isinstance(name, str) or len(name) > 1024:
                raise WireError("malformed", f"the resource {uid!r:.60} has the file name {name!r:.60}")
        elif spec.startswith("AD_EIGER"):
            per_file, dataset = arguments.get("images_per_file"), self.dataset or AREA_DETECTOR
            if not _is_count(per_file) or not per_file:
                raise WireError(
                    "malformed", f"the resource {uid!r:.60} of an EIGER tells no images_per_file, but {per_file!r:.40}"
                )
        elif not ("HDF5" in spec.upper() or path.endswith((".h5", ".hdf5", ".nxs"))):
            raise WireError("unknown_spec", f"resources of the kind {spec!r:.60} are not read: {READ}")
        if not isinstance(dataset, str):
            raise WireError("malformed", f"the resource {uid!r:.60} names the dataset {dataset!r:.60}")
        known = frames if _is_count(frames) and 0 < frames <= 1 << 16 else None
        _remember(self.resources, uid, Resource(spec, file, dataset, known, template, name, per_file), MAX_RESOURCES)

    def datum(self, uid: str, resource: str, arguments: Any) -> None:
        """Take over a Datum."""
        _remember(self.datums, uid, (resource, arguments if isinstance(arguments, Mapping) else {}), MAX_DATUMS)

    def frames(self, datum: str, per_event: int) -> list[FileRows]:
        """The frames of a datum. Raises `WireError`, or `KeyError` where the datum has not come."""
        uid, arguments = self.datums[datum]
        resource = self.resources.get(uid)
        if resource is None:
            raise WireError("unknown_resource", f"datum {datum!r:.60} of a resource that was not told")
        if resource.per_file is not None:
            return self._of_eiger(resource, resource.per_file, arguments, resource.frames or per_event)
        if resource.spec.startswith("AD_TIFF") and resource.template is not None:
            first = _point(datum, arguments) * (resource.frames or per_event)
            folder, numbers = posixpath.join(resource.file, ""), range(first, first + (resource.frames or per_event))
            return [FileRows(resource.template % (folder, resource.name, number), "", 0, self.folders) for number in numbers]
        if resource.template is not None:
            point = arguments.get("index", arguments.get("point_number", datum.rpartition("/")[2]))
            text = str(point)
            if not text.isdecimal() or len(text) > 12:
                raise WireError("malformed", f"datum {datum!r:.60} has no number")
            return [FileRows(resource.template.format(text), "", 0, self.folders)]
        point = _point(datum, arguments)
        per = resource.frames or per_event
        return [FileRows(resource.file, resource.dataset, point * per + k, self.folders) for k in range(per)]

    def _of_eiger(self, resource: Resource, per_file: int, arguments: Mapping[str, Any], per_event: int) -> list[FileRows]:
        """The frames of a series, in the files beside its master, of which each holds `per_file`. Raises `WireError`."""
        series, one = arguments.get("seq_id"), arguments.get("frame_num")
        if not _is_count(series) or not (one is None or _is_count(one)):
            raise WireError("malformed", f"a datum of an EIGER with seq_id {series!r:.40}, frame_num {one!r:.40}")
        numbers = range(per_event) if one is None else [int(one)]
        name = f"{resource.file}_{series}_data_"
        return [FileRows(f"{name}{k // per_file + 1:06d}.h5", resource.dataset, k % per_file, self.folders) for k in numbers]


def _point(datum: str, arguments: Mapping[str, Any]) -> int:
    """Which event a datum belongs to, from 0 on. Raises `WireError`."""
    point = arguments.get("point_number", arguments.get("frame", arguments.get("index")))
    if not _is_count(point):
        raise WireError("malformed", f"datum {datum!r:.60}: point_number {point!r:.40} is no row")
    return int(point)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_ROW


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not 0 < len(value) < 4096:
        raise WireError("malformed", f"{name}: {value!r:.60} is no text")
    return value


def _remember(table: OrderedDict[str, Any], key: str, value: Any, limit: int) -> None:
    table[key] = value
    while len(table) > limit:
        table.popitem(last=False)
