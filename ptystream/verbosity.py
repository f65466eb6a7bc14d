"""Levels of the log, by ptypy's names and numbers, three of which the logging module does not have."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

INSPECT, INTERACTIVE, CITATION = 15, 35, 45
"""Object information; one-line progress; what to cite."""
NAMES = {
    "CRITICAL": logging.CRITICAL,
    "CITATION": CITATION,
    "ERROR": logging.ERROR,
    "INTERACTIVE": INTERACTIVE,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "INSPECT": INSPECT,
    "DEBUG": logging.DEBUG,
}
NUMBERED = ("CRITICAL", "ERROR", "WARNING", "INFO", "INSPECT", "DEBUG")
"""Names of the levels 0 to 5."""

for _name in ("INSPECT", "INTERACTIVE", "CITATION"):
    logging.addLevelName(NAMES[_name], _name)


def level(value: Any) -> int:
    """A verbose level as a number of the logging module. Raises `ValueError` for an unknown one."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(NUMBERED):
        return NAMES[NUMBERED[value]]
    if isinstance(value, str) and value.strip().upper() in NAMES:
        return NAMES[value.strip().upper()]
    if isinstance(value, str) and value.strip() in {str(number) for number in range(len(NUMBERED))}:
        return NAMES[NUMBERED[int(value)]]
    raise ValueError(f"must be 0 to {len(NUMBERED) - 1} or one of {', '.join(NAMES)}")


TEXT = logging.Formatter("%(asctime)s %(levelname)s %(message)s")


class AsJson(logging.Formatter):
    """One object in one line for each record: time (UTC), level, logger, thread, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


class ToStderr(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at that moment, so that a progress line can move out of the way."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(TEXT)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error."""
        return sys.stderr
