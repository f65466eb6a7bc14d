"""`ptystream params`: the reference of all parameters."""

from __future__ import annotations

import difflib
import json

from rich.console import Console
from rich.table import Table

from ptystream.params.reference import entries


def params(path: str, as_json: bool) -> int:
    """Body of the command."""
    found = [entry for entry in entries() if not path or entry["path"] == path or entry["path"].startswith(path + ".")]
    if not found:
        near = difflib.get_close_matches(path, [entry["path"] for entry in entries()], n=3)
        print(f"{path}: no such parameter" + (f"; did you mean {', '.join(near)}?" if near else ""))
        return 2
    if as_json:
        print(json.dumps(found, indent=1, default=str))
        return 0
    table = Table("parameter", "type", "default", "limits", "meaning")
    for entry in found:
        limits = "" if entry["lower"] is None and entry["upper"] is None else f"{entry['lower']} … {entry['upper']}"
        kinds = ", ".join(map(str, entry["choices"] or entry["types"]))
        default = "" if entry["types"] == ["Param"] else repr(entry["default"])
        table.add_row(entry["path"], kinds, default, limits.replace("None", ""), entry["doc"])
    Console().print(table)
    return 0
