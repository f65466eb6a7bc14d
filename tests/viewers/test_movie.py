"""Movies: every picture is in it, in order; through a library, never a shell; the pictures stay."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave
from PIL import Image

from ptystream.viewers.movie import FRAMES_PER_SECOND, make_movie

SHADES = (40, 120, 200, 80)


@pytest.fixture
def frames(tmp_path: Path) -> list[str]:
    """Plain pictures of odd sides, the third smaller than the others."""
    names = []
    for k, shade in enumerate(SHADES):
        size = (51, 75, 3) if k != 2 else (31, 45, 3)
        names.append(str(tmp_path / f"{k}.png"))
        imsave(names[-1], np.full(size, shade, np.uint8))
    return names


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the reader leaves its pipes open
def test_an_mp4_holds_every_picture(frames: list[str], tmp_path: Path, require: Callable[[str, bool], None]) -> None:
    try:
        import imageio_ffmpeg
    except ImportError:
        require("imageio-ffmpeg", False)
    path = make_movie(frames, tmp_path / "m")
    assert path == tmp_path / "m.mp4"
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    assert about["size"] == (76, 52)
    assert about["fps"] == FRAMES_PER_SECOND
    pictures = [np.frombuffer(data, np.uint8).reshape(52, 76, 3) for data in reader]
    np.testing.assert_allclose([p[10:20, 10:20].mean() for p in pictures], SHADES, atol=4)
    assert pictures[2][45, 70].mean() > 240  # beside the smaller one it is white
    assert all(Path(f).exists() for f in frames)


def test_without_the_library_it_is_a_gif(frames: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    path = make_movie(frames, tmp_path / "m")
    assert path == tmp_path / "m.gif"
    with Image.open(path) as movie:
        assert movie.n_frames == len(SHADES)
        assert movie.size == (75, 51)
        for k, shade in enumerate(SHADES):
            movie.seek(k)
            assert movie.info["duration"] == 1000 // FRAMES_PER_SECOND
            assert abs(np.asarray(movie.convert("RGB"))[10:20, 10:20].mean() - shade) < 4
    assert all(Path(f).exists() for f in frames)


def test_a_movie_of_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        make_movie([], tmp_path / "m")
