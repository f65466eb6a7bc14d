"""Over which sockets a recording is given back: those that its messages came over, as its own configuration tells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from pydantic import ValidationError

from ptystream.events import Buffer
from ptystream.params.load import plugins
from ptystream.recording import Recording

GIVE_S = 600.0
"""Whoever listens is waited for so long, to come and to take a message."""
ANYWHERE = "tcp://127.0.0.1:*"
LINKS = ("acknowledged", "push", "pub")


class Giver(Protocol):
    """Sends recorded messages as their first sender did: what a plug-in's `giver(parameters, address)` makes. A context manager.

    `giver` raises `ValueError` where what it was given came over no socket, or may not listen there.
    """

    address: str
    """Where it listens; with the port that '*' became."""

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody listens, where that can be known and matters. Raises `TimeoutError`."""

    def again(self, parts: Sequence[Buffer]) -> None:
        """Send one message."""

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until everything was taken, where that can be known."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""


def branches_of(recording: Recording) -> dict[str, Mapping[str, Any] | None]:
    """Channel of a source → its branch of the recording's configuration; None where that is not known."""
    for _ in recording:
        pass
    try:
        scans = json.loads(recording.metadata.get("configuration") or "{}").get("scans") or {}
    except (ValueError, AttributeError, TypeError):
        scans = {}
    found: dict[str, Mapping[str, Any] | None] = {}
    for channel in recording.channels.values():
        label, _, kind = channel.partition("/")
        branch = scans.get(label) if isinstance(scans, dict) else None
        for key in ("data", *(() if kind == "data" else kind.split("."))):
            branch = branch.get(key) if isinstance(branch, dict) else None
        if kind:
            found[channel] = branch if isinstance(branch, dict) else None
    return found


def sources_of(recording: Recording) -> dict[str, Any]:
    """Channel → the plug-in that read it when it was recorded; None where that is not known any more."""
    known = plugins("detectors")
    return {n: None if branch is None else known.get(str(branch.get("name"))) for n, branch in branches_of(recording).items()}


def giver_of(channel: str, branch: Mapping[str, Any] | None, address: str = ANYWHERE, link: str | None = None) -> Giver:
    """What gives a channel back on `address`: over the socket that it came over, or over the native wire's of kind `link`. So is
    what is not known any more, and what came from plug-ins that record messages of the native wire, over 'acknowledged'.

    Raises `ValueError` where that cannot be.
    """
    known = plugins("detectors")
    plugin = None if branch is None else known.get(str(branch.get("name")))
    native = known["ZmqScan"]
    if link is not None or plugin is None or branch is None or not hasattr(plugin, "giver"):
        return native.Sender(address, link or "acknowledged", timeout_s=GIVE_S)  # type: ignore[no-any-return]
    fields = plugin.Parameters.model_fields
    try:
        parameters = plugin.Parameters(**{key: value for key, value in branch.items() if key in fields})
        return plugin.giver(parameters, address)  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        told = f"its configuration, {branch.get('name')}, cannot be used here ({where}: {first['msg']})"
        raise ValueError(f"{channel}: {told}: say which socket with --link, or replay --into a session") from error
    except ValueError as error:
        raise ValueError(f"{channel}: {error}") from error
