"""Options of a command that are declared elsewhere, with the value that they become."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

Body = TypeVar("Body", bound=Callable[..., Any])
KINDS = {"int": int, "float": float, "float | None": float | None, "str": str, "bool": bool}


def with_options(declared: Sequence[Field[Any]]) -> Callable[[Body], Body]:
    """Give a command an option for each field, by its name, help and limits; they come to it as keywords."""

    def dress(command: Body) -> Body:
        hints = get_type_hints(command, include_extras=True)
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = []
        for one in declared:
            told, kind = one.metadata, KINDS[str(one.type)]
            limits = {} if kind in (str, bool) else {"min": told["lower"], "max": told["upper"]}
            hints[one.name] = Annotated[kind, typer.Option(help=told["help"], **limits)]
            more.append(inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default))
        signature = [p.replace(annotation=hints[p.name]) for p in (*own, *more)]
        command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        command.__annotations__ = hints
        return command

    return dress
