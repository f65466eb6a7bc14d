"""The recording: every byte comes back, a tear anywhere costs only what is torn, and a failing disk is noticed."""

import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptystream.recording import Recorder, Recording, RecordingError
from ptystream.transport import Message

PARTS = st.lists(st.binary(max_size=200), max_size=5)


def plain(message):
    return (message.arrival_ns, message.channel, tuple(bytes(part) for part in message.parts))


def write(path, messages, **options):
    recorder = Recorder(path, {"version": "x"}, **options)
    for message in messages:
        recorder.write(message)
    recorder.close()


def small(count=6, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Message(int(rng.integers(2**62)), f"scan/{'ab'[k % 2]}", tuple(rng.bytes(int(n)) for n in rng.integers(0, 12, k % 4)))
        for k in range(count)
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.sampled_from(["s/data", "s/ö", ""]), PARTS), max_size=30), st.booleans())
def test_every_message_comes_back_as_it_was(tmp_path_factory, messages, fsync):
    path = tmp_path_factory.mktemp("r") / "r.ptyrec"
    messages = [Message(arrival, channel, tuple(parts)) for arrival, channel, parts in messages]
    write(path, messages[::2], fsync=fsync)
    write(path, messages[1::2], fsync=fsync)
    recording = Recording(path)
    assert [plain(m) for m in recording] == [plain(m) for m in messages[::2] + messages[1::2]]
    assert recording.metadata == {"version": "x"}
    assert (recording.torn, recording.damaged, recording.finished) == (0, 0, False)


def test_a_file_torn_at_any_byte_keeps_all_whole_messages_and_can_be_continued(tmp_path):
    messages, path = small(), tmp_path / "whole"
    write(path, messages)
    whole = path.read_bytes()
    torn = tmp_path / "torn"
    previous = 0
    for length in range(len(whole)):
        torn.write_bytes(whole[:length])
        if length >= 22:
            recording = Recording(torn)
            kept = [plain(m) for m in recording]
            assert kept == [plain(m) for m in messages[: len(kept)]]
            assert len(kept) >= previous
            assert recording.end + recording.torn == length
            previous = len(kept)
        recorder = Recorder(torn, {"version": "again"})
        recorder.write(messages[-1])
        recorder.close()
        again = Recording(torn)
        assert [plain(m) for m in again] == [plain(m) for m in messages[:previous]] + [plain(messages[-1])]
        assert (again.torn, again.damaged) == (0, 0)
        assert again.metadata["version"] in ("x", "again")
    assert previous >= len(messages) - 1


def test_every_single_damaged_byte_is_noticed_and_costs_one_message_at_most(tmp_path):
    messages, path = small(), tmp_path / "r"
    write(path, messages)
    whole, expected = bytearray(path.read_bytes()), [plain(m) for m in messages]
    for at in range(22, len(whole)):
        damaged = whole.copy()
        damaged[at] ^= 0x41
        path.write_bytes(damaged)
        recording = Recording(path)
        # A damaged name of a channel leaves the messages, under a name of its number.
        kept = [(m.arrival_ns, tuple(bytes(p) for p in m.parts)) for m in recording]
        wanted = [(arrival, parts) for arrival, _, parts in expected]
        assert recording.damaged + bool(recording.torn) == 1, at
        assert len(kept) >= len(wanted) - 1
        assert kept == [entry for entry in wanted if entry in kept]


def test_callers_are_told_after_the_bytes_are_in_the_file_and_in_order(tmp_path):
    path, told = tmp_path / "r", []
    recorder = Recorder(path)
    messages = [Message(k, "c", (bytes([k]) * 1000,)) for k in range(50)]

    def recorded(message):
        told.append(message.arrival_ns)
        assert bytes([message.arrival_ns]) * 1000 in path.read_bytes()

    for message in messages:
        recorder.write(message, recorded)
    recorder.flush()
    assert told == list(range(50))
    recorder.close()


def test_a_full_queue_makes_the_writer_wait(tmp_path):
    recorder = Recorder(tmp_path / "r", queue_bytes=10_000)
    gate, entered = threading.Event(), threading.Event()

    def hold(message):
        entered.set()
        assert gate.wait(60)

    recorder.write(Message(0, "c", (bytes(6000),)), hold)
    assert entered.wait(60)
    second = threading.Thread(target=recorder.write, args=(Message(1, "c", (bytes(6000),)),))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.set()
    second.join(60)
    assert not second.is_alive()
    recorder.close()
    assert [m.arrival_ns for m in Recording(tmp_path / "r")] == [0, 1]


def test_a_failing_callback_or_disk_stops_the_writers_with_the_reason(tmp_path):
    recorder = Recorder(tmp_path / "r")

    def fail(message):
        raise RuntimeError("the callback broke")

    recorder.write(Message(0, "c", (b"x",)), fail)
    with pytest.raises(RecordingError, match=r"r: the callback broke"):
        recorder.flush(10)
    with pytest.raises(RecordingError, match="the callback broke"):
        recorder.write(Message(1, "c", (b"x",)))
    recorder.close()
    with pytest.raises(RecordingError, match="broke"):
        recorder.write(Message(1, "c", (b"x",)))


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from ptystream.recording import Recorder, RecordingError
from ptystream.transport import Message
recorder, kept = Recorder(sys.argv[1]), []
try:
    for k in range(1000):
        recorder.write(Message(k, "c", (bytes(5000),)), lambda message: kept.append(message.arrival_ns))
        recorder.flush()
