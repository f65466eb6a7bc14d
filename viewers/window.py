"""The process that holds a window open in which a session shows its plots, through whatever matplotlib finds to make one.

Pictures come on standard input, each a line with its size and then a PNG; the newest is shown. It ends when the input or the
window does. What it reads comes from the session that started it.
"""

from __future__ import annotations

import io
import sys
import threading
from typing import Any, BinaryIO

LARGEST = 1 << 28
"""Bytes of a picture."""
PAUSE_S = 0.1
"""Between two looks at what has come."""


class Pictures:
    """Reads in a thread of its own, so that the window answers while nothing comes."""

    def __init__(self, stream: BinaryIO) -> None:
        self.ended = False
        self._newest: bytes | None = None
        self._lock = threading.Lock()
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while line := self._stream.readline():
            size = int(line)
            if not 0 < size <= LARGEST:
                break
            picture = self._stream.read(size)
            with self._lock:
                self._newest = picture
        self.ended = True

    def take(self) -> bytes | None:
        """The newest that was not taken yet."""
        with self._lock:
            picture, self._newest = self._newest, None
        return picture


def opened() -> Any:
    """A figure in a window. Raises `RuntimeError` where matplotlib has none to offer, and whatever its backend raises."""
    import matplotlib.pyplot as plt
    from matplotlib.backend_bases import FigureManagerBase

    figure = plt.figure("ptystream", figsize=(12.0, 7.0))
    if type(figure.canvas.manager) is FigureManagerBase:
        raise RuntimeError(f"matplotlib's backend here, {plt.get_backend()}, makes files and no windows")
    plt.show(block=False)
    return figure


def hold(figure: Any, pictures: Pictures) -> None:
    """Show what comes until the window or the input ends; the last picture is shown before that."""
    import matplotlib.pyplot as plt

    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    while plt.fignum_exists(figure.number):
        ended, picture = pictures.ended, pictures.take()
        if picture is not None:
            axis.clear()
            axis.set_axis_off()
            axis.imshow(plt.imread(io.BytesIO(picture), format="png"), interpolation="bilinear")
            figure.canvas.draw_idle()
        elif ended:
            return
        figure.canvas.start_event_loop(PAUSE_S)


def main(orders: BinaryIO, answers: BinaryIO) -> None:
    """Open a window, say so (or in a line why not), and hold it."""
    try:
        figure = opened()
    except Exception as error:  # whatever a desktop may lack is told, and not the end of a session
        answers.write(" ".join(str(error).split()).encode()[:500] + b"\n")
        answers.flush()
        return
    answers.write(b"ready\n")
    answers.flush()
    hold(figure, Pictures(orders))


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c is for the session, which says when it is over
    main(sys.stdin.buffer, sys.stdout.buffer)
