"""Acquisitions of several sources become one scan by the declared rule, or not at all."""

from __future__ import annotations

import pytest

from ptystream.epochs import REMEMBERED, EpochError, EpochMap

S = 1_000_000_000


def test_same_names_are_the_same_scan() -> None:
    epochs = EpochMap("same", ["data", "positions"])
    assert epochs.key("positions", "17") == epochs.key("data", "17") == "17"


@pytest.mark.parametrize("side", ["lead", "lead mapping", "other"])
def test_an_id_in_the_metadata_of_either_source_joins_them(side: str) -> None:
    epochs = EpochMap("metadata:uid", ["data", "positions"])
    assert epochs.key("positions", "p-9") is None
    told = {"lead": {"uid": "p-9"}, "lead mapping": {"uid": {"positions": "p-9"}}}.get(side)
    epochs.started("data", "17", 0, told)
    epochs.started("data", "18", 0, {"uid": "p-10"})
    epochs.started("positions", "p-9", 0, {"uid": 17} if side == "other" else None)
    assert epochs.key("positions", "p-9") == "17"
    assert epochs.key("positions", "p-11") is None
    assert epochs.key("data", "17") == "17"


def test_metadata_that_come_after_the_first_mention_count() -> None:
    epochs = EpochMap("metadata:uid", ["data", "positions"])
    epochs.started("positions", "p", 0)
    assert epochs.key("positions", "p") is None
    epochs.started("positions", "p", 0, {"uid": "17"})
    assert epochs.key("positions", "p") == "17"


def test_by_order_the_kth_belongs_to_the_kth_whichever_comes_first() -> None:
    epochs = EpochMap("order", ["data", "positions"])
    epochs.started("positions", "a", 0)
    assert epochs.key("positions", "a") is None
    epochs.started("data", "17", 1 * S)
    epochs.ended("data", "17", 9 * S)
    epochs.ended("positions", "a", 10 * S)
    epochs.started("data", "18", 20 * S)
    epochs.started("positions", "b", 19 * S)
    assert [epochs.key("positions", e) for e in "ab"] == ["17", "18"]


def test_by_order_acquisitions_that_do_not_overlap_are_refused() -> None:
    epochs = EpochMap("order", ["data", "positions"], slack_s=1.0)
    epochs.started("data", "17", 0)
    epochs.ended("data", "17", 5 * S)
    epochs.started("positions", "b", 5 * S + S // 2)
    assert epochs.key("positions", "b") == "17", "within the slack"
    late = EpochMap("order", ["data", "positions"], slack_s=1.0)
    late.ended("data", "17", 5 * S)
    late.started("positions", "b", 60 * S)
    with pytest.raises(EpochError, match=r"'b' of 'positions' and '17' of 'data' are both number 0.*55\.0 s"):
        late.key("positions", "b")


def test_old_epochs_are_forgotten() -> None:
    epochs = EpochMap("order", ["data", "positions"])
    for k in range(REMEMBERED + 5):
        epochs.started("data", f"d{k}", k)
        epochs.started("positions", f"p{k}", k)
    assert epochs.key("positions", "p0") is None
    assert epochs.key("positions", f"p{REMEMBERED + 4}") == f"d{REMEMBERED + 4}"


@pytest.mark.parametrize("rule", ["", "metadata", "metadata:", "time", "same:x"])
def test_unknown_rules_are_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="must be 'same', 'metadata:<key>' or 'order'"):
        EpochMap(rule, ["data"])


def test_sources_are_named_once() -> None:
    with pytest.raises(ValueError, match="each named once"):
        EpochMap("same", ["data", "data"])