except RecordingError as error:
    print(len(kept), error)
"""


def test_a_full_disk_is_told_to_the_writer_and_nothing_unwritten_was_called_kept(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", FULL_DISK, str(tmp_path / "r")], capture_output=True, text=True, timeout=240
    )
    count, _, text = done.stdout.partition(" ")
    assert "File too large" in text
    assert sum(1 for _ in Recording(tmp_path / "r")) == int(count) > 10


def test_the_index_finds_every_frame_again(tmp_path):
    path = tmp_path / "r"
    rng = np.random.default_rng(0)
    where = {}
    for session in range(2):
        recorder = Recorder(path)
        for k in range(40):
            message = Message(k, "s/data", (rng.bytes(int(rng.integers(0, 400))), bytes([session, k])))
            other = Message(k, "s/positions", (b"p",))
            indices = rng.integers(0, 2**40, int(rng.integers(1, 5)))
            recorder.write(message)
            recorder.write(other)
            recorder.index(message, f"epoch {session}", indices)
            where |= {(f"epoch {session}", int(i)): bytes([session, k]) for i in indices}
        recorder.close()
    recording = Recording(path)
    assert sum(1 for _ in recording) == 160
    found = recording.frames()
    got = {
        (epoch, i): bytes(recording.at(offset).parts[1])
        for (channel, epoch), table in found.items()
        for i, offset in table.items()
        if channel == "s/data"
    }
    assert got == where
    assert {channel for channel, _ in found} == {"s/data"}
    with pytest.raises(RecordingError, match="no whole message begins at byte 23"):
        recording.at(23)


def test_only_what_was_just_written_can_be_indexed(tmp_path):
    recorder = Recorder(tmp_path / "r")
    recorder.index(Message(0, "c", ()), "e", np.arange(1))
    with pytest.raises(RecordingError, match="only the last message written"):
        _until_failed(recorder)
    recorder.close()


def _until_failed(recorder):
    deadline = time.monotonic() + 60
    while recorder.failure is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    recorder.write(Message(0, "c", ()))


def test_a_finished_session_is_told_from_an_interrupted_one(tmp_path):
    path = tmp_path / "r"
    for finished in (False, True):
        recorder = Recorder(path)
        recorder.write(Message(0, "c", (b"x",)))
        recorder.close(finished=finished)
        recording = Recording(path)
        assert sum(1 for _ in recording) == 1 + finished
        assert recording.finished is finished


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["a"] = 1
    before = path.read_bytes()
    for reader in (Recording, Recorder):
        with pytest.raises(RecordingError, match=r"x\.h5: not a recording of version 1"):
            reader(path)
    assert path.read_bytes() == before
    with pytest.raises(RecordingError, match="No such file"):
        Recording(tmp_path / "nowhere")


KILLED = """
import sys
from ptystream.recording import Recorder
from ptystream.transport import Message
recorder = Recorder(sys.argv[1])
number = 0
while True:
    recorder.write(Message(number, "c", (number.to_bytes(8, "little") * 500,)), lambda m: print(m.arrival_ns, flush=True))
    number += 1
"""


def test_what_was_called_kept_is_there_after_kill_9(tmp_path):
    for attempt in range(3):
        path = tmp_path / f"r{attempt}"
        child = subprocess.Popen([sys.executable, "-P", "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(200 + 77 * attempt):
            last = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split("\n")
        child.stdout.close()
        child.wait(60)
        last = int(rest[-2]) if len(rest) > 1 else last
        got = [(m.arrival_ns, bytes(m.parts[0])) for m in Recording(path)]
        assert len(got) > last
        assert got == [(k, k.to_bytes(8, "little") * 500) for k in range(len(got))]


def test_reading_gives_views_on_the_file_and_no_copies(tmp_path):
    path, size = tmp_path / "r", 40_000_000
    write(path, [Message(0, "c", (bytes(size),))])
    tracemalloc.start()
    (message,) = Recording(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message.parts[0].nbytes == size
    assert peak < size / 10


def test_a_flush_waits_for_what_was_queued_then_and_not_for_what_comes_meanwhile(tmp_path):
    with_more = threading.Event()
    recorder = Recorder(tmp_path / "a.ptyrec", queue_bytes=4 << 20)

    def more():
        while not with_more.is_set():
            recorder.write(Message(0, "s/data", (bytes(100_000),)))

    threads = [threading.Thread(target=more) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            kept = []
            recorder.write(Message(1, "s/data", (b"mine",)), kept.append)
            recorder.flush(60)
            assert len(kept) == 1
    finally:
        with_more.set()
        for thread in threads:
            thread.join()
        recorder.close()
