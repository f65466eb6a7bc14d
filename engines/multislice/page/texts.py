"""Values that were written as the text of a Python value, as presets of PyPty have them: read, never executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from ptystream.params.base import kinds
from ptystream.params.course import limits_of
from ptystream.params.expression import ExpressionError, is_expression, parsed

PLAIN = {"None": None, "True": True, "False": False}


def read(given: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The parameters with the values that such texts mean; texts that mean none stay, and are told as what they are."""
    return {key: _value(value, fields[key]) if key in fields else value for key, value in given.items()}


def _value(value: Any, field: FieldInfo) -> Any:
    if not isinstance(value, str) or is_expression(value):
        return value
    text = value.strip()
    if text in PLAIN:
        return PLAIN[text]
    listed = text[:1] in ("[", "(") and field.annotation is not str
    if not listed and limits_of(field) is None and str in kinds(field.annotation):
        return value
    try:
        return parsed(f"lambda _: {text}")(0)
    except ExpressionError:
        return value
