"""The grammar of requests: what is understood, what is refused, and that nothing is ever evaluated."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interaction import hostile_requests

from ptystream.interaction.paths import (
    MAX_TEXT,
    Assignment,
    Call,
    Function,
    PathError,
    answer,
    order,
    path,
    question,
)

DATA = np.arange(6.0).reshape(1, 2, 3)
TREE: dict[str, Any] = {
    "Ptycho": {
        "p": {"io": {"home": "/h", "rfile": None}, "scans": {"a b": 1, "it's": 2}},
        "obj": {"S": {"SMFG00": {"data": DATA}}},
        "runtime": {"run": "r", "iter_info": [{"iterations": 1}, {"iterations": 5}], "n": 3},
        "paths": {"plot_file": Function(lambda runtime: f"{runtime['run']}.png")},
    }
}


def ask(text: str) -> Any:
    return answer(question(text), TREE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ptycho.p.io.home", "/h"),
        ("Ptycho['p']['io']['home']", "/h"),
        ('Ptycho.p["io"].home', "/h"),
        (" Ptycho . p [ 'io' ] . home ", "/h"),
        ("Ptycho.p.scans['it\\'s']", 2),
        ("Ptycho.runtime['iter_info'][-1]", {"iterations": 5}),
        ("Ptycho.runtime.iter_info[0].iterations", 1),
        ("list(Ptycho.obj.S.keys())", ["SMFG00"]),
        ("list(Ptycho.obj.S)", ["SMFG00"]),
        ("Ptycho.obj.S.keys()", ["SMFG00"]),
        ("len(Ptycho.runtime.iter_info)", 2),
        ("'run' in Ptycho.runtime", True),
        ("'start' in Ptycho.runtime", False),
        ("'start' not in Ptycho.runtime", True),
        ("'SMFG00' in Ptycho.obj.S.keys()", True),
        ("True in Ptycho.runtime", False),
        ("Ptycho.runtime.get('allstop') is not None", False),
        ("Ptycho.runtime.get('run') is not None", True),
        ("Ptycho.runtime.get('allstop')", None),
        ("Ptycho.p.io.rfile is None", True),
        ("Ptycho.paths.plot_file(Ptycho.runtime)", "r.png"),
    ],
)
def test_what_is_understood(text: str, expected: Any) -> None:
    assert ask(text) == expected


def test_an_array_is_given_as_it_is_and_by_layers() -> None:
    assert ask("Ptycho.obj.S['SMFG00'].data") is DATA
    np.testing.assert_array_equal(ask("Ptycho.obj.S['SMFG00'].data[0]"), DATA[0])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Ptycho.p.io.hom", "'hom': is not there; there is home, rfile"),
        ("Ptych.p", "'Ptych': is not there; there is Ptycho"),
        ("Ptycho.obj.S['SMFG00'].data[1]", "there are 1"),
        ("Ptycho.obj.S['SMFG00'].data.dtype", "nothing is inside of a ndarray"),
        ("Ptycho.p.io.home.upper", "nothing is inside of a str"),
        ("Ptycho.p.io.home[0]", "nothing is inside of a str"),
        ("Ptycho.runtime.iter_info.keys()", "only a map has keys"),
        ("Ptycho.runtime.n.get('x')", "only a map has get"),
        ("Ptycho.paths.plot_file", "is asked with a path in parentheses"),
        ("Ptycho.p.io(Ptycho.p)", "nothing that can be called"),
        ("Ptycho.paths.plot_file()", "is called with one path"),
        ("'h' in Ptycho.p.io.home", "needs names or a list"),
        ("list(Ptycho.p.io.home)", "needs names or a list"),
        ("Ptycho.p.io.home is 5", "'None' is needed before '5'"),
        ("Ptycho.p io", "nothing may follow"),
        ("Ptycho.__class__", "do not begin with '_'"),
        ("Ptycho.p; Ptycho.p", "is not understood"),
        ("Ptycho." * 50 + "p", "at most 40 steps"),
        ("P" * (MAX_TEXT + 1), "at most 1000 characters"),
    ],
)
def test_what_is_refused_and_why(text: str, why: str) -> None:
    with pytest.raises(PathError, match=why.replace("(", r"\(").replace(".", r"\.")):
        ask(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ptycho.end(reason='gone')", Call("end", {"reason": "gone"})),
        ("Ptycho.pause()", Call("pause", {})),
        (
            "Ptycho.f(a=1, b=-2.5e3, c=[1, 'x', None], d=(True,))",
            Call("f", {"a": 1, "b": -2500.0, "c": [1, "x", None], "d": [True]}),
        ),
        ("Ptycho.p.engines.e.alpha = 0.5", Assignment(path("Ptycho.p.engines.e.alpha"), 0.5)),
        ("Ptycho.p.engines['e'].alpha=None", Assignment(path("Ptycho.p.engines['e'].alpha"), None)),
        ("Ptycho.keys()", Call("keys", {})),
    ],
)
def test_what_may_be_ordered(text: str, expected: Any) -> None:
    assert order(text) == expected


def test_the_names_on_the_way_are_told_where_there_is_nothing_else() -> None:
    assert path("Ptycho.p['engines'].e").names == ("Ptycho", "p", "engines", "e")
    assert path("Ptycho.p[0]").names is None
    assert path("Ptycho.p.keys()").names is None


@pytest.mark.parametrize("text", hostile_requests.TEXTS, ids=lambda text: repr(text)[:40])
def test_the_hostile_corpus_is_refused(text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    refused = 0
    with monkeypatch.context() as guarded:
        for name in ("eval", "exec", "compile"):
            guarded.setattr(f"builtins.{name}", lambda *given, name=name, **more: called.append(name))
        for understand in (lambda: ask(text), lambda: order(text)):
            try:
                understand()
            except PathError:
                refused += 1
    assert not called
    assert refused == 2


PIECES = ["Ptycho", "p", "io", ".", "[", "]", "(", ")", "'", '"', "=", ",", " in ", " is not None", "not", "keys()", "get(", "\\"]
PIECES += ["0", "-1", "1e999", "list(", "__class__", "\n", "é", "\ud800", "lambda:", "runtime", "iter_info", "obj", "S", "None"]


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=14).map("".join)))
def test_whatever_comes_is_answered_or_refused(text: str) -> None:
    for understand in (lambda: ask(text), lambda: order(text), lambda: path(text)):
        with contextlib.suppress(PathError):
            understand()
