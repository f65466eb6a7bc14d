"""Files that a process was writing when it was killed: '.<name>.<process>.part' beside the one that each would have become."""

from __future__ import annotations

import glob
import logging
import os
import re
from pathlib import Path

log = logging.getLogger(__name__)

KEYS = re.compile(r"(%\(run\)s)|%\(\w+\)[-+ #0-9.]*[a-zA-Z]")
"""What a pattern of file names is filled in with (`ptystream.params.patterns`)."""


def matching(pattern: str, run: str) -> str:
    """The glob of all names that a pattern may make for a run, itself a glob."""
    parts = KEYS.split(pattern.replace("%%", "%(percent)s"))
    known = {"%(run)s": run, None: "*"}
    return "".join(known[part] if k % 2 else glob.escape(part or "") for k, part in enumerate(parts))


def sweep(home: Path, pattern: str, run: str) -> list[Path]:
    """Remove what processes that are no more left of files of this pattern, of a run and of the further runs of its sessions;
    returns what is gone. What cannot be removed stays."""
    gone = []
    for name in (glob.escape(run), glob.escape(run) + "_[0-9]*"):
        wanted = Path(glob.escape(str(home))) / matching(pattern, name)
        for file in map(Path, glob.glob(str(wanted.with_name(f".{wanted.name}.*.part")), include_hidden=True)):
            process = file.name.split(".")[-2]
            if not process.isdigit() or _lives(int(process)) or not file.is_file():
                continue
            try:
                file.unlink()
            except OSError as error:
                log.warning("%s: left by a process that is no more, and cannot be removed: %s", file, error)
                continue
            log.info("%s: removed; it was left by a process that is no more", file)
            gone.append(file)
    return gone


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True
