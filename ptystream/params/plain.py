"""Whatever a user may nest parameters in, as a plain nested dict: mappings, namespaces, dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel

from ptystream.params.errors import ConfigurationError, Fault

MAX_DEPTH = 20


class Param(dict[str, Any]):
    """A dict whose entries are attributes as well: `p.scans.MF.data.name = "ZmqScan"` makes the branches on its way.

    As ptypy's scripts use it. A branch that was only looked at stays empty, and empty branches mean 'not given'.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = self.get(name)
        if name not in self or type(value) is dict:  # a plain one inside becomes one of ours when it is looked into
            value = self[name] = Param(value or {})
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(str(key) for key in self)})

    def copy(self, depth: int = 0) -> Param:
        """A copy; with `depth` also of so many levels of branches below."""
        made = Param(self)
        if depth > 0:
            for key, value in self.items():
                if isinstance(value, Param):
                    made[key] = value.copy(depth - 1)
        return made

    def update(self, *given: Any, in_place_depth: int = 0, convert: bool = False, **entries: Any) -> None:
        """As of a dict; with `in_place_depth` branches are updated and not replaced, so many levels down.

        `convert` makes branches of dicts; ptypy spells it `Convert`.
        """
        convert = bool(entries.pop("Convert", convert))
        for key, value in dict(*given, **entries).items():
            held = self.get(key)
            if in_place_depth > 0 and isinstance(held, Param) and isinstance(value, Mapping):
                held.update(value, in_place_depth=in_place_depth - 1, convert=convert)
            elif convert and isinstance(value, Mapping):
                made = Param()
                made.update(value, convert=True)
                self[key] = made
            else:
                self[key] = value


def plain(value: Any, path: str = "", depth: int = 0) -> Any:
    """The nested dict in `value`; NumPy's scalars become Python's, leaves stay what they are.

    Raises `ConfigurationError` for branches nested deeper than any parameter, such as one that contains itself.
    """
    if depth > MAX_DEPTH:
        raise ConfigurationError([Fault(path, "…", f"branches are nested deeper than {MAX_DEPTH}")])
    inside = _entries(value)
    if inside is not None:
        return {str(key): plain(v, f"{path}.{key}".strip("."), depth + 1) for key, v in inside.items()}
    if isinstance(value, np.generic):
        return value.item()
    return value


def _entries(value: Any) -> Mapping[Any, Any] | None:
    """What is inside of a branch; None for a leaf."""
    if isinstance(value, Mapping):
        return {key: inner for key, inner in value.items() if not (isinstance(inner, Param) and not inner)}
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in value.model_fields_set}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    leaf = callable(value) or any(hasattr(value, mark) for mark in ("__array__", "__fspath__", "__iter__"))
    if leaf or type(value).__module__ == "builtins" or not hasattr(value, "__dict__"):
        return None
    return {name: inner for name, inner in vars(value).items() if not name.startswith("_")}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over` laid over it, branch by branch."""
    made = dict(base)
    for key, value in over.items():
        held = made.get(key)
        both = isinstance(held, Mapping) and isinstance(value, Mapping)
        made[key] = merged(held, value) if both and held is not None else value
    return made
