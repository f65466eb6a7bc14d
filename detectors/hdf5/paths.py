"""Where in a file something lies: '/entry/stage/y', '/entry_1/data_1/translation[:,1]', '/entry/energy in eV', '/entry@count'."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..units import factor

_FORM = re.compile(r"(?P<path>/[^@\[\]]*?)(?:@(?P<attribute>[^@\[\]]+))?(?:\[(?P<index>[^\]]*)\])?(?: in (?P<unit>\S+))?")


@dataclass(frozen=True, slots=True)
class Place:
    """A dataset, a component of a table in it, or an attribute."""

    path: str
    attribute: str | None = None
    component: int | None = None
    axis: int = 1
    """Axis of the table along which `component` counts."""
    factor: float | None = None
    """To our unit; None: as the dataset's attribute 'units' says."""


def parse(text: str) -> Place:
    """The place that `text` names. Raises `ValueError` with what it should be."""
    match = _FORM.fullmatch(text.strip())
    if match is None or not match["path"].strip("/ "):
        raise ValueError("must be '/group/dataset', '/group/table[:,1]', '/group@attribute', each perhaps with ' in um'")
    index, component, axis = match["index"], None, 1
    if index is not None:
        first, comma, second = (part.strip() for part in index.partition(","))
        number = second if first == ":" and comma else first if second == ":" else ""
        if not number.isdigit():
            raise ValueError(f"[{index}] must be [:,k] (column k of a table) or [k,:] (row k)")
        component, axis = int(number), 1 if first == ":" else 0
    return Place(match["path"], match["attribute"], component, axis, None if match["unit"] is None else factor(match["unit"]))
