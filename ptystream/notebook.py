"""Pictures below the cell of a Jupyter notebook."""

from __future__ import annotations

import sys
from typing import Any


class Cell:
    """Below the cell that runs."""

    def __init__(self, handle: Any, image: Any) -> None:
        self._handle, self._image = handle, image

    def __call__(self, png: bytes) -> None:
        """Show this one in the place of the one before."""
        self._handle.update(self._image(data=png, format="png"))

    def close(self) -> None:
        """The last picture stays."""


def display_in_notebook() -> Cell | None:
    """Something that shows a PNG below the running cell, in the place of the one before; None outside of a notebook."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    if type(shell).__name__ != "ZMQInteractiveShell":
        return None
    from IPython.display import Image, display

    return Cell(display(display_id=True), Image)
