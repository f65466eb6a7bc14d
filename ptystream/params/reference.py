"""The reference of all parameters, generated from their declarations and spelled as the seed documents spell paths."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ptystream.model.models import MODELS
from ptystream.params.branches import RootParameters
from ptystream.params.load import plugins, source_parameters
from ptystream.scan.parameters import PositionsParameters, PtyScanParameters


def entries() -> list[dict[str, Any]]:
    """One entry per path: {"path", "types", "default", "lower", "upper", "choices", "doc"}."""
    found = list(_walk("ptycho", RootParameters))
    found += _walk("scandata.PtyScan", PtyScanParameters)
    for name, model in MODELS.items():
        found += _walk(f"scan.{name}", model.Parameters)
    for name, engine in sorted(plugins("engines").items()):
        found += _walk(f"engine.{name}", engine.Parameters)
    for name, plugin in sorted(plugins("detectors").items()):
        found += _walk(f"scandata.{name}", source_parameters(plugin, PtyScanParameters))
        found += _walk(f"scandata.{name}.positions", source_parameters(plugin, PositionsParameters))
    return found


def _walk(path: str, model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    doc = inspect.cleandoc(model.__doc__ or "")
    kinds = ["Param", *getattr(model, "also", ())]
    yield {"path": path, "types": kinds, "default": {}, "lower": None, "upper": None, "choices": None, "doc": doc}
    for name, field in model.model_fields.items():
        here = f"{path}.{name}"
        inner = _branch(field.annotation)
        if inner is not None:
            yield from _walk(here, inner)
            continue
        lower, upper = _limits(field)
        yield {
            "path": here,
            "types": _types(field.annotation),
            "default": _plain(field.get_default(call_default_factory=True)),
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
