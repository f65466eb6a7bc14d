"""Which acquisitions of several sources are the same scan.

Every source has names of its own for an acquisition (series number, run uid, arm time); a declared rule joins them.
Values in, values out: no clock, no socket, no lock (the session calls it from under its own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REMEMBERED = 1000
"""Epochs kept per source; a session that runs for weeks forgets the oldest."""


class EpochError(ValueError):
    """Acquisitions that the rule would join but that cannot be one scan."""


@dataclass(slots=True)
class _Acquisition:
    epoch: str
    number: int
    started_ns: int
    ended_ns: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class EpochMap:
    """Maps (source, epoch) to the key of a scan: the epoch's name at the first source, the leading one.

    Rules: 'same': every source uses the same name. 'metadata:<key>': the leading source's metadata hold, under <key>,
    the other source's name (or a mapping source → name), or the other's metadata hold the leading one's. 'order':
    the k-th epoch of each source belongs to the k-th of the leading one, if they overlap in time (within `slack_s`).
    """

    def __init__(self, rule: str, sources: Sequence[str], *, slack_s: float = 2.0) -> None:
        kind, _, self._key = rule.partition(":")
        if kind not in ("same", "metadata", "order") or (kind == "metadata") != bool(self._key):
            raise ValueError(f"epochs: {rule!r}: must be 'same', 'metadata:<key>' or 'order'")
        if not sources or len(set(sources)) != len(sources):
            raise ValueError(f"epochs: {list(sources)!r}: one source at least, each named once")
        self._kind = kind
        self._lead = sources[0]
        self._slack_ns = int(slack_s * 1e9)
        self._seen: dict[str, dict[str, _Acquisition]] = {source: {} for source in sources}
        self._count = dict.fromkeys(sources, 0)

    def started(self, source: str, epoch: str, time_ns: int, metadata: Mapping[str, Any] | None = None) -> None:
        """`source` speaks of `epoch`: its start, or the first event where the start was missed. May be repeated."""
        known = self._seen[source]
        if epoch in known:
            if metadata:
                known[epoch].metadata = dict(metadata)
            return
        known[epoch] = _Acquisition(epoch, self._count[source], time_ns, metadata=dict(metadata or {}))
        self._count[source] += 1
        if len(known) > REMEMBERED:
            del known[next(iter(known))]

    def ended(self, source: str, epoch: str, time_ns: int) -> None:
        """`source` says that `epoch` is over."""
        self.started(source, epoch, time_ns)
        self._seen[source][epoch].ended_ns = time_ns

    def key(self, source: str, epoch: str) -> str | None:
        """Key of the scan, or None while it cannot be known yet.

        Raises `EpochError` where rule 'order' would join acquisitions that do not overlap in time.
        """
        if self._kind == "same" or source == self._lead:
            return epoch
        mine = self._seen[source].get(epoch)
        if mine is None:
            return None
        return self._by_metadata(source, mine) if self._kind == "metadata" else self._by_order(source, mine)

    def _by_metadata(self, source: str, mine: _Acquisition) -> str | None:
        named = mine.metadata.get(self._key)
        if isinstance(named, Mapping):
            named = named.get(self._lead)
        if named is not None:
            return str(named)
        for lead in reversed(self._seen[self._lead].values()):
            named = lead.metadata.get(self._key)
            if isinstance(named, Mapping):
                named = named.get(source)
            if named is not None and str(named) == mine.epoch:
                return lead.epoch
        return None

    def _by_order(self, source: str, mine: _Acquisition) -> str | None:
        for lead in self._seen[self._lead].values():
            if lead.number != mine.number:
                continue
            for early, late in ((lead, mine), (mine, lead)):
                if early.ended_ns is not None and late.started_ns > early.ended_ns + self._slack_ns:
                    raise EpochError(
                        f"epoch {mine.epoch!r} of {source!r} and {lead.epoch!r} of {self._lead!r} are both number "
                        f"{mine.number}, but one ended {(late.started_ns - early.ended_ns) / 1e9:.1f} s before the "
                        f"other began: an acquisition was missed; use the rule 'same' or 'metadata:<key>', or restart"
                    )
            return lead.epoch
        return None
