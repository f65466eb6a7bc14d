"""Parameters that depend on the epoch: a number, an expression in it, or a table. Expressions are read, never executed.

    lambda x: 1e-3 * (x >= 20)
    {"from": 20, "value": 1e-3, "before": 0}
    {"every": 10}
    {"table": [[0, 8.1e-9], [1, 1]]}

An expression may hold numbers, true, false, None, short texts, lists, the epoch under the name that it gives it, + - * / // % **,
comparisons, and, or, not, `a if b else c`, and of functions min, max, abs, int, float, bool, round, exp, sqrt and log.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

MAX_TEXT, MAX_NODES, MAX_EXPONENT, MAX_LIST = 256, 64, 64, 4096
MAX_DIGITS = 324
LARGEST = 1e300

Value: TypeAlias = float | int | bool | str | list[Any] | None
Compiled: TypeAlias = Callable[[int], Value]


class ExpressionError(ValueError):
    """A text is no expression that is understood, or has no value at some epoch; says what and where."""


_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _rounded(value: Any, digits: int = 0) -> Any:
    """Python takes ten to the power of the digits of a whole number, however many."""
    if abs(digits) > MAX_DIGITS:
        raise ValueError(f"round to {digits:.3g} digits: {MAX_DIGITS} at most")
    return round(value, digits) if digits else round(value)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "int": int,
    "float": float,
    "bool": bool,
    "round": _rounded,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_CONSTANTS: Mapping[str, float] = {"inf": math.inf, "pi": math.pi}


def is_expression(value: object) -> bool:
    """Whether a text is meant to be one."""
    return isinstance(value, str) and value.lstrip().startswith("lambda")


def parsed(text: str) -> Compiled:
    """The function of the epoch that a text like 'lambda x: x >= 20' stands for. Raises `ExpressionError`."""
    if len(text) > MAX_TEXT:
        raise ExpressionError(f"{len(text)} characters; {MAX_TEXT} are allowed")
    try:
        tree = ast.parse(text.strip().rstrip(";"), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ExpressionError(f"is no expression: {getattr(error, 'msg', error)}") from None
    if not isinstance(tree, ast.Lambda):
        raise ExpressionError("must read 'lambda x: …', x the epoch")
    given = tree.args
    if len(given.args) != 1 or given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg or given.defaults:
        raise ExpressionError("takes the epoch and nothing else: 'lambda x: …'")
    if sum(1 for _ in ast.walk(tree.body)) > MAX_NODES:
        raise ExpressionError(f"has more than {MAX_NODES} parts")
    body = _node(tree.body, given.args[0].arg)

    def at(epoch: int) -> Value:
        try:
            value: Value = _bounded(body(epoch))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ExpressionError(f"has no value at epoch {epoch}: {error}") from None
        return value

    return at


def _bounded(value: Any) -> Any:
    """What may come out."""
    if isinstance(value, list | tuple):
        return [_bounded(part) for part in value]
    if isinstance(value, complex):
        raise ExpressionError("a complex number")
    if isinstance(value, int | float) and (math.isnan(value) or (abs(value) > LARGEST and not math.isinf(value))):
        raise ExpressionError(f"a number of {value!r:.20}")
    return value


def _finite(value: Any, *of: Any) -> Any:
    """What arithmetic makes of numbers: infinite only where one of them was."""
    if math.isinf(value) and not any(math.isinf(part) for part in of):
        raise OverflowError("a number that is too large")
    return _bounded(value)


def _node(node: ast.expr, epoch: str) -> Callable[[int], Any]:
    """The function of the epoch that a part of the tree stands for."""

    def of(part: ast.expr) -> Callable[[int], Any]:
        return _node(part, epoch)

    if isinstance(node, ast.Constant):
        value = node.value
        if not (value is None or isinstance(value, int | float | str)) or (isinstance(value, str) and len(value) > 32):
            raise ExpressionError(f"{value!r:.40} may not stand in it")
        return lambda x: value
    if isinstance(node, ast.Name):
        if node.id == epoch:
            return lambda x: x
        if node.id in _CONSTANTS:
            constant = _CONSTANTS[node.id]
            return lambda x: constant
        raise ExpressionError(f"{node.id!r} is unknown: there are {epoch}, {', '.join(_CONSTANTS)}")
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np" and node.attr in _CONSTANTS:
        spelled = _CONSTANTS[node.attr]
        return lambda x: spelled
    if isinstance(node, ast.BinOp):
        left, right = of(node.left), of(node.right)
        if isinstance(node.op, ast.Pow):
            return lambda x: _power(_number(left(x)), _number(right(x)))
        if type(node.op) in _BINARY:
            act = _BINARY[type(node.op)]
            return lambda x: _calculated(act, _number(left(x)), _number(right(x)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        turn, inner = _UNARY[type(node.op)], of(node.operand)
        return lambda x: turn(inner(x) if turn is operator.not_ else _number(inner(x)))
    if isinstance(node, ast.BoolOp):
        parts, is_and = [of(part) for part in node.values], isinstance(node.op, ast.And)
        return lambda x: _chosen(parts, x, is_and)
    if isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        tests, sides = [_COMPARE[type(op)] for op in node.ops], [of(part) for part in (node.left, *node.comparators)]
        return lambda x: _compared(tests, [side(x) for side in sides])
    if isinstance(node, ast.IfExp):
        test, then, other = of(node.test), of(node.body), of(node.orelse)
        return lambda x: then(x) if test(x) else other(x)
    if isinstance(node, ast.List | ast.Tuple):
        members = [of(part) for part in node.elts]
        return lambda x: [member(x) for member in members]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords:
        call, arguments = _FUNCTIONS[node.func.id], [of(part) for part in node.args]
        return lambda x: _bounded(call(*[_number(argument(x)) for argument in arguments]))
    raise ExpressionError(f"{ast.unparse(node)!r:.60} is not allowed in it: {', '.join(_FUNCTIONS)} can be called, nothing else")


def _number(value: Any) -> Any:
    """Arithmetic is for numbers: a text or a list times a large one would fill the memory."""
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r:.20} is no number")
    return value


def _calculated(act: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    return _finite(act(left, right), left, right)


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > MAX_EXPONENT or abs(base) > LARGEST:
        raise ValueError(f"exponent {exponent}: {MAX_EXPONENT} at most")
    value = base**exponent
    return _bounded(value) if isinstance(value, complex) else _finite(value, base, exponent)


def _chosen(parts: list[Callable[[int], Any]], epoch: int, is_and: bool) -> Any:
    value: Any = is_and
    for part in parts:
        value = part(epoch)
        if bool(value) != is_and:
            break
    return value


def _compared(tests: list[Callable[[Any, Any], Any]], sides: list[Any]) -> bool:
    return all(test(a, b) for test, a, b in zip(tests, sides[:-1], sides[1:], strict=True))


def tabulated(given: Mapping[str, Any]) -> Compiled:
    """The function of the epoch of a map with 'from' ('value', 'before'), 'every' or 'table'. Raises `ExpressionError`."""
    keys = set(given)
    if "from" in keys and keys <= {"from", "value", "before"}:
        start, value, before = given["from"], given.get("value", True), given.get("before", 0)
        return lambda x: value if x >= start else before
    if keys == {"every"} and isinstance(given["every"], int) and given["every"] > 0:
        every = int(given["every"])
        return lambda x: x % every == 0
    table = given.get("table")
    if keys == {"table"} and isinstance(table, list) and 0 < len(table) <= MAX_LIST and all(map(_is_line, table)):
        lines = sorted(((int(epoch), value) for epoch, value in table), key=lambda line: line[0])
        return lambda x: next((value for epoch, value in reversed(lines) if epoch <= x), lines[0][1])
    raise ExpressionError("must be {from, value, before}, {every: n} or {table: [[epoch, value], …]}")


def _is_line(line: Any) -> bool:
    return isinstance(line, list | tuple) and len(line) == 2 and isinstance(line[0], int)
