"""Pictures below the cell of a Jupyter notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable


def display_in_notebook() -> Callable[[bytes], None] | None:
    """Something that shows a PNG below the running cell, in the place of the one before; None outside of a notebook."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    if type(shell).__name__ != "ZMQInteractiveShell":
        return None
    from IPython.display import Image, display

    handle = display(display_id=True)

    def show(png: bytes) -> None:
        handle.update(Image(data=png, format="png"))

    return show
