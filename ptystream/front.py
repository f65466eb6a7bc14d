"""`pypty_run`: a reconstruction from PyPty's own dictionary of parameters."""

from __future__ import annotations

from typing import Any

from ptystream.ptycho import Ptycho


def pypty_run(pypty_params: Any, **more: Any) -> Ptycho:
    """Reconstruct with PyPty's dictionary as it is, or a YAML or JSON file of one; the result has `.probe` and `.obj`.

    `more` is laid over it: `io`, `live`, `device` and what else stands at the root of a configuration. Raises
    `ConfigurationError` with everything that is wrong, before any data are read.
    """
    return Ptycho(pypty_params, **more).run()
