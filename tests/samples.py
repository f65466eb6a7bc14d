"""Files that other programs wrote, for tests that skip where they are not here."""

from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "ptypy"


def sample(name: str) -> Path:
    """A file that ptypy wrote."""
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"{name}, which ptypy wrote, is not here")
    return path
