"""The reference of all parameters, generated from their declarations and spelled as the seed documents spell paths."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ptystream.model.models import BARE, MODELS
from ptystream.params.branches import RootParameters
from ptystream.params.interaction import InteractionParameters
from ptystream.params.load import gives_positions, plugins, source_parameters
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters

LABELLED = {
    "io": "Global parameters for I/O\n\nWhat `ptycho.io` links to.",
    "scandata": "Sources of frames and positions, by name: what may stand under `scans.*.data`.",
    "scan": "Scan models, by name: what may stand under `scans.*`.",
    "engine": "Engines, by name: what may stand under `engines.*`.",
    "ptycho.scans": "Container for instances of scan parameters\n\n"
    "Label → entry, as many as there are: see `scan`. An entry without a `name` is a template and left out.",
    "ptycho.engines": "Container for instances of engine parameters\n\n"
    "Label → entry: see `engine`. They run in the order of their labels; one without a `name` is a template and left out.",
}
"""Branches of entries that have names: of the user's choice, or of what is built in."""

ALSO: dict[str, Any] = {
    "path": "scandata.PtyScan.also",
    "types": ["list"],
    "default": [],
    "lower": None,
    "upper": None,
    "choices": None,
    "doc": "Further sources of samples\n\nA list of sources with the parameters of `positions`, for what is measured elsewhere: "
    "a beam monitor (`channels.dose`), a shutter (`channels.shutter`). Positions come from `positions` alone: `channels.y` and "
    "`channels.x` are null here.",
}


def entries() -> list[dict[str, Any]]:
    """One entry per path: {"path", "types", "default", "lower", "upper", "choices", "doc"}."""
    found = list(_walk("ptycho", RootParameters))
    for part, text in LABELLED.items():
        found.append(
            {"path": part, "types": ["Param"], "default": {}, "lower": None, "upper": None, "choices": None, "doc": text}
        )
    found += _walk("io.interaction", InteractionParameters)
    found += _walk("scandata.PtyScan", PtyScanParameters)
    for name, parameters in ({**BARE} | {name: model.Parameters for name, model in MODELS.items()}).items():
        found += _walk(f"scan.{name}", parameters)
        found += _data(f"scan.{name}.data")
    for name, engine in sorted(plugins("engines").items()):
        found += _walk(f"engine.{name}", engine.Parameters)
    for name, plugin in sorted(plugins("detectors").items()):
        found += _walk(f"scandata.{name}", source_parameters(plugin, PtyScanParameters))
        if gives_positions(plugin):
            found += _walk(f"scandata.{name}.positions", source_parameters(plugin, PositionsParameters))
    found.append(ALSO)
    return found


def _data(path: str) -> Iterator[dict[str, Any]]:
    """The branch of a scan that belongs to its source."""
    entry: dict[str, Any] = {"types": ["Param"], "default": {}, "lower": None, "upper": None, "choices": None}
    yield {"path": path, **entry, "doc": "Link to container for data preparation: see scandata"}
    doc = "Name of the PtyScan subclass to use: a source, with its parameters beside it"
    yield {"path": f"{path}.name", **entry, "types": ["str"], "default": None, "doc": doc}


def _walk(path: str, model: type[BaseModel], *more: str) -> Iterator[dict[str, Any]]:
    """A branch, which may also be what its `also` says or one of `more`, and everything in it."""
    doc = inspect.cleandoc(model.__doc__ or "")
    kinds = ["Param", *getattr(model, "also", ()), *more]
    yield {"path": path, "types": kinds, "default": {}, "lower": None, "upper": None, "choices": None, "doc": doc}
    for name, field in model.model_fields.items():
        here = f"{path}.{name}"
        inner = _branch(field.annotation)
        if inner is not None:
            yield from _walk(here, inner, *(name for name in _types(field.annotation) if name == "NoneType"))
            continue
        told = described(field)
        yield {"path": here, "types": told.pop("types"), "default": _plain(field.get_default(call_default_factory=True)), **told}


def described(field: FieldInfo) -> dict[str, Any]:
    """What a leaf may be: types, lower, upper, choices; and its doc."""
    lower, upper = _limits(field)
    return {
        "types": _types(field.annotation),
        "lower": lower,
        "upper": upper,
        "choices": _choices(field.annotation),
        "doc": (field.description or "").strip(),
    }


def _branch(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _limits(field: FieldInfo) -> tuple[float | None, float | None]:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    lower: Any = extra.get("lower")
    upper: Any = extra.get("upper")
    for item in field.metadata:
        if isinstance(item, annotated_types.Ge):
            lower = item.ge
        if isinstance(item, annotated_types.Le):
            upper = item.le
    return lower, upper


def _types(annotation: Any) -> list[str]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [name for inner in get_args(annotation) for name in _types(inner)]
    if get_origin(annotation) is Literal:
        return sorted({type(value).__name__ for value in get_args(annotation)})
    origin = get_origin(annotation) or annotation
    return [getattr(origin, "__name__", str(origin))]


def _choices(annotation: Any) -> list[Any] | None:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    for inner in get_args(annotation):
        found = _choices(inner)
        if found is not None:
            return found
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, complex):
        return value.real if value.imag == 0 else str(value)
    return value
