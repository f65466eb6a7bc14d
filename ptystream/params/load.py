"""From a file or a nested dict to a checked configuration. Nothing is opened or connected before all of it is right."""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from pydantic import BaseModel, Field, ValidationError, create_model

from ptystream.model.models import BARE, MODELS
from ptystream.model.scan_model import ScanModel
from ptystream.params.base import Branch, kinds
from ptystream.params.branches import RootParameters
from ptystream.params.describing import described, in_memory, refused, unfolded, without_prefix
from ptystream.params.errors import ConfigurationError, Fault, closest, faults_of
from ptystream.params.home import home
from ptystream.params.plain import plain
from ptystream.params.ptypy_files import engine_name, instead_of, with_base, without_tuning
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 << 20
PICKLED = (".pkl", ".pickle", ".nxs")
"""Endings of files in which other programs keep their parameters as a pickle."""


@dataclass(frozen=True, slots=True)
class SourceConfiguration:
    """One source of a scan: which plug-in, with which parameters."""

    name: str
    plugin: Any
    parameters: Any


@dataclass(frozen=True, slots=True)
class ScanConfiguration:
    """One entry of `scans`."""

    label: str
    model: type[ScanModel]
    parameters: Any
    data: SourceConfiguration
    positions: SourceConfiguration | None
    also: tuple[SourceConfiguration, ...] = ()
    """Further sources of samples: beam monitors, shutters."""

    @property
    def sources(self) -> dict[str, SourceConfiguration]:
        """By the name of their channel: 'data', 'positions', 'also.0', …; none where those of another scan are used."""
        if self.data.parameters.follows is not None:
            return {}
        found = {"data": self.data} | ({} if self.positions is None else {"positions": self.positions})
        return found | {f"also.{k}": source for k, source in enumerate(self.also)}


@dataclass(frozen=True, slots=True)
class EngineConfiguration:
    """One entry of `engines`."""

    label: str
    name: str
    engine: Any
    parameters: Any


@dataclass(frozen=True, slots=True)
class Configuration:
    """A whole configuration, checked."""

    name: str
    root: RootParameters
    scans: tuple[ScanConfiguration, ...]
    engines: tuple[EngineConfiguration, ...]
    """In the order in which they run: by label."""
    given: Mapping[str, Any]
    """The nested dict as it was given."""


def load(source: Any, overrides: Mapping[str, Any] | None = None, name: str = "ptystream") -> Configuration:
    """Read and check a configuration: the name of a YAML, JSON or TOML file, or nested mappings or namespaces.

    `overrides` replaces entries of the top level: what the command line overrules; None leaves an entry as it is. `name`
    is that of the run where neither a file nor the configuration says one. Raises `ConfigurationError` with everything
    that is wrong.
    """
    if isinstance(source, (str, Path)):
        name = Path(source).name.split(".")[0] or name
    given = tree_of(source)
    return check(given | {key: value for key, value in (overrides or {}).items() if value is not None}, name)


def tree_of(source: Any) -> dict[str, Any]:
    """The nested dict that `source` means: the name of a file, with those that it is based on, or mappings or namespaces.

    Raises `ConfigurationError` for everything else and for what cannot be read.
    """
    if isinstance(source, (str, Path)):
        return with_base(read(Path(source)), Path(source), read)
    given = plain(source)
    if not isinstance(given, dict):
        raise ConfigurationError([Fault("configuration", source, "must be a file name, a mapping or a namespace")])
    return given


