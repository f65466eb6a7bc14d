"""What the tests share that change every declared parameter and look whether anything comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel


def leaves(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Paths of all parameters of a branch."""
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        branch = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if branch is None:
            yield f"{before}{name}"
        else:
            yield from leaves(branch, f"{before}{name}.")


def laid(beside: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`beside` with the value at a path."""
    first, _, rest = path.partition(".")
    return {**beside, first: laid(beside.get(first) or {}, rest, value) if rest else value}


def digest(*parts: Any) -> str:
    """The bits of arrays, and the text of whatever else is in there."""
    made = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            for key, value in part.items():
                made.update(str(key).encode())
                add(value)
        elif isinstance(part, list | tuple):
            made.update(str(len(part)).encode())
            for inner in part:
                add(inner)
        elif isinstance(part, np.ndarray):
            made.update(str(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        else:
            made.update(str(part).encode())

    add(parts)
    return made.hexdigest()
