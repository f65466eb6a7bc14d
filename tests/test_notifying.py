"""What systemd is told of a session."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptystream.health import Health
from ptystream.notifying import Notifier


class Systemd:
    """Listens as systemd does."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}

    def hear(self, word: str, times: int = 100) -> list[str]:
        """The words until one of them is `word`."""
        heard: list[str] = []
        for _ in range(times):
            heard += self.socket.recv(4096).decode().split("\n")
            if word in heard:
                return heard
        raise AssertionError(f"{word} was not said, but {heard}")


@pytest.fixture(params=["file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    address = str(tmp_path / "notify") if request.param == "file" else f"@ptystream-{tmp_path.name}-{id(tmp_path)}"
    listening = Systemd(address)
    listening.socket.settimeout(20)
    yield listening
    listening.socket.close()


def test_ready_is_said_once_when_it_is_and_life_before_and_after(systemd: Systemd) -> None:
    health = Health()
    health.beat("the engines are being compiled")
    notifier = Notifier(health, systemd.environment)
    before = systemd.hear("WATCHDOG=1")
    assert "READY=1" not in before and "STATUS=the engines are being compiled" in before
    health.beat()
    systemd.hear("READY=1")
    after = systemd.hear("WATCHDOG=1")
    assert "READY=1" not in after
    notifier.close()
    assert "READY=1" not in systemd.hear("STOPPING=1")


def test_who_is_ill_gives_no_sign_of_life_and_says_why(systemd: Systemd) -> None:
    health = Health()
    health.beat()
    notifier = Notifier(health, systemd.environment)
    systemd.hear("READY=1")
    health.stuck_after_s = 0.0
    heard: list[str] = []
    while not any(word.startswith("STATUS=engine: has not come round") for word in heard):
        heard += systemd.socket.recv(4096).decode().split("\n")
    later = [systemd.socket.recv(4096).decode() for _ in range(3)]
    assert not any("WATCHDOG=1" in word for word in later)
    notifier.close()


def test_without_systemd_nothing_runs() -> None:
    before = threading.active_count()
    Notifier(Health(), {}).close()
    assert threading.active_count() == before


def test_a_systemd_that_went_away_ends_nothing(tmp_path: Path) -> None:
    health = Health()
    notifier = Notifier(health, {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "40000"})
    threading.Event().wait(0.1)
    notifier.close()
