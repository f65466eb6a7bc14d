"""What a declaration of parameters is made of. A branch of the tree is a class; its fields are the leaves and sub-branches.

The docstring under a field is its text in the reference, so it is written for the user: unit, meaning of None or 0.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Branch(BaseModel):
    """A closed branch of the parameter tree: unknown names are errors."""

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        validate_assignment=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def parameter(
    default: Any,
    *,
    lower: float | None = None,
    upper: float | None = None,
    steerable: bool = False,
    ours: bool = False,
    validated: tuple[float | None, float | None] = (None, None),
) -> Any:
    """Declare a leaf. Limits are inclusive; `steerable` may be changed while running; `ours` is not in the seeds.

    `validated` are limits for the reference that a validator of the branch checks (of a number or a tuple of them).
    """
    return Field(
        default,
        ge=lower,
        le=upper,
        json_schema_extra={"steerable": steerable, "ours": ours, "lower": validated[0], "upper": validated[1]},
    )
