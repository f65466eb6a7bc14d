"""Time that may be spent beside the reconstruction: a share of what passes, earned before it is spent."""

from __future__ import annotations

SAVED_S = 2.0
"""Time that is saved at most, where one piece of work does not cost more: a long rest is not followed by a long burst."""


class Purse:
    """Seconds earned as time passes, at the rate of a share, and spent piece by piece."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.passed = self.spent = 0.0
        """Seconds that have passed, and those of them that were spent."""
        self._saved = 0.0

    def earn(self, seconds: float, dearest: float = 0.0) -> None:
        """So much time has passed, of which `share` may be spent. `dearest`: what the dearest piece costs, which can always be
        saved for."""
        self.passed += seconds
        self._saved = min(self._saved + self.share * seconds, max(SAVED_S, 1.5 * dearest))

    def affords(self, seconds: float) -> bool:
        """Whether so much was earned."""
        return self.share > 0 and self._saved >= seconds

    def spend(self, seconds: float) -> None:
        """So much was spent, earned or not."""
        self.spent += seconds
        self._saved -= seconds

    @property
    def part(self) -> float:
        """Share of the time that was really spent."""
        return self.spent / self.passed if self.passed > 0 else 0.0
