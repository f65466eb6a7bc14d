"""Random numbers by key: the published test vectors, evenness, and that every part of the key matters."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptystream.chance import generator, of_drawing, philox, uniform

PI = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0xA4093822, 0x299F31D0)


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (*PI, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ],
)
def test_the_known_answers_of_the_random123_library(counter: list[int], key: tuple[int, int], wanted: list[int]) -> None:
    assert philox(np.array([counter], np.uint64), key)[0].tolist() == wanted


def test_a_number_depends_on_its_key_alone() -> None:
    few, many = uniform(3, "positions", 7, 0, np.array([5, 900]), 4), uniform(3, "positions", 7, 0, np.arange(1000), 8)
    np.testing.assert_array_equal(few, many[[5, 900], :4])


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"seed": 3 + (1 << 40)},
        {"purpose": "order"},
        {"iteration": 8},
        {"scan": 1},
        {"index": np.array([6 + (1 << 33)])},
    ],
)
def test_every_part_of_the_key_matters(other: dict[str, Any]) -> None:
    key: dict[str, Any] = {"seed": 3, "purpose": "positions", "iteration": 7, "scan": 0, "index": np.array([6]), "count": 4}
    assert not (uniform(**key) == uniform(**(key | other))).any()


def test_the_numbers_fill_the_interval_evenly() -> None:
    drawn = uniform(0, "positions", 0, 0, np.arange(20000), 4).ravel()
    counts, _ = np.histogram(drawn, bins=50, range=(0, 1))
    expected = len(drawn) / 50
    assert ((counts - expected) ** 2 / expected).sum() < 95  # 49 degrees of freedom: exceeded once in 10 000
    assert (drawn >= 0).all() and (drawn < 1).all()
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("other", [(4, "a", 1, 2), (3, "b", 1, 2), (3, "a", 2, 1), (3, "a", 1)])
def test_a_generator_belongs_to_its_key_alone(other: tuple[Any, ...]) -> None:
    first = generator(3, "a", 1, 2).random(4)
    generator(3, "a", 1, 3).random(100)
    np.testing.assert_array_equal(generator(3, "a", 1, 2).random(4), first)
    assert not (generator(*other).random(4) == first).any()


def test_drawings_have_keys_of_their_own() -> None:
    drawn = [of_drawing(*key).random(3).tolist() for key in ((1, 2), (1, 2), (2, 2), (1, 3))]
    assert drawn[0] == drawn[1]
    assert len({tuple(numbers) for numbers in drawn}) == 3


def test_nothing_else_makes_random_numbers() -> None:
    """One place, one kind of key: no other module of the package builds a generator."""
    import ptystream

    root = Path(ptystream.__file__).parent.parent
    folders = [root / name for name in ("ptystream", "engines", "detectors", "viewers")]
    assert all(folder.is_dir() for folder in folders)
    made = [
        path.relative_to(root)
        for folder in folders
        for path in folder.rglob("*.py")
        if re.search(
            r"np\.random\.(?!Generator\b)|default_rng|import random\b|SplitMix|np\.random\.Generator\(", path.read_text()
        )
    ]
    assert made == [Path("ptystream/chance.py")]
