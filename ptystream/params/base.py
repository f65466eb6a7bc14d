"""What a declaration of parameters is made of. A branch of the tree is a class; its fields are the leaves and sub-branches.

The docstring under a field is its text in the reference, so it is written for the user: unit, meaning of None or 0.
"""

from __future__ import annotations

import cmath
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Branch(BaseModel):
    """A closed branch of the parameter tree: unknown names are errors, and so are numbers that are none.

    Not finite numbers are refused everywhere but in arrays, which may hold them where a pixel is not known; `true` and `false`
    are numbers nowhere.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        validate_assignment=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        within = kinds(annotation)
        if within & {int, float, complex}:
            inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
            own = isinstance(value, bool) and bool not in (get_args(annotation) or (annotation,))
            if own or (not within & {bool, Any} and any(isinstance(item, bool) for item in inside)):
                raise ValueError("must be a number; true and false are none")
        return value

    @field_validator("*")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        """What `allow_inf_nan` does not see."""
        if isinstance(value, complex) and not cmath.isfinite(value):
            raise ValueError("should be a finite number")
        return value


def kinds(annotation: Any) -> set[Any]:
    """All types in an annotation."""
    inside = get_args(annotation)
    return {annotation}.union(*(kinds(kind) for kind in inside)) if inside else {annotation}


def parameter(
    default: Any,
    *,
    lower: float | None = None,
    upper: float | None = None,
    steerable: bool = False,
    most: float | None = None,
    ours: bool = False,
    validated: tuple[float | None, float | None] = (None, None),
) -> Any:
    """Declare a leaf. Limits are inclusive; `steerable` may be changed while running, to `most` at most, so that
    a mistyped number holds nothing up; `ours` is not in the seeds.

    `validated` are limits for the reference that a validator of the branch checks (of a number or a tuple of them).
    """
    told: dict[str, Any] = {"steerable": steerable, "ours": ours, "lower": validated[0], "upper": validated[1]}
    return Field(default, ge=lower, le=upper, json_schema_extra=told | ({} if most is None else {"most": most}))
