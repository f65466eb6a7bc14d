"""A movie from pictures that were dumped while a reconstruction ran. The pictures are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAMES_PER_SECOND = 5


def make_movie(frames: Sequence[str | Path], stem: str | Path) -> Path:
    """Write '<stem>.mp4' where imageio-ffmpeg is installed, otherwise '<stem>.gif'; returns the path.

    Pictures of another size than the first are laid on a white one of its size. Raises `ValueError` without pictures,
    `OSError` for what cannot be read or written.
    """
    if not frames:
        raise ValueError("a movie needs at least one picture")
    try:
        import imageio_ffmpeg
    except ImportError:
        return _gif(frames, Path(f"{stem}.gif"))
    return _mp4(imageio_ffmpeg, frames, Path(f"{stem}.mp4"))


def _pictures(frames: Sequence[str | Path], even: bool) -> Iterator[NDArray[np.uint8]]:
    """(y, x, rgb) of each; with `even` their sides are, as video formats want it."""
    from PIL import Image

    shape: tuple[int, int] | None = None
    for frame in frames:
        with Image.open(frame) as opened:
            picture = np.asarray(opened.convert("RGB"))
        if shape is None:
            step = 2 if even else 1
            shape = (-(-picture.shape[0] // step) * step, -(-picture.shape[1] // step) * step)
        sheet = np.full((*shape, 3), 255, np.uint8)
        part = picture[: shape[0], : shape[1]]
        sheet[: part.shape[0], : part.shape[1]] = part
        yield sheet


def _mp4(library: Any, frames: Sequence[str | Path], path: Path) -> Path:
    pictures = _pictures(frames, even=True)
    first = next(pictures)
    size = (first.shape[1], first.shape[0])
    # H.264 in the pixel format that every player knows; a size of even sides needs no macro blocks of 16.
    writer = library.write_frames(str(path), size, fps=FRAMES_PER_SECOND, macro_block_size=1, ffmpeg_log_level="error")
    writer.send(None)
    try:
        writer.send(first.tobytes())
        for picture in pictures:
            writer.send(picture.tobytes())
    finally:
        writer.close()
    return path


def _gif(frames: Sequence[str | Path], path: Path) -> Path:
    from PIL import Image

    pictures = (Image.fromarray(picture) for picture in _pictures(frames, even=False))
    next(pictures).save(path, save_all=True, append_images=pictures, duration=1000 // FRAMES_PER_SECOND, loop=0)
    return path
