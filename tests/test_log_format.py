"""`log_format: json`: whatever a session says is one object in one line, and nothing stands between."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from ptystream import launch
from ptystream.params.errors import ConfigurationError
from ptystream.params.load import load
from ptystream.verbosity import TEXT, AsJson

FIELDS = {"time", "level", "logger", "thread", "message"}


def record(message: str, *arguments: object, **more: object) -> logging.LogRecord:
    return logging.LogRecord("ptystream.x", logging.WARNING, "x.py", 1, message, arguments, more.get("exc_info"))  # type: ignore[arg-type]


def test_a_record_is_one_line_whatever_is_in_it() -> None:
    line = AsJson().format(record('first\nsecond "%s"', "größer\u2028\x00"))
    assert line.splitlines() == [line]
    told = json.loads(line)
    assert set(told) == FIELDS
    assert told["message"] == 'first\nsecond "größer\u2028\x00"'
    assert (told["level"], told["logger"]) == ("WARNING", "ptystream.x")
    assert datetime.fromisoformat(told["time"]).tzinfo is not None


def test_an_exception_is_in_it() -> None:
    try:
        raise ValueError("planted")
    except ValueError:
        line = AsJson().format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line
    assert "ValueError: planted" in json.loads(line)["exception"]


def test_another_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="log_format"):
        load({"log_format": "xml", "scans": {}, "engines": {}})


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_command_says_all_of_it_so(form: str, tmp_path: Path) -> None:
    given = {
        "run": "t",
        "log_format": form,
        "verbose_level": "INFO",
        "io": {"home": str(tmp_path), "rfile": "%(run)s.ptyr", "autoplot": {"active": False}},
        "scans": {"s": {"name": "Full", "data": {"name": "MoonFlowerScan", "shape": 32, "num_frames": 30}}},
        "engines": {"e": {"name": "DM", "numiter": 2}},
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(given))
    command = [sys.executable, "-P", "-m", "ptystream", "live", str(tmp_path / "t.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    if form == "text":
        assert not any(line.startswith("{") for line in lines)
        assert "picture: " in done.stderr
        return
    told = [json.loads(line) for line in lines]
    assert all(set(one) >= FIELDS for one in told)
    messages = [one["message"] for one in told]
    assert any(message.startswith("metrics on http://") for message in messages)
    assert any("iteration 2" in message for message in messages)
    assert any(message.startswith("result: ") for message in messages)
    assert "To cite with this result:" in messages
    assert TEXT.format(record("x")).endswith("WARNING x")


def test_sessions_side_by_side_leave_the_log_as_they_found_it() -> None:
    logger = logging.getLogger("ptystream")
    before, handlers = logger.level, list(logger.handlers)
    first, second = (launch._logging_at(wanted, logging.Formatter()) for wanted in (logging.ERROR, logging.INFO))
    first.__enter__()
    assert logger.level == logging.ERROR
    second.__enter__()
    assert logger.level == logging.INFO
    first.__exit__(None, None, None)  # not the one that began last
    assert logger.level == logging.INFO
    second.__exit__(None, None, None)
    assert logger.level == before and logger.handlers == handlers
