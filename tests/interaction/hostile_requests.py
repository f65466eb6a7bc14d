"""Requests of ptypy's interaction wire that nobody should send."""

from __future__ import annotations

import json
from typing import Any

TEXTS: list[Any] = [
    "",
    " ",
    "__import__('os').system('true')",
    "().__class__.__bases__[0].__subclasses__()",
    "Ptycho.__dict__",
    "Ptycho.p.__class__",
    "eval('1')",
    "exec('1')",
    "open('/etc/passwd').read()",
    "[x for x in Ptycho]",
    "lambda: 0",
    "Ptycho.p if Ptycho else 0",
    "Ptycho.p, Ptycho.p",
    "1 + 1",
    "'a' * 1000000000",
    "9 ** 9 ** 9",
    "f'{Ptycho}'",
    "b'x' in Ptycho.p",
    "Ptycho.p.io == 1",
    "Ptycho.obj.S['x'].data.tofile('/tmp/x')",
    "Ptycho.p := 3",
    "import os",
    "Ptycho.p.update(Ptycho.p)",
    "del Ptycho.p",
    "Ptycho.p\nimport os",
    "Ptycho.p # comment",
    "Ptycho['p'",
    "Ptycho.p.get(",
    "Ptycho.p.get('a'",
    "Ptycho.p.get(Ptycho)",
    "Ptycho.paths.plot_file(Ptycho.paths.plot_file(Ptycho.runtime))",
    "((((((((((((((",
    "[" * 900,
    "(" * 900 + ")" * 90,
    "Ptycho" + "[0]" * 300,
    "Ptycho" + ".p" * 400,
    "-" * 900 + "1",
    "'" + "x" * 990,
    "Ptycho.p[" + "9" * 900 + "]",
    "Ptycho.p[1.5]",
    "Ptycho.p[True]",
    "Ptycho.p[None]",
    "Ptycho.p[[1]]",
    "Ptycho.p[1:2]",
    "Ptycho.p[...]",
    "\x00",
    "\ud800",
    "Ｐtycho.p",
    "x" * 100_000,
    None,
    5,
    1.5,
    True,
    [],
    ["Ptycho"],
    {},
    {"str": "Ptycho"},
]
"""What stands in 'str'; none of it has an answer, and none is an order."""


def header(message: Any, **more: Any) -> bytes:
    return json.dumps({"hasarray": False, "message": message} | more).encode()


def _with(array: dict[str, Any], *parts: bytes) -> list[bytes]:
    request = {"ID": None, "cmd": "SET", "args": "NPYARRAY[000]"}
    return [header(request, hasarray=True, arraylist=[array]), *parts]


FRAMES: list[list[bytes]] = [
    [b""],
    [b"", b""],
    [b"\x00\xff" * 50],
    [b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."],
    [b"null"],
    [b"[]"],
    [b"5"],
    [b"{}"],
    [b'{"message": 1}'],
    [b'{"hasarray": false}'],
    [b"[" * 100_000],
    [b'{"a":' * 100_000],
    [b'{"hasarray": false, "message": ' + b"[" * 500 + b"]" * 500 + b"}"],
    [b'{"hasarray": false, "message": ' + b"9" * 10_000 + b"}"],
    [b'{"hasarray": false, "message": NaN}'],
    [b'{"hasarray": true, "message": 1}'],
    [header({"ID": None, "cmd": "PING", "args": None}), b"one part too many"],
    [header({"ID": None, "cmd": "PING"}, hasarray="yes"), b"x"],
    _with({"dtype": "O", "shape": [1]}, bytes(8)),
    _with({"dtype": "<f8", "shape": [2]}, bytes(8)),
    _with({"dtype": "<f8", "shape": [-1]}, bytes(8)),
    _with({"dtype": "<f8", "shape": [1.0]}, bytes(8)),
    _with({"dtype": "<f8", "shape": [2**62, 2**62]}, bytes(8)),
    _with({"dtype": "<f8", "shape": [0, 2**62]}, b""),
    _with({"dtype": "<f8", "shape": [0] * 100}, b""),
    _with({"dtype": "<f8", "shape": [True]}, bytes(8)),
    _with({"dtype": "<f8", "shape": 1}, bytes(8)),
    _with({"dtype": "<f8,<f8", "shape": [1]}, bytes(16)),
    _with({"dtype": "<M8[s]", "shape": [1]}, bytes(8)),
    _with({"dtype": ["<f8"], "shape": [1]}, bytes(8)),
    _with({"dtype": "<f8"}, bytes(8)),
    _with({}, bytes(8)),
    _with({"dtype": "<f8", "shape": [1]}),
    [header({"cmd": "SET", "args": "NPYARRAY[999]"}, hasarray=True, arraylist=[])],
    [header({"cmd": "PING"}), *[b"x"] * 500],
    [header(request) for request in [1]],
]
"""Parts of messages that are no request."""

MAPS: list[Any] = [
    None,
    [],
    "CONNECT",
    {},
    {"cmd": None},
    {"cmd": []},
    {"cmd": {}},
    {"cmd": "connect"},
    {"cmd": "EVAL", "ID": None, "args": {"str": "1"}},
    {"cmd": "__class__", "ID": None, "args": None},
    *(
        {"cmd": command, "ID": key, "args": {"ticket": 1, "str": "Ptycho.p", "val": 1}}
        for command in ("GET", "SET", "DO", "DISCONNECT", "SHUTDOWN")
        for key in (None, "AAAAAA", 5, [], {}, "\ud800", "x" * 9999)
    ),
    *({"cmd": "GETNOW", "ID": None, "args": said} for said in (None, [], 5, "str", {}, {"str": None}, {"Str": "Ptycho.p"})),
]
"""Well-framed requests that cannot be met."""
