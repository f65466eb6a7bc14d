"""Tells systemd, where it started the session (`Type=notify`), that it is ready, alive, or stopping: sd_notify's datagrams."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping

from ptystream.health import Health

LOOK_S = 1.0
"""How often it is looked whether the session is ready."""


class Notifier:
    """A thread that passes a session's health on. Says nothing where no systemd listens, nor once the session is ill."""

    def __init__(self, health: Health, environment: Mapping[str, str] = os.environ) -> None:
        """Of `environment`: NOTIFY_SOCKET, and WATCHDOG_USEC, within which systemd wants a sign of life."""
        self._health, self._address = health, environment.get("NOTIFY_SOCKET", "")
        wanted = environment.get("WATCHDOG_USEC", "")
        self._every_s = min(LOOK_S, int(wanted) / 4e6) if wanted.isdigit() and int(wanted) else LOOK_S
        self._closed, self._thread = threading.Event(), threading.Thread(target=self._serve, name="notifier", daemon=True)
        if self._address:
            self._thread.start()

    def close(self) -> None:
        """The session is being left. May be called twice."""
        if self._address and not self._closed.is_set():
            self._closed.set()
            self._thread.join(5.0)
            self._say("STOPPING=1")

    def _serve(self) -> None:
        ready, said = False, ""
        while True:
            ills, waits = self._health.ills(), self._health.waits()
            status = "; ".join(waits or ["takes frames", *self._health.concerns()])
            words = []
            if not waits and not ready:
                ready = True
                words.append("READY=1")
            if not ills:
                words.append("WATCHDOG=1")
            if status != said:
                said = status
                words.append(f"STATUS={status}".replace("\n", " "))
            if words:
                self._say("\n".join(words))
            if self._closed.wait(self._every_s):
                return

    def _say(self, words: str) -> None:
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
                to.settimeout(LOOK_S)
                to.sendto(words.encode(), address)
        except OSError:
            pass  # systemd went away: nobody is there to be told
