"""`ptystream keys`: CURVE certificates for sockets that leave the machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import zmq.auth

NAME = re.compile(r"[\w.-]+")


def keys(names: list[str], folder: str) -> int:
    """Body of the command: a pair of files for each name; an existing one is never replaced."""
    where = Path(folder)
    for name in names:
        if not NAME.fullmatch(name) or name.startswith("."):
            raise RuntimeError(f"{name!r}: a name has letters, digits, '_', '-' and '.', and does not begin with '.'")
        for ending in ("key", "key_secret"):
            if (where / f"{name}.{ending}").exists():
                raise RuntimeError(f"{where / name}.{ending} exists: remove it first, or choose another name")
    before = os.umask(0o077)  # nobody else may read a secret, not even while it is written
    try:
        where.mkdir(parents=True, exist_ok=True)
        made = [[Path(file) for file in zmq.auth.create_certificates(where, name)] for name in names]
    finally:
        os.umask(before)
    for name, (public, secret) in zip(names, made, strict=True):
        public.chmod(0o644)
        print(f"{secret}: `keys` of {name}; stays on its machine")
        print(
            f"{public}: for the others: `peer_keys` of who connects to {name}, or in the folder of those whom a listener lets in"
        )
    return 0
