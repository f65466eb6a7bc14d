"""`BlueskyScan`: where documents come from, and what a user may set about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import unquote, urlparse

from pydantic import Field, field_validator, model_validator

from ptystream.giving import GIVE_S
from ptystream.params.base import Branch, parameter
from ptystream.params.home import located
from ptystream.security import is_loopback

from .found import listen
from .kafka import KafkaTransport
from .lines import LinesTransport
from .locators import LocatorsParameters
from .process import ProcessTransport
from .protocol import BlueskyDecoder
from .restamping import restamped


class BlueskyParameters(Branch):
    """Documents of a RunEngine."""

    via: Literal["zmq", "process", "file", "kafka"] = parameter("zmq", ours=True)
    """How documents come: 'zmq' from a publisher or proxy at `address`; 'process' from the `Documents` object named `feed`;
    'file' from the JSON lines in `file`; 'kafka' from `topics` at `servers` (extra `kafka`)."""

    address: str = parameter("tcp://127.0.0.1:5578", ours=True)
    """ZeroMQ endpoint of the proxy's outgoing side (to listen on for a publisher, with `bind`)."""

    bind: bool = parameter(False, ours=True)
    """Listen on `address` and let the publisher connect, without a proxy."""

    insecure: bool = parameter(False, ours=True)
    """Allow `bind` on an interface other than loopback, without encryption."""

    keys: str | None = parameter(None, ours=True)
    """Own CURVE certificate file, with the secret key. None: no encryption; with `peer_keys` a fresh pair is made."""

    peer_keys: str | None = parameter(None, ours=True)
    """Public certificate file of the other end. With `bind` a folder of those that are let in."""

    prefix: str = parameter("", ours=True)
    """Prefix of the publisher whose documents are wanted; no others are received. '': of publishers without one."""

    high_water_mark: int = parameter(100000, lower=1, ours=True)
    """Documents that the socket queues."""

    max_message_bytes: int = parameter(1 << 28, lower=1024, ours=True)
    """Larger documents are refused before memory is taken (ZeroMQ: the connection ends)."""

    feed: str = parameter("bluesky", ours=True)
    """Name of the `Documents` object, for 'process'."""

    file: str | None = parameter(None, ours=True)
    """File of JSON lines, each ["start", {…}] or {"name": "start", "doc": {…}}, for 'file'. It may be growing."""

    idle_s: float | None = parameter(None, lower=0.0, ours=True)
    """A file whose last run has no stop, and to which nothing was added for so long, is at its end. None: never."""

    servers: str = parameter("127.0.0.1:9092", ours=True)
    """Kafka's brokers, host:port with commas between."""

    topics: tuple[str, ...] = parameter((), ours=True)
    """Kafka's topics."""

    stream: str = parameter("primary", ours=True)
    """Stream that frames and positions are in."""

    frames: str | None = parameter(None, ours=True)
    """Data key of the frames. None: the only one of the stream that is a picture."""

    dataset: str | None = parameter(None, ours=True)
    """Path of the frames within their HDF5 files, where the documents name none, or another one. It holds for all files."""

    path_map: dict[str, str] = parameter({}, ours=True)
    """Folders as documents name them → where they are mounted here, e.g. {"/ioc/data": "/mnt/data"}; also whole
    beginnings of URIs. The longest that fits is taken."""

    folders: tuple[str, ...] = parameter((), ours=True)
    """Folders that files named by documents are read from, with all below them, beside those that `path_map` leads to. Links
    and virtual datasets in a file may lead there and to the file's own folder. (), and no `path_map`: any file that a document
    names is read, as long as nobody but this machine, or a publisher with `peer_keys`, can send documents; otherwise none."""

    only: dict[str, str | int | float] = parameter({}, ours=True)
    """Runs whose start document holds these entries, e.g. {plan_name: grid_scan}; others are passed over. {}: all."""

    find: LocatorsParameters = Field(default_factory=LocatorsParameters)
    """Where in the documents each quantity is."""

    @property
    def link(self) -> str:
        """Kind of the sender's socket."""
        return "pub"

    @property
    def readable(self) -> tuple[str, ...] | None:
        """Folders that files named by documents are read from; None: any."""
        urls = {to: urlparse(to) for to in self.path_map.values()}
        named = (*self.folders, *((unquote(url.path) if url.scheme == "file" else to) or "/" for to, url in urls.items()))
        known = {
            "zmq": is_loopback(self.address) or self.peer_keys is not None,
            "kafka": all(is_loopback(f"tcp://{server.strip()}") for server in self.servers.split(",")),
        }
        return None if not named and known.get(self.via, True) else named

    @field_validator("folders")
    @classmethod
    def _folders_below_home(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(located(folder) for folder in value)

    @field_validator("keys", "peer_keys", "file")
    @classmethod
    def _below_home(cls, value: str | None) -> str | None:
        return None if value is None else located(value)

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        if " " in value or not value.isascii() or len(value) > 200:
            raise ValueError("must be without spaces, in ASCII")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.via == "file" and not self.file:
            raise ValueError("file: None: must be the name of a file of JSON lines, for 'via: file'")
        if self.via == "kafka" and not self.topics:
            raise ValueError("topics: (): must name at least one topic, for 'via: kafka'")
        return self


class BlueskyScan:
    """Frames and positions, or either alone, from the documents of a Bluesky RunEngine."""

    Parameters = BlueskyParameters
    tells_geometry: ClassVar[bool] = True
    """What the configuration leaves out of it is found in the documents."""
    found = staticmethod(listen)
    restamped = staticmethod(restamped)

    @staticmethod
    def decoder(parameters: Any, channel: str) -> BlueskyDecoder:
        """Who understands the documents: for frames ('<scan>/data') or for positions."""
        return BlueskyDecoder(parameters, "data" if channel.endswith("/data") else "positions")

    @staticmethod
    def transport(parameters: Any, channel: str, decoder: BlueskyDecoder) -> Any:
        """Where they come from."""
        p = parameters
        if p.via == "process":
            return ProcessTransport(p.feed, channel)
        if p.via == "kafka":
            return KafkaTransport(p.servers, p.topics, channel, p.max_message_bytes)
        if p.via == "file":
            return LinesTransport(
                Path(p.file),
                channel,
                unfinished=lambda: bool(decoder.unfinished),
                idle_s=p.idle_s,
                max_bytes=p.max_message_bytes,
                taken=lambda: decoder.fed,
            )
        from ..zmq.source import ZmqTransport

        return ZmqTransport(p, channel, topic=p.prefix.encode() + b" ")

    @staticmethod
    def simulator(parameters: Any, channel: str, rehearsal: Any) -> Any:
        """Publishes the documents of a simulated scan: see `ptystream.simulating`."""
        from .rehearsing import simulator

        return simulator(parameters, channel, rehearsal)

    @staticmethod
    def giver(parameters: Any, address: str) -> Any:
        """Publishes recorded documents, those of a process without a prefix."""
        if parameters.via not in ("zmq", "process"):
            raise ValueError(f"its documents came 'via: {parameters.via}', which is no socket: replay --into a session instead")
        from ..zmq.plain import PlainSender

        return PlainSender("pub", address, timeout_s=GIVE_S)
