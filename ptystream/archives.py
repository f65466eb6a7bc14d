"""What a configuration wants beside results: CXI/NeXus, a Tiled server, Bluesky's documents. All is checked before it begins."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ptystream.archiving import Archivist, Place
from ptystream.convert import cxi_beside
from ptystream.metrics import Metrics
from ptystream.params.errors import ConfigurationError, Fault
from ptystream.params.home import home, located
from ptystream.params.load import Configuration
from ptystream.publish.documenting import Callback, Documents, DocumentsError, Lines, Published, Sink
from ptystream.results import file_name
from ptystream.storage import tiled_entry


def archivist_of(configuration: Configuration, metrics: Metrics) -> Archivist | None:
    """What archives results, as `io.cxi` and `io.tiled` say; None where nothing is to be. Raises `ConfigurationError`."""
    io, places = configuration.root.io, []
    if io.cxi:
        places.append(Place("cxi", cxi_beside))
    if io.tiled.uri is not None:
        p = io.tiled
        try:
            if not tiled_entry.is_installed():
                raise tiled_entry.TiledError("the client of Tiled is not installed: pip install 'ptystream[tiled]'")
            key = tiled_entry.key_of(None if p.api_key_file is None else Path(io.home) / p.api_key_file)
        except tiled_entry.TiledError as error:
            raise ConfigurationError([Fault("io.tiled", p.uri, str(error))]) from error
        send = partial(tiled_entry.put, uri=io.tiled.uri, key=key, container=p.path, timeout_s=p.timeout_s)
        places.append(Place("tiled", send, limit_s=p.timeout_s, only_finished=True))
    return Archivist(places, metrics.archived) if places else None


def documents_of(configuration: Configuration, metrics: Metrics, on_document: Callback | None) -> Documents | None:
    """What gives Bluesky's documents out, as `io.documents` says; None where nobody wants them. Raises `ConfigurationError`."""
    io, sinks = configuration.root.io, list[Sink]()
    p = io.documents
    try:
        if p.file is not None:
            sinks.append(Lines(Path(io.home) / file_name(p.file, configuration.name)))
        if p.address is not None:
            with home(io.home):
                keys, peer_keys = (None if name is None else located(name) for name in (p.keys, p.peer_keys))
            given: dict[str, Any] = {"keys": keys, "peer_keys": peer_keys, "insecure": p.insecure}
            sinks.append(Published(p.address, bind=p.bind, form=p.format, prefix=p.prefix, **given))
    except DocumentsError as error:
        for sink in sinks:
            sink.close()
        path, _, remedy = str(error).partition(": ")
        raise ConfigurationError([Fault(path, p.file if path.endswith("file") else p.address, remedy)]) from error
    if not sinks and on_document is None:
        return None
    documents = Documents(sinks, p.interval_s, metrics.archived)
    if on_document is not None:
        documents.subscribe(on_document)
    return documents
