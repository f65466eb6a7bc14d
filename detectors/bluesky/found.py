"""What a stream of documents holds: which data keys, how many frames, and which quantity by which locator."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ptystream.events import Event, FileRows, Frames, Rejected, Rows, SampleRows, Samples, ScanStarted
from ptystream.files import FileError, Reader
from ptystream.storage.opened import RefusedError
from ptystream.transport import TransportClosed

from .protocol import BlueskyDecoder

MAX_LISTED = 20
MAX_FILES = 100
"""Files that are tried."""
READING_S = 20.0
"""How long a file is read."""


def listen(parameters: Any, transport: Any, decoder: BlueskyDecoder, seconds: float) -> Iterator[str]:
    """Lines for a person about what came within `seconds`; a file is read as far as it goes, at once. Raises `OSError`, also
    for files that documents name and that are not to be read."""
    if parameters.via == "file":
        seconds = READING_S
    elif not seconds or parameters.via == "process":  # the plan is another process's
        return
    said, counts, rejected = [], {"frames": 0, "samples": 0}, dict[str, tuple[int, str]]()
    files: dict[str, FileRows | Rows] = {}
    deadline = time.monotonic() + seconds
    transport.open()
    try:
        while (left := deadline - time.monotonic()) > 0:
            message = transport.receive(min(left, 0.2))
            if message is None:
                if parameters.via == "file":
                    break
                continue
            for event in decoder.feed(message):
                if isinstance(event, ScanStarted):
                    said += _of_run(decoder, event)
                for where in _references(event) if len(files) < MAX_FILES else ():
                    files.setdefault(where.file, where)
                if isinstance(event, Frames):
                    counts["frames"] += len(event.payloads)
                elif isinstance(event, (Samples, SampleRows)):
                    counts["samples"] += 1
                elif isinstance(event, Rejected):
                    before = rejected.get(event.reason, (0, ""))
                    rejected[event.reason] = (before[0] + event.count, before[1] or event.detail)
    except TransportClosed:
        pass
    finally:
        transport.close()
    if not decoder.documents:
        hint = "is a plan running, has the publisher this prefix, and does it connect to the proxy?"
        yield f"no document came within {seconds:g} s; {hint}"
        yield from _rejections(rejected)
        return
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(decoder.documents.items()))
    head = [f"{kinds}; {counts['frames']} frames, {'no ' if not counts['samples'] else ''}positions"]
    yield from head + said + _rejections(rejected)
    refused, reader = [], Reader(0.0)
    for where in files.values():
        try:
            reader.read(where)
            yield f"  file {where.file}: can be read"
        except FileError as error:
            if isinstance(error.__cause__, RefusedError):
                refused.append(str(error))
            else:
                yield f"  file {where.file}: cannot be read (yet): {error}"
    reader.close()
    if refused:
        raise OSError("; ".join(refused))


def _references(event: Event) -> Iterator[FileRows | Rows]:
    held = event.payloads if isinstance(event, Frames) else event.channels.values() if isinstance(event, SampleRows) else ()
    return (where for where in held if isinstance(where, (FileRows, Rows)))


def _of_run(decoder: BlueskyDecoder, event: ScanStarted) -> list[str]:
    run = decoder.runs[event.epoch]
    plan = (run.start or {}).get("plan_name", "plan not told")
    said = [f"run {run.uid[:8]} ({plan}), frames in {run.frames or 'no data key'}"]
    for descriptor in run.descriptors.values():
        keys = [f"{key} {told.get('shape', '')} {told.get('units') or ''}".strip() for key, told in descriptor.data_keys.items()]
        more = f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else ""
        said.append(f"  stream {descriptor.stream}: {', '.join(keys[:MAX_LISTED])}{more}")
        for device, told in list(descriptor.configuration.items())[:MAX_LISTED]:
            values = told.get("data") if isinstance(told, dict) else None
            if values:
                said.append(f"  configuration of {device}: {', '.join(map(str, list(values)[:MAX_LISTED]))}")
    for quantity, (where, value) in run.found.items():
        said.append(f"  {quantity} by {where}: {value if isinstance(value, str) else _number(value)}")
    return said


def _number(value: Any) -> str:
    numbers = value if isinstance(value, list) else [value]
    return ", ".join(f"{number:.6g}" for number in numbers)


def _rejections(rejected: dict[str, tuple[int, str]]) -> list[str]:
    return [f"{reason} × {count}: {detail}" for reason, (count, detail) in rejected.items()]
