"""What may be written in a request: paths into a tree of plain values, a few questions about them, one assignment, one action.

    Ptycho.p.io.home                        Ptycho.obj.S['SMFG00'].data           Ptycho.runtime['iter_info'][-1]
    list(Ptycho.obj.S.keys())               'start' in Ptycho.runtime             Ptycho.runtime.get('allstop') is not None
    Ptycho.paths.plot_file(Ptycho.runtime)  Ptycho.p.engines.e.alpha = 0.9        Ptycho.end(reason='sample fell off')

It looks like Python and is none: it is taken apart by hand, names are looked up in mappings only, and nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

MAX_TEXT = 1000
MAX_STEPS = 40
MAX_ITEMS = 100

TOKEN = re.compile(
    r"""\s*(?:
    (?P<name>[A-Za-z_]\w*)
  | (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
  | (?P<text>'(?:[^'\\\n]|\\['"\\])*'|"(?:[^"\\\n]|\\['"\\])*")
  | (?P<mark>[.\[\](),=])
    )""",
    re.VERBOSE | re.ASCII,
)
WORDS = {"True": True, "False": False, "None": None}
RESERVED = {"in", "is", "not", *WORDS}


class PathError(ValueError):
    """A request is not understood, or asks for what is not there; the text says why."""


@dataclass(frozen=True, slots=True)
class Function:
    """A place in the tree that is asked with one other place: `Ptycho.paths.plot_file(Ptycho.runtime)`."""

    ask: Callable[[Any], Any]
    """Raises `PathError` for what it does not take."""


@dataclass(frozen=True, slots=True)
class Step:
    """From a value to one inside it."""

    kind: str
    """'name', 'index', 'keys', 'get' or 'ask'."""
    what: Any = None
    """The name or index, or the path that is given to a function."""


@dataclass(frozen=True, slots=True)
class Path:
    """Where to look, from the root of the tree on."""

    steps: tuple[Step, ...]

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names and keys on the way, where it consists of nothing else."""
        whole = all(step.kind in ("name", "index") and isinstance(step.what, str) for step in self.steps)
        return tuple(step.what for step in self.steps) if whole else None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the value at a path."""

    path: Path
    kind: str = "value"
    """'value', 'list', 'len', 'in', 'not in', 'is None' or 'is not None'."""
    item: Any = None
    """What is looked for with 'in'."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """`path = literal`."""

    path: Path
    value: Any


@dataclass(frozen=True, slots=True)
class Call:
    """`Ptycho.name(argument=literal, …)`: an action of the session."""

    name: str
    arguments: Mapping[str, Any]


Order: TypeAlias = Assignment | Call


def question(text: Any) -> Question:
    """What is asked for. Raises `PathError`."""
    reader = _Reader(text)
    found = reader.question()
    reader.end()
    return found


def order(text: Any) -> Order:
    """What is to be done. Raises `PathError`."""
    reader = _Reader(text)
    found = reader.order()
    reader.end()
    return found


def path(text: Any) -> Path:
    """A path and nothing else. Raises `PathError`."""
    reader = _Reader(text)
    found = reader.path()
    reader.end()
    return found


def answer(asked: Question, root: Mapping[str, Any]) -> Any:
    """The answer, from a tree of mappings, sequences, arrays and plain values. Raises `PathError` where it has none."""
    value = look(asked.path, root)
    match asked.kind:
        case "list" | "len":
            if not _is_many(value):
                raise PathError(f"{asked.kind}() needs names or a list")
            return list(value) if asked.kind == "list" else len(value)
        case "in" | "not in":
            if not _is_many(value):
                raise PathError("'in' needs names or a list")
            inside = any(type(held) is type(asked.item) and held == asked.item for held in value)
            return inside is (asked.kind == "in")
        case "is None":
            return value is None
        case "is not None":
            return value is not None
    if isinstance(value, Function):
        raise PathError("is asked with a path in parentheses")
    return value


def look(where: Path, root: Mapping[str, Any]) -> Any:
    """The value at a path. Raises `PathError` where nothing is."""
    value: Any = root
    for step in where.steps:
        match step.kind:
            case "keys":
                if not isinstance(value, Mapping):
                    raise PathError("only a map has keys()")
                value = list(value)
            case "get":
                if not isinstance(value, Mapping):
                    raise PathError("only a map has get()")
                value = value.get(step.what)
            case "ask":
                if not isinstance(value, Function):
                    raise PathError("is nothing that can be called; actions are asked for with DO")
                value = value.ask(look(step.what, root))
            case _:
                value = _inside(value, step.what)
    return value


def _inside(value: Any, key: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(key, str):
        if key in value:
            return value[key]
        known = ", ".join(sorted(str(name) for name in list(value)[:MAX_ITEMS])) or "nothing yet"
        raise PathError(f"{key!r:.60}: is not there; there is {known:.400}")
    if isinstance(key, int) and (_is_list(value) or (isinstance(value, np.ndarray) and value.ndim)):
        if -len(value) <= key < len(value):
            return value[key]
        raise PathError(f"[{key}]: there are {len(value)}")
    raise PathError(f"{key!r:.60}: nothing is inside of a {type(value).__name__}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_many(value: Any) -> bool:
    return isinstance(value, Mapping) or _is_list(value)


class _Reader:
    """Takes a text apart, from left to right."""

    def __init__(self, text: Any) -> None:
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
            raise PathError(f"a text of at most {MAX_TEXT} characters is needed")
        self._left: list[tuple[str, str]] = []
        place, text = 0, text.strip()
        while place < len(text):
            found = TOKEN.match(text, place)
            if found is None:
                raise PathError(
                    f"{text[place : place + 20].strip()!r}: is not understood; paths look like Ptycho.obj.S['name'].data"
                )
            self._left.append((str(found.lastgroup), found[str(found.lastgroup)]))
            place = found.end()
        self._left.reverse()

    def question(self) -> Question:
        if self._kind() in ("text", "number") or self._next() in WORDS:
            item = self.literal()
            inverted = self._take("not")
            self._need("in")
            return Question(self.path(), "not in" if inverted else "in", item)
        if self._next() in ("list", "len"):
            kind = self._left.pop()[1]
            self._need("(")
            found = Question(self.path(), kind)
            self._need(")")
            return found
        where = self.path()
        if self._take("is"):
            inverted = self._take("not")
            self._need("None")
            return Question(where, "is not None" if inverted else "is None")
        return Question(where)

    def order(self) -> Order:
        start = list(self._left)
        names = [self._name()]
        while self._take("."):
            names.append(self._name())
        if len(names) == 2 and self._take("("):
            return Call(names[1], self._arguments())
        self._left = start
        where = self.path()
        self._need("=")
        return Assignment(where, self.literal())

    def path(self, inner: bool = False) -> Path:
        steps = [Step("name", self._name())]
        while self._next() in (".", "[", "("):
            if len(steps) == MAX_STEPS:
                raise PathError(f"a path has at most {MAX_STEPS} steps")
            mark = self._left.pop()[1]
            if mark == ".":
                steps.append(Step("name", self._name()))
            elif mark == "[":
                key = self.literal()
                if not isinstance(key, (str, int)) or isinstance(key, bool):
                    raise PathError(f"[{key!r:.60}]: a name or a whole number is needed")
                steps.append(Step("index", key))
                self._need("]")
            elif steps[-1] == Step("name", "keys"):
                steps[-1] = Step("keys")
                self._need(")")
            elif steps[-1] == Step("name", "get"):
                if self._kind() != "text":
                    raise PathError("get() needs a name in quotes")
                steps[-1] = Step("get", self.literal())
                self._need(")")
            elif inner or self._kind() != "name":
                raise PathError(f"{steps[-1].what!r:.60}: is called with one path; actions are asked for with DO")
            else:
                steps.append(Step("ask", self.path(inner=True)))
                self._need(")")
        return Path(tuple(steps))

    def literal(self, depth: int = 0) -> Any:
        """A text, a number, True, False, None, or a list of them."""
        if not self._left:
            raise PathError("ends where a value is needed")
        kind, said = self._left.pop()
        if kind == "text":
            return re.sub(r"\\(.)", r"\1", said[1:-1])
        if kind == "number":
            return _number(said)
        if said in WORDS:
            return WORDS[said]
        if said in ("[", "(") and depth < 3:
            items: list[Any] = []
            close = "]" if said == "[" else ")"
            while not self._take(close):
                if items:
                    self._need(",")
                    if self._take(close):
                        break
                if len(items) == MAX_ITEMS:
                    raise PathError(f"a list has at most {MAX_ITEMS} values")
                items.append(self.literal(depth + 1))
            return items
        raise PathError(f"{said!r:.60}: a text in quotes, a number, True, False, None or a list is needed")

    def _arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._take(")"):
            if found:
                self._need(",")
            name = self._name()
            self._need("=")
            if name in found:
                raise PathError(f"{name!r:.60}: is given twice")
            found[name] = self.literal()
        return found

    def _name(self) -> str:
        if self._kind() != "name" or self._next() in RESERVED:
            raise PathError(f"{self._next() or 'the end'!r:.60}: a name is needed")
        name = self._left.pop()[1]
        if name.startswith("_"):
            raise PathError(f"{name!r:.60}: names do not begin with '_'")
        return name

    def _kind(self) -> str:
        return self._left[-1][0] if self._left else ""

    def _next(self) -> str:
        return self._left[-1][1] if self._left and self._left[-1][0] != "text" else ""

    def _take(self, said: str) -> bool:
        if self._next() != said:
            return False
        self._left.pop()
        return True

    def _need(self, said: str) -> None:
        if not self._take(said):
            raise PathError(f"{said!r} is needed before {(self._left[-1][1] if self._left else 'the end')!r:.60}")

    def end(self) -> None:
        if self._left:
            raise PathError(f"{self._left[-1][1]!r:.60}: nothing may follow here")


def _number(said: str) -> int | float:
    if re.fullmatch(r"[-+]?\d+", said):
        if len(said) > 20:
            raise PathError(f"{said[:20]}…: is too long a number")
        return int(said)
    return float(said)