def read(path: Path) -> dict[str, Any]:
    """The nested dict in a file. Raises `ConfigurationError` where it cannot be read."""
    readers: dict[str, Callable[[str], Any]] = {
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".json": json.loads,
        ".toml": tomllib.loads,
    }
    if path.suffix.lower() in PICKLED:
        remedy = "a pickle may run any program when it is read: write the dictionary as .json or .yaml, arrays as .npy files "
        raise ConfigurationError([Fault("configuration", str(path), remedy + "that it names, or give it to ptystream.pypty_run")])
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError([Fault("configuration", str(path), f"must end in {', '.join(readers)}")])
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigurationError([Fault("configuration", str(path), f"is larger than {MAX_FILE_BYTES >> 20} MiB")])
        given = reader(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError([Fault("configuration", str(path), f"cannot be read: {error}")]) from error
    if not isinstance(given, dict):
        raise ConfigurationError([Fault("configuration", str(path), "must be a mapping at the top level")])
    return given


def check(given: Mapping[str, Any], default_name: str) -> Configuration:
    """Check a nested dict against the tree."""
    faults: list[Fault] = []
    noted = in_memory(given)
    tree, prefix = unfolded(noted, plugins("engines"))
    given = _described(tree, faults)
    rest = {key: value for key, value in given.items() if key not in ("scans", "engines")}
    root = _branch(RootParameters, rest, "", faults, extra=("scans", "engines"))
    where = Path("." if root is None else root.io.home)
    with home(where):
        scans = [_scan(label, entry, where, faults) for label, entry in _entries(given, "scans", faults)]
        engines = [
            _engine(label, entry, faults) for label, entry in sorted(_entries(given, "engines", faults), key=lambda e: e[0])
        ]
    for part, found in (("scans", scans), ("engines", engines)):
        told = faults if prefix else [fault for fault in faults if fault.path.startswith(part)]
        if not found and not told:
            faults.append(Fault(part, given.get(part), "needs at least one entry with a `name`"))
    following = _following([s for s in scans if s is not None], faults)
    if faults or root is None:
        raise ConfigurationError(without_prefix(faults, prefix))
    return Configuration(
        root.run or default_name,
        root,
        tuple(following),
        tuple(e for e in engines if e is not None),
        noted,
    )


def _described(tree: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """The tree with what its engines are told of the scans in these."""
    where = tree.get("io")
    with home(str(where.get("home") or ".") if isinstance(where, Mapping) else "."):
        for label, entry in tree["engines"].items() if isinstance(tree.get("engines"), Mapping) else ():
            name = entry.get("name") if isinstance(entry, Mapping) else None
            engine = None if name is None else plugins("engines").get(engine_name(str(name)))
            if engine is None or not hasattr(engine, "describes_scan"):
                continue
            own, wrong = dict(entry), list[Fault]()
            refused(engine, own, "")
            parameters = _branch(engine.Parameters, own, "", wrong)
            if parameters is not None:  # otherwise it is told with the engine's other faults
                tree = described(tree, str(label), engine, parameters, faults)
    return tree


def _entries(given: Mapping[str, Any], part: str, faults: list[Fault]) -> list[tuple[str, dict[str, Any]]]:
    """Entries with a name; those without are templates."""
    branch = given.get(part) or {}
    if not isinstance(branch, Mapping):
        faults.append(Fault(part, branch, "must be a mapping of labels to entries"))
        return []
    found = []
    for label, entry in branch.items():
        if not isinstance(entry, Mapping):
            faults.append(Fault(f"{part}.{label}", entry, "must be a mapping"))
        elif entry.get("name") is not None:
            found.append((str(label), dict(entry)))
    return found


def _scan(label: str, entry: dict[str, Any], home: Path, faults: list[Fault]) -> ScanConfiguration | None:
    path = f"scans.{label}"
    model = MODELS.get(entry["name"])
    if model is None:
        bare = "what all models have in common" if entry["name"] in BARE else "not a scan model of this version"
        faults.append(Fault(f"{path}.name", entry["name"], f"{bare}; {closest(str(entry['name']), MODELS)}"))
        return None
    data = entry.pop("data", None)
    parameters = _branch(model.Parameters, entry, path, faults, extra=("data",))
    if not isinstance(data, Mapping) or data.get("name") is None:
        faults.append(Fault(f"{path}.data", data, "needs the `name` of a source"))
        return None
    data = dict(data)
    positions, also = data.pop("positions", None), data.pop("also", None)
    frames = _source(f"{path}.data", data, PtyScanParameters, faults, extra=("positions", "also"))
    frames = None if frames is None else _complete(frames, f"{path}.data", home, faults)
    where = None
    if positions is not None:
        if not isinstance(positions, Mapping) or positions.get("name") is None:
            faults.append(Fault(f"{path}.data.positions", positions, "needs the `name` of a source"))
        else:
            where = _source(f"{path}.data.positions", dict(positions), PositionsParameters, faults)
    further = _also(f"{path}.data.also", also, faults)
    if parameters is None or frames is None:
        return None
    return ScanConfiguration(label, model, parameters, frames, where, further)


def _following(scans: list[ScanConfiguration], faults: list[Fault]) -> list[ScanConfiguration]:
    """The scans; those that follow another one with its sources of samples, where they name none."""
    by_label = {scan.label: scan for scan in scans}
    taken: dict[str, str] = {}
    made = []
    for scan in scans:
        label = scan.data.parameters.follows
        if label is None:
            made.append(scan)
            continue
        path, before, chain = f"scans.{scan.label}.data.follows", by_label.get(label), [scan.label]
        while label in by_label and label not in chain:
            chain.append(label)
            label = by_label[label].data.parameters.follows or ""
        if before is None or label in chain:
            others = ", ".join(sorted(set(by_label) - {scan.label})) or "none"
            faults.append(Fault(path, chain[-1] if before else label, f"must lead to a scan with sources; known: {others}"))
        elif before.label in taken:
            faults.append(Fault(path, before.label, f"scan {taken[before.label]!r} follows it already: name that one"))
        elif before.data.name != scan.data.name:
            faults.append(Fault(path, before.label, f"its frames come from {before.data.name}: use that name here too"))
        else:
            taken[before.label] = scan.label
            first = by_label[chain[-1]]
            made.append(replace(scan, positions=scan.positions or first.positions, also=scan.also or first.also))
    return made


def _also(path: str, given: Any, faults: list[Fault]) -> tuple[SourceConfiguration, ...]:
    """The further sources of a scan: a list of entries as `positions`, without positions."""
    if given is not None and not isinstance(given, (list, tuple)):
        faults.append(Fault(path, given, "must be a list of sources, each with a `name`"))
        return ()
    found = []
    for k, entry in enumerate(given or ()):
        here = f"{path}[{k}]"
        if not isinstance(entry, Mapping) or entry.get("name") is None:
            faults.append(Fault(here, entry, "needs the `name` of a source"))
            continue
        source = _source(here, dict(entry), PositionsParameters, faults)
        if source is not None and source.parameters.channels.y is not None:
            remedy = "positions come from `positions`; here set channels.y and channels.x to null and name dose or shutter"
            faults.append(Fault(f"{here}.channels.y", source.parameters.channels.y, remedy))
        elif source is not None:
            found.append(source)
    return tuple(found)


def _source(
    path: str, given: dict[str, Any], common: type[Branch], faults: list[Fault], extra: tuple[str, ...] = ()
) -> SourceConfiguration | None:
    plugin = plugins("detectors").get(str(given["name"]))
    if plugin is None:
        name = str(given["name"])
        remedy = instead_of(name) or f"no such source; {closest(name, plugins('detectors'))}"
        faults.append(Fault(f"{path}.name", name, remedy))
        return None
    if common is PositionsParameters and not gives_positions(plugin):
        faults.append(Fault(f"{path}.name", given["name"], "gives frames with their positions, and no positions for others"))
        return None
    made = source_parameters(plugin, common)
    parameters = _branch(made, given, path, faults, extra)
    return None if parameters is None else SourceConfiguration(str(given["name"]), plugin, parameters)


def gives_positions(plugin: Any) -> bool:
    """Whether a source can be that of the positions for another one's frames; all can but those that say otherwise."""
    return bool(getattr(plugin, "gives_positions", True))


def _complete(source: SourceConfiguration, path: str, home: Path, faults: list[Fault]) -> SourceConfiguration | None:
    """With what the source itself knows, such as the geometry in a file that it reads: `plugin.complete`."""
    complete = getattr(source.plugin, "complete", None)
    if complete is None:
        return source
    try:
        return replace(source, parameters=complete(source.parameters, home))
    except ConfigurationError as error:
        faults += [Fault(f"{path}.{fault.path}", fault.value, fault.remedy) for fault in error.faults]
        return None


def source_parameters(plugin: Any, common: type[Branch]) -> type[Branch]:
    """Parameters of a source: the plug-in's own and those common to frames or positions."""
    made: type[Branch] = create_model(
        f"{plugin.__name__}{common.__name__}",
        __base__=(plugin.Parameters, common),
        name=(str, Field(getattr(plugin, "default_name", plugin.__name__), description="Name of the source.")),
        __doc__=f"{(plugin.__doc__ or plugin.__name__).strip()} {(common.__doc__ or '').strip()}".strip(),
    )
    return made


def check_engine(label: str, entry: Mapping[str, Any]) -> EngineConfiguration:
    """An engine of its own, as an entry of `engines`. Raises `ConfigurationError` with all that is wrong."""
    faults: list[Fault] = []
    found = _engine(label, dict(entry), faults)
    if found is None:
        raise ConfigurationError(faults)
    return found


def _engine(label: str, entry: dict[str, Any], faults: list[Fault]) -> EngineConfiguration | None:
    path, name = f"engines.{label}", str(entry["name"])
    known = engine_name(name)
    if known != name:
        log.info("%s.name: %s is the same engine as %s here", path, name, known)
        entry["name"] = known
    without_tuning(entry, path)
    engine = plugins("engines").get(known)
    faults += refused(engine, entry, path)
    if engine is None:
        faults.append(Fault(f"{path}.name", name, f"not an engine of this version; {closest(known, plugins('engines'))}"))
        return None
    parameters = _branch(engine.Parameters, entry, path, faults)
    return None if parameters is None else EngineConfiguration(label, known, engine, parameters)


def plugins(group: str) -> dict[str, Any]:
    """Classes that the entry points of group 'ptystream.<group>' name. Loading one loads nothing heavy."""
    return {point.name: point.load() for point in entry_points(group=f"ptystream.{group}")}


def _branch(model: type[Branch], given: Mapping[str, Any], path: str, faults: list[Fault], extra: tuple[str, ...] = ()) -> Any:
    try:
        return model.model_validate(_given(model, given))
    except ValidationError as error:
        for fault in faults_of(error, model, path):
            faults.append(fault)
        return None


def _given(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """Without the values None that mean 'not given': those of parameters for which None has no meaning of its own."""
    kept = {}
    for key, value in given.items():
        field = model.model_fields.get(str(key))
        inner = None if field is None else field.annotation
        if value is None and field is not None and type(None) not in get_args(inner):
            continue
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            value = _given(inner, value)
        if isinstance(value, np.ndarray) and field is not None and np.ndarray not in kinds(inner):
            value = value.tolist()  # a pair of numbers, say, that a script has as an array
        kept[str(key)] = value
    return kept
