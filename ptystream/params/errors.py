"""What is wrong with a configuration: everything at once, each with path, value and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong."""

    path: str
    """As the user wrote it, with dots."""
    value: Any
    remedy: str

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{self.path}: {shown if len(shown) < 80 else shown[:77] + '…'}: {self.remedy}"


class ConfigurationError(ValueError):
    """A configuration that cannot be used; `faults` holds all that is wrong."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


def closest(name: str, known: Iterable[str]) -> str:
    """'did you mean …?' or the list of what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def faults_of(error: ValidationError, model: type[BaseModel], prefix: str) -> list[Fault]:
    """pydantic's findings in our words; union branches of one value are told once."""
    found: dict[str, Fault] = {}
    for item in error.errors(include_url=False):
        location = [str(part) for part in item["loc"]]
        fields: Any = model
        path: list[str] = []
        for part in location:
            if not (isinstance(fields, type) and issubclass(fields, BaseModel)):
                break
            path.append(part)
            field = fields.model_fields.get(part)
            if field is None:
                break
            fields = field.annotation
        full, value = ".".join([prefix, *path]).strip("."), item["input"]
        if item["type"] == "extra_forbidden":
            parent: Any = model
            for part in path[:-1]:
                parent = parent.model_fields[part].annotation
            remedy = f"unknown parameter; {closest(path[-1], parent.model_fields)}"
        else:
            remedy = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
            full, value, remedy = _of_branch(full, fields, value, remedy)
        if full in found and found[full].remedy != remedy:
            remedy = f"{found[full].remedy}, or {remedy}"
        found[full] = Fault(full, value, remedy)
    return list(found.values())


def _of_branch(path: str, branch: Any, given: Any, told: str) -> tuple[str, Any, str]:
    """(path, value, remedy) of what a branch says about one of its leaves: 'name: value: remedy' or 'name: remedy'."""
    name, _, rest = told.partition(": ")
    if not (isinstance(branch, type) and issubclass(branch, BaseModel)) or name.split(".")[0] not in branch.model_fields:
        return path, given, told
    value = given
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    shown, _, remedy = rest.partition(": ")
    return f"{path}.{name}".strip("."), value if value is not None else shown if remedy else None, remedy or rest
