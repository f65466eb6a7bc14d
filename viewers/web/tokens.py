"""Tokens in a file, so that addresses stay the same when the server is started again."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import yaml

ROLES = ("view", "operate")
SHORTEST = 16
"""Characters of a token."""


def kept(path: str) -> dict[str, str]:
    """The token of each role. A file that is not there is made, for its owner alone.

    Raises `ValueError` for a file that others may read, or that holds none such.
    """
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return _read(Path(path))
    except OSError as error:
        raise ValueError(f"tokens: {path!r}: {error.strerror}") from error
    made = {role: secrets.token_urlsafe(16) for role in ROLES}
    with os.fdopen(file, "w", encoding="utf-8") as held:
        held.write("# Who has one of these may look at, or operate, what this machine's ptystream view shows.\n")
        held.writelines(f'{role}: "{token}"\n' for role, token in made.items())
    return made


def _read(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_mode & 0o077:
            raise ValueError(f"tokens: {str(path)!r}: others may read it: chmod 600")
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"tokens: {str(path)!r}: {error}") from error
    found: dict[str, Any] = {role: said.get(role) for role in ROLES} if isinstance(said, dict) else {}
    if not found or any(not isinstance(token, str) or len(token) < SHORTEST for token in found.values()):
        remedy = f"needs view and operate, {SHORTEST} characters or more each; remove it to have one made"
        raise ValueError(f"tokens: {str(path)!r}: {remedy}")
    if found["view"] == found["operate"]:
        raise ValueError(f"tokens: {str(path)!r}: view and operate are the same")
    return found
