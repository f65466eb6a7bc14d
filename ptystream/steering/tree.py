"""The parameters of a running session by their paths: what they are, and which of them may change while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ptystream.params.errors import closest, faults_of
from ptystream.params.load import Configuration
from ptystream.params.reference import described
from ptystream.results import effective
from ptystream.steering.desk import Refused


@dataclass(frozen=True, slots=True)
class Change:
    """A parameter that was changed."""

    path: str
    value: Any
    before: Any


class Tree:
    """Reads and changes what a configuration says, in place; whoever changes it has the rest of the session follow."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def get(self, path: str = "") -> Any:
        """The value of a parameter, or a branch as nested names. Raises `Refused` for a path that is none."""
        found: Any = effective(self._configuration)
        for name in path.split(".") if path else ():
            if not isinstance(found, Mapping) or name not in found:
                known = closest(name, map(str, found)) if isinstance(found, Mapping) else "it has no parts"
                raise Refused(path, None, f"is no parameter: {name}: {known}")
            found = found[name]
        return found

    def held(self, path: str) -> Any:
        """The value of a parameter that may change, as it is held: of a file its array."""
        prefix, _, name = path.rpartition(".")
        return getattr(dict(self._branches())[prefix], name)

    def steerable(self) -> dict[str, Any]:
        """Every parameter that may change while the session runs, by its path, with its value."""
        return {path: value for path, value, _ in self._steerable()}

    def described(self) -> list[dict[str, Any]]:
        """The same with what each may be: path, value, types, lower, upper, choices, doc."""
        found = []
        for path, value, field in self._steerable():
            told = described(field)
            if (most := _most(field)) is not None:
                told["upper"] = most
            found.append({"path": path, "value": value, **told})
        return found

    def set(self, path: str, value: Any) -> Change:
        """Put a value in force here. Raises `Refused` for a path that is none or may not change, and a value that may not be."""
        before, steerable = self.get(path), self.steerable()
        if path not in steerable:
            raise Refused(path, value, f"may not change while the session runs; {closest(path, steerable)}")
        prefix, _, name = path.rpartition(".")
        branch = dict(self._branches())[prefix]
        held = getattr(branch, name)
        try:
            setattr(branch, name, value)
        except ValidationError as error:
            branch.__dict__[name] = held  # what looks at the whole branch does so when it is assigned
            fault = faults_of(error, type(branch), prefix)[0]
            raise Refused(path, value, fault.remedy) from None
        most, now = _most(type(branch).model_fields[name]), getattr(branch, name)
        if most is not None and isinstance(now, (int, float)) and now > most:
            branch.__dict__[name] = held
            raise Refused(path, value, f"may be {most:g} at most while the session runs; a configuration may say more")
        return Change(path, getattr(branch, name), before)

    def _steerable(self) -> Iterator[tuple[str, Any, FieldInfo]]:
        for prefix, branch in self._branches():
            for name, field in type(branch).model_fields.items():
                if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("steerable"):
                    yield f"{prefix}.{name}", getattr(branch, name), field

    def _branches(self) -> Iterator[tuple[str, BaseModel]]:
        """Those that may hold such a parameter."""
        yield from _within("", self._configuration.root)
        for scan in self._configuration.scans:
            yield f"scans.{scan.label}.data", scan.data.parameters
        for engine in self._configuration.engines:
            yield from _within(f"engines.{engine.label}", engine.parameters)


def _most(field: FieldInfo) -> float | None:
    """The largest value that may be set while the session runs; None: what a configuration may say."""
    extra: Any = field.json_schema_extra
    return extra.get("most") if isinstance(extra, dict) else None


def _within(prefix: str, branch: BaseModel) -> Iterator[tuple[str, BaseModel]]:
    yield prefix, branch
    for name in type(branch).model_fields:
        inner = getattr(branch, name)
        if isinstance(inner, BaseModel):
            yield from _within(f"{prefix}.{name}".lstrip("."), inner)
