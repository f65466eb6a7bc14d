"""A running session in silx's view of complex images: amplitude, phase, both at once, with its tools.

`pip install silx[full]`, then `python examples/watch_silx.py tcp://127.0.0.1:5580` with the session's publish address.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ptystream.publish.snapshot import Snapshot
from ptystream.quality import remove_ramp
from ptystream.viewers.client import Client


def shown_of(snapshot: Snapshot) -> tuple[Any, tuple[float, float], tuple[float, float]] | None:
    """First layer of the first object without its phase ramp, origin and pixel (x, y) in micrometres; None before frames came."""
    image = next(iter(snapshot.object.values()), None)
    if image is None:
        return None
    y, x = np.multiply(image.pixel_size_m or (1e-6, 1e-6), 1e6)
    row, column = image.offset
    return remove_ramp(image.data[0], image.ramp), (column * x, row * y), (x, y)


def watch(client: Client) -> Any:
    """A window that follows a client."""
    from silx.gui.plot.ComplexImageView import ComplexImageView
    from silx.gui.utils.concurrent import submitToQtMainThread

    view = ComplexImageView()
    view.setKeepDataAspectRatio(True)
    view.getPlot().getXAxis().setLabel("x (µm)")
    view.getPlot().getYAxis().setLabel("y (µm)")
    view.getPlot().getYAxis().setInverted(True)
    view.setComplexMode(ComplexImageView.ComplexMode.PHASE)

    def draw(snapshot: Snapshot) -> None:
        found = shown_of(snapshot)
        if found is not None:
            data, origin, scale = found
            view.setOrigin(origin)
            view.setScale(scale)
            view.setData(data, copy=False)
            view.setGraphTitle(f"{snapshot.run}: {snapshot.state}, iteration {snapshot.iteration}")

    # In the client's thread: Qt draws in its own. Waiting for it lets the client skip what comes too fast.
    client.on_snapshot(lambda snapshot: submitToQtMainThread(draw, snapshot).result(5))
    return view


def main(endpoint: str) -> None:
    """Open the window and follow until it is closed."""
    from silx.gui import qt

    application = qt.QApplication(sys.argv[:1])
    client = Client(endpoint)
    view = watch(client)
    view.show()
    application.exec()
    client.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5580")
