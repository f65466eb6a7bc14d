"""The branches of what a session leaves beside its result: documents for Bluesky, and an entry in a Tiled server."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from ptystream.params.base import Branch, parameter
from ptystream.params.patterns import checked_beforehand
from ptystream.security import check_listening


class TiledParameters(Branch):
    """A Tiled server that gets each finished result: object, probe, positions, curves and metadata.

    Written after the result's own file (`io.rfile`), in a thread of its own; needs the extra `tiled`. What goes wrong there is
    told and counted, and costs the run nothing."""

    uri: str | None = parameter(None, ours=True)
    """The server, or a container in it: http://127.0.0.1:8000, https://tiled.example/api/v1/metadata/ptycho. None: no server."""

    api_key_file: str | None = parameter(None, ours=True)
    """File whose first line is the API key, below `io.home` where it is relative; None: the environment variable TILED_API_KEY.
    A key is never part of a configuration, which recordings and results keep."""

    path: str = parameter("", ours=True)
    """Container below `uri` that the results go into, its parts with '/' between; it is made where it is not there."""

    timeout_s: float = parameter(120.0, lower=0.1, ours=True)
    """A result that is not written after so long is given up, seconds. The end of a session waits for no longer than that."""

    @field_validator("uri")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is None:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address like http://127.0.0.1:8000")
        if parts.username or parts.password or "api_key" in parts.query:
            raise ValueError("holds a name or a key, which would be kept with every result: use api_key_file or TILED_API_KEY")
        return value


class DocumentsParameters(Branch):
    """Bluesky documents of each run: start, descriptor, events with iteration, error and frames, where the result lies, stop."""

    file: str | None = parameter(None, ours=True)
    """File of JSON lines, each ["start", {…}], appended to; below `io.home`, its only key is %(run)s. None: no file."""

    address: str | None = parameter(None, ours=True)
    """ZeroMQ endpoint to publish on, for Bluesky's RemoteDispatcher: tcp://127.0.0.1:5577. None: nothing is published."""

    bind: bool = parameter(True, ours=True)
    """Listen on `address` and let dispatchers connect. Off: connect to the incoming side of a proxy there."""

    format: Literal["msgpack", "json"] = parameter("msgpack", ours=True)
    """Body of a published document: RemoteDispatcher(…, deserializer=msgpack.loads) or json.loads. Never a pickle, which is what
    a dispatcher opens when it is told nothing."""

    prefix: str = parameter("", ours=True)
    """Published before each document, so that dispatchers can ask for these alone; ASCII without spaces."""

    interval_s: float = parameter(1.0, lower=0.0, ours=True)
    """Shortest time between two events of a run, seconds; the last one comes in any case."""

    keys: str | None = parameter(None, ours=True)
    """Own CURVE certificate, a file that ends in .key_secret: what is published is then encrypted."""

    peer_keys: str | None = parameter(None, ours=True)
    """With `bind` a folder of public certificates of those who are let in; without, the proxy's public certificate."""

    insecure: bool = parameter(False, ours=True)
    """Publish beyond loopback without encryption: everybody on that network can read."""

    @field_validator("file")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        return None if value is None else checked_beforehand(value)

    @field_validator("prefix")
    @classmethod
    def _word(cls, value: str) -> str:
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("must be ASCII without spaces: a space ends it on the wire")
        return value

    @model_validator(mode="after")
    def _safe(self) -> DocumentsParameters:
        if self.address is not None and self.bind:
            check_listening(self.address, self.keys, self.insecure)
        return self
