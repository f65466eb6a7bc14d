"""Bluesky documents to events, without a socket or a file: what a run means for frames and for positions.

The epoch is the run's uid, the number of a frame that of its event. A run begins for us with its first frame or sample, so
that runs without any, such as those that align something, begin nothing.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ptystream.events import Event, FileRows, Rejected, Rows, ScanEnded, ScanStarted
from ptystream.transport import Message

from ..wire import WireError
from .columns import Columns, Piece
from .contents import MAX_RANGE, MAX_SEQUENCE, frames_of, inline, is_number, length, nanoseconds, number_range, text_id
from .locators import CHANNELS, QUANTITIES, UnitError
from .payload import line, on_the_wire, value
from .resources import Files
from .run import MAX_DESCRIPTORS, Descriptor, Run, unit_of

MAX_RUNS = 16
MAX_AWAITED = 1 << 16


class BlueskyDecoder:
    """Documents of one channel to events. `role` 'data': frames and their positions; 'positions': samples alone."""

    def __init__(self, parameters: Any, role: str) -> None:
        self.p, self.role = parameters, role
        self.unfinished: set[str] = set()
        """Runs that have begun and not stopped."""
        self.runs: OrderedDict[str, Run] = OrderedDict()
        self.fed = 0
        """Messages that came, the recorded ones of a continued session included."""
        self.documents: dict[str, int] = {}
        """Kind of document → how many came."""
        self._descriptors: dict[str, Run] = {}
        self._files = Files(parameters.path_map, parameters.dataset, parameters.readable)
        self._awaited: OrderedDict[str, tuple[str, int]] = OrderedDict()
        """Datum id that an event named before it came → (run, first frame)."""
        self._over: OrderedDict[str, None] = OrderedDict()
        """Runs that have stopped, or are not wanted."""
        self._passed: OrderedDict[str, bool] = OrderedDict()
        """Their descriptors → whether data of them are worth a word."""
        self._channels = ("y", "x") if role == "data" else CHANNELS

    def feed(self, message: Message) -> list[Event]:
        """See `ptystream.decoder.Decoder.feed`."""
        events: list[Event] = []
        self.fed += 1
        try:
            if len(message.parts) != 1:
                raise WireError("malformed", f"a message of {len(message.parts)} parts; a document has one")
            raw = message.parts[0]
            if self.p.via == "file":
                name, document = line(raw)
            elif self.p.via == "kafka":
                name, document = value(raw)
            else:
                prefix = self.p.prefix.encode() if self.p.via == "zmq" else b""
                name, document = on_the_wire(raw, prefix)
            self.documents[name] = self.documents.get(name, 0) + 1
            for event in getattr(self, f"_{name}")(document):
                events.append(event)
        except WireError as error:
            events.append(Rejected(error.reason, str(error)))
        except Exception as error:  # a document that is not as the schema says, in a way that nobody foresaw
            events.append(Rejected("malformed", f"a document that is not as its schema says: {error!r:.200}"))
        return events

    # ------------------------------------------------------------------ the run

    def _start(self, document: Mapping[str, Any]) -> Iterator[Event]:
        uid = text_id(document, "uid")
        if uid in self.runs or uid in self._over:
            raise WireError("duplicate_document", f"a second start of run {uid!r:.60}")
        for key, wanted in self.p.only.items():
            if document.get(key) != wanted:
                self._over[uid] = None
                return
        self._new(uid, document)
        yield from ()

    def _new(self, uid: str, start: Mapping[str, Any] | None) -> Run:
        run = self.runs[uid] = Run(uid, start)
        self.unfinished.add(uid)
        while len(self.runs) > MAX_RUNS:
            self._forget(next(iter(self.runs)))
        return run

    def _forget(self, uid: str) -> None:
        run = self.runs.pop(uid)
        self.unfinished.discard(uid)
        for descriptor in run.descriptors:
            self._descriptors.pop(descriptor, None)
            self._pass_over(descriptor, told=True)
        self._over[uid] = None
        while len(self._over) > 1000:
            self._over.popitem(last=False)

    def _pass_over(self, descriptor: str, told: bool) -> None:
        self._passed[descriptor] = told
        while len(self._passed) > 4096:
            self._passed.popitem(last=False)

    def _descriptor(self, document: Mapping[str, Any]) -> Iterator[Event]:
        uid, owner, stream = (text_id(document, key) for key in ("uid", "run_start", "name"))
        if owner in self._over:
            self._pass_over(uid, told=False)
            return
        data_keys, configuration = document.get("data_keys"), document.get("configuration", {})
        sound = isinstance(data_keys, Mapping) and all(isinstance(told, Mapping) for told in data_keys.values())
        if not sound or not isinstance(configuration, Mapping):
            raise WireError("malformed", f"descriptor {uid!r:.60} without proper data_keys")
        run = self.runs.get(owner)
        if run is None:
            if self.p.only:
                self._over[owner] = None
                self._pass_over(uid, told=False)
                raise WireError("no_start", f"run {owner!r:.60} was joined late: whether `only` means it is not known")
            run = self._new(owner, None)
            yield Rejected("no_start", f"run {owner!r:.60} was joined late, its start document is missing")
        if len(run.descriptors) >= MAX_DESCRIPTORS:
            raise WireError("too_many", f"more than {MAX_DESCRIPTORS} descriptors in run {owner!r:.60}")
        descriptor = run.descriptors[uid] = Descriptor(uid, stream, data_keys or {}, configuration)
        self._descriptors[uid] = run
        if stream == self.p.stream and run.main is None:
            run.main = descriptor
            yield from self._choose(run, descriptor)

    def _choose(self, run: Run, descriptor: Descriptor) -> Iterator[Event]:
        """Which data key holds the frames."""
        if self.role != "data":
            return
        if self.p.frames is not None:
            run.frames = self.p.frames if self.p.frames in descriptor.data_keys else None
        elif len(descriptor.images) == 1:
            run.frames = descriptor.images[0]
        elif descriptor.images:
            several = ", ".join(descriptor.images)[:200]
            yield Rejected("ambiguous_frames", f"several data keys are pictures: {several}; name one as `frames`")

    def _stop(self, document: Mapping[str, Any]) -> Iterator[Event]:
        uid = text_id(document, "run_start")
        run = self.runs.get(uid)
        if run is None:
            if uid in self._over:
                return
            raise WireError("unknown_run", f"the stop of run {uid!r:.60}, of which nothing was seen")
        counts = document.get("num_events")
        count = counts.get(self.p.stream) if isinstance(counts, Mapping) else None
        count = count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < MAX_SEQUENCE else None
        yield from self._found(run)
        if run.columns is not None:
            yield from run.columns.take(uid)
            if run.columns.left_out:
                yield Rejected("sample_incomplete", "samples that only some channels had", run.columns.left_out)
        wanted = run.frames is not None if self.role == "data" else run.columns is not None
        if wanted:
            yield from self._tell(run)
            begun = (run.next_event or 1) - 1
            if count is not None and count > begun:
                yield Rejected("gap", f"events {begun + 1} to {count} of run {uid!r:.60} never came", count - begun)
            per = run.main.per_event(run.frames) if run.main and run.frames else run.per_event
            reason = str(document.get("exit_status", "success"))[:40]
            yield ScanEnded(uid, None if count is None else count * per, "completed" if reason == "success" else reason)
        self._forget(uid)

    def _tell(self, run: Run) -> Iterator[Event]:
        """The start of a run, before its first data."""
        if run.told:
            return
        run.told = True
        for quantity in ("energy", "distance", "psize", "center_y", "center_x", "num_frames"):
            before = quantity in run.found
            for fault in () if before else run.constant(self.p.find, quantity):
                yield Rejected(fault.reason, str(fault))
            if quantity not in run.found and quantity != "num_frames" and self.p.find.of(quantity):
                listed = ", ".join(where.text for where in self.p.find.of(quantity))
                yield Rejected("quantity_missing", f"{quantity}: none of its locators finds anything: {listed}")
        yield ScanStarted(run.uid, run.metadata())

    def _found(self, run: Run) -> Iterator[Event]:
        """Choose the locator of every channel, once the main stream is described."""
        if run.columns is not None or run.main is None or (self.role == "data" and run.frames is None):
            return
        chosen: dict[str, tuple[str, float, float]] = {}
        constants: dict[str, float] = {}
        for channel in self._channels:
            for where in self.p.find.of(channel):
                key = run.key_of(where)
                if key is not None:
                    try:
                        scale, offset = where.linear(unit_of(run.main.data_keys, key), QUANTITIES[channel])
                    except UnitError as error:
                        yield Rejected("unit_missing", f"{channel}: {where.text}: {error}")
                        continue
                    chosen[channel], run.found[channel] = (key, scale, offset), (where.text, key)
                    break
            else:
                for fault in run.constant(self.p.find, channel):
                    yield Rejected(fault.reason, str(fault))
                if channel in run.found and isinstance(run.found[channel][1], float):
                    constants[channel] = run.found[channel][1]
                elif self.p.find.of(channel):
                    listed = ", ".join(where.text for where in self.p.find.of(channel))
                    yield Rejected("quantity_missing", f"{channel}: none of its locators finds anything: {listed}")
        if not chosen:
            run.columns = Columns((), {})
            return
        counts = {key: run.main.per_event(key) for key, _, _ in chosen.values()}
        common = math.gcd(*counts.values())
        if self.role == "data" and run.frames is not None:
            common = run.main.per_event(run.frames)
            for key, count in counts.items():
                if count % common:
                    raise WireError("wrong_shape", f"{key!r:.60}: {count} readings cannot be shared among {common} frames")
        run.per_event = common
        run.channels = {c: (key, scale, offset, counts[key] // common) for c, (key, scale, offset) in chosen.items()}
        run.columns = Columns(tuple(chosen), constants)

    # ------------------------------------------------------------------ events

    def _run_of(self, document: Mapping[str, Any]) -> tuple[Run, Descriptor] | None:
        """Run and descriptor of data; None for those of a run that is not wanted. Raises `WireError`."""
        uid = text_id(document, "descriptor")
        run = self._descriptors.get(uid)
        if run is None and uid in self._passed:
            if self._passed[uid]:
                raise WireError("after_stop", f"data of descriptor {uid!r:.60}, whose run has stopped")
            return None
        if run is None:
            raise WireError("unknown_descriptor", f"data of descriptor {uid!r:.60}, which was not told: joined too late")
        return run, run.descriptors[uid]

    def _event(self, document: Mapping[str, Any]) -> Iterator[Event]:
        yield from self._events(document, [document])

    def _event_page(self, document: Mapping[str, Any]) -> Iterator[Event]:
        numbers, data, times = (document.get(key) for key in ("seq_num", "data", "timestamps"))
        sound = isinstance(numbers, list) and isinstance(data, Mapping) and len(numbers) <= MAX_RANGE
        if not sound or any(len(column) != len(numbers) for column in data.values()):  # type: ignore[union-attr,arg-type]
            raise WireError("malformed", "an event_page whose columns differ in length")
        times = times if isinstance(times, Mapping) else {}
        rows = []
        for k, number in enumerate(numbers):  # type: ignore[arg-type]
            values = {key: column[k] for key, column in data.items()}  # type: ignore[union-attr]
            stamps = {key: column[k] for key, column in times.items() if len(column) > k}
            rows.append({"seq_num": number, "data": values, "timestamps": stamps})
        yield from self._events(document, rows)

    def _bulk_events(self, document: Mapping[str, Any]) -> Iterator[Event]:
        for rows in document.values():
            for row in rows:
                yield from self._events(row, [row])

    def _events(self, owner: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
        found = self._run_of(owner)
        if found is None:
            return
        run, descriptor = found
        for row in rows:
            number, data = row.get("seq_num"), row.get("data")
            if not is_number(number) or not isinstance(data, Mapping):
                raise WireError("malformed", f"an event with number {number!r:.40}")
            if descriptor.stream == "baseline":
                for key, reading in list(data.items())[:10000]:
                    run.readings.setdefault(key, (reading, unit_of(descriptor.data_keys, key)))
        if descriptor is not run.main:
            return
        yield from self._found(run)
        yield from self._frames_of_events(run, descriptor, rows)
        for row in rows:
            yield from self._readings(run, row)
        yield from self._samples(run)

    def _frames_of_events(self, run: Run, descriptor: Descriptor, rows: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
        if run.frames is None:
            return
        per = descriptor.per_event(run.frames)
        for row in rows:
            held = row["data"].get(run.frames)
            if held is None:
                continue  # it comes, or has come, by a stream_datum
            first = (row["seq_num"] - 1) * per
            yield from self._counted(run, row["seq_num"], row["seq_num"] + 1)
            yield from self._tell(run)
            stamp = nanoseconds(row, run.frames)
            if isinstance(held, str):
                try:
                    payloads: list[Any] = list(self._files.frames(held, per))
                except KeyError:
                    self._awaited[held] = (run.uid, first)
                    while len(self._awaited) > MAX_AWAITED:
                        self._awaited.popitem(last=False)
                        yield Rejected("datum_missing", "an event named a datum that never came")
                    continue
            else:
                payloads = inline(held, descriptor.data_keys[run.frames].get("dtype_numpy"))
            yield frames_of(run.uid, first, payloads, stamp)

    def _readings(self, run: Run, row: Mapping[str, Any]) -> Iterator[Event]:
        """The channels of one event."""
        for channel, (key, scale, offset, average) in run.channels.items():
            held = row["data"].get(key)
            if held is None:
                continue
            numbers = np.atleast_1d(np.asarray(held, np.float64)).ravel()
            if len(numbers) != run.per_event * average:
                told = f"{key!r:.60}: {len(numbers)} readings in an event, {run.per_event * average} described"
                yield Rejected("wrong_shape", told)
                continue
            numbers = numbers.reshape(run.per_event, average).mean(axis=1) * scale + offset
            stamp = nanoseconds(row, key)
            times = np.full(1, stamp) if stamp is not None and run.per_event == 1 else None
            first = (row["seq_num"] - 1) * run.per_event
            yield from self._piece(run, channel, Piece(first, first + run.per_event, numbers, times))

    def _piece(self, run: Run, channel: str, piece: Piece) -> Iterator[Event]:
        assert run.columns is not None
        if not run.columns.add(channel, piece):
            yield Rejected("too_many", f"{channel}: readings that wait for the other channels")

    def _samples(self, run: Run) -> Iterator[Event]:
        if run.columns is None:
            return
        for samples in run.columns.take(run.uid):
            if self.role == "positions":
                count = len(run.columns.names) and length(samples)
                first = samples.first // run.per_event + 1
                yield from self._counted(run, first, first + -(-count // run.per_event))
            yield from self._tell(run)
            yield samples

    def _counted(self, run: Run, first: int, stop: int) -> Iterator[Event]:
        """Events `first` to `stop` (not included) have come: those before them, if not, are missing."""
        expected = run.next_event or 1
        if first > expected:
            run.missed += first - expected
            late = run.start is None and run.next_event is None
            said = f"events {expected} to {first - 1} of run {run.uid!r:.60} never came"
            yield Rejected("joined_late" if late else "gap", said, first - expected)
        run.next_event = max(expected, stop)

    # ------------------------------------------------------------------ files

    def _resource(self, document: Mapping[str, Any]) -> Iterator[Event]:
        if self.role == "data":
            self._files.resource(document)
        yield from ()

    def _datum(self, document: Mapping[str, Any]) -> Iterator[Event]:
        yield from self._datums(
            text_id(document, "resource"), [text_id(document, "datum_id")], [document.get("datum_kwargs", {})]
        )

    def _datum_page(self, document: Mapping[str, Any]) -> Iterator[Event]:
        names, columns = document.get("datum_id"), document.get("datum_kwargs", {})
        if not isinstance(names, list) or not isinstance(columns, Mapping) or len(names) > MAX_RANGE:
            raise WireError("malformed", "a datum_page without a list of datum_id")
        rows = [{key: column[k] for key, column in columns.items()} for k in range(len(names))]
        yield from self._datums(text_id(document, "resource"), names, rows)

    def _bulk_datum(self, document: Mapping[str, Any]) -> Iterator[Event]:
        yield from self._datums(text_id(document, "resource"), document["datum_ids"], document["datum_kwarg_list"])

    def _datums(self, resource: str, names: list[Any], arguments: list[Any]) -> Iterator[Event]:
        if self.role != "data":
            return
        for name, told in zip(names, arguments, strict=True):
            if not isinstance(name, str):
                raise WireError("malformed", f"datum_id {name!r:.60} is no text")
            self._files.datum(name, resource, told)
            waiting = self._awaited.pop(name, None)
            run = None if waiting is None else self.runs.get(waiting[0])
            if waiting is not None and run is not None and run.main is not None and run.frames is not None:
                found = self._files.frames(name, run.main.per_event(run.frames))
                yield frames_of(run.uid, waiting[1], list(found), None)

    def _stream_resource(self, document: Mapping[str, Any]) -> Iterator[Event]:
        run = self.runs.get(str(document.get("run_start")))
        unwanted = run is not None and run.main is not None and not self._reads(run, document.get("data_key"))
        if unwanted or document.get("run_start") in self._over:
            self._files.ignore(text_id(document, "uid"), "not wanted")
            return
        self._files.stream_resource(document)
        yield from ()

    def _reads(self, run: Run, key: Any) -> bool:
        """Whether a data key is one that is read."""
        return key == run.frames or any(run.key_of(w) == key for c in self._channels for w in self.p.find.of(c))

    def _stream_datum(self, document: Mapping[str, Any]) -> Iterator[Event]:
        uid = text_id(document, "stream_resource")
        if uid in self._files.elsewhere:
            return
        stream = self._files.streams.get(uid)
        if stream is None:
            raise WireError("unknown_resource", f"rows of stream_resource {uid!r:.60}, which was not told: joined too late")
        found = self._run_of(document)
        if found is None:
            return
        run, descriptor = found
        if descriptor is not run.main or stream.key not in descriptor.data_keys:
            return
        start, stop = number_range(document, "indices", 0)
        first, last = number_range(document, "seq_nums", 1)
        if stop - start != last - first:
            raise WireError("malformed", f"{stop - start} rows for the {last - first} events of {stream.key!r:.60}")
        if stop == start:
            return
        yield from self._found(run)
        row = self._files.rows(uid, start, stop)
        if stream.key == run.frames:
            per = descriptor.per_event(stream.key)
            count = (last - first) * per
            if count > MAX_RANGE:
                raise WireError("oversized", f"{count} frames in one stream_datum of {stream.key!r:.60}")
            yield from self._counted(run, first, last)
            yield from self._tell(run)
            rows = [FileRows(stream.file, stream.dataset, row * per + k, self._files.folders) for k in range(count)]
            yield frames_of(run.uid, (first - 1) * per, rows, None)
        for channel, (key, scale, offset, average) in run.channels.items():
            if key == stream.key:
                size = run.per_event * average
                end = row + last - first
                lies = stream.file, stream.dataset, row * size, end * size
                content = Rows(*lies, average, scale, offset, self._files.folders)
                yield from self._piece(run, channel, Piece((first - 1) * run.per_event, (last - 1) * run.per_event, content))
        yield from self._samples(run)
