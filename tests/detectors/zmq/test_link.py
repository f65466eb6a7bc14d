"""The acknowledged link as a game against chance: connections and receivers die at any point, nothing is lost or doubled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptystream.detectors.zmq.link import NO_STREAM, LinkReceiver, LinkSender, control, envelope, opened, read_control

STREAM = b"streamAA"


class Line:
    """A sender, a connection and a receiver with its recording, moved one event at a time."""

    def __init__(self, capacity=10**9):
        self.sender = LinkSender(STREAM, capacity)
        self.offered = 0
        self.recorded: list[int] = []
        """Survives everything: numbers inside the messages, in the order of the recording."""
        self.connect(restart=True)

    def connect(self, restart):
        self.wire, self.words = [], []
        if restart:
            self.receiver = LinkReceiver()
            self.needs = (NO_STREAM, 0)
            for number in self.recorded:  # what a restarted session does with its recording
                self.receiver.accept(envelope(STREAM, number))
                self.needs = (STREAM, self.receiver.next)
            self.queue, self.taken = [], []
        self.greeted = False

    def offer(self):
        if self.sender.fits(1):
            self.sender.add([str(self.offered).encode()], 1)
            self.offered += 1

    def send(self):
        if self.greeted and (parts := self.sender.take()) is not None:
            self.wire.append(parts)

    def greet(self):
        self.sender.hello(*self.needs)
        self.greeted = True

    def receive(self):
        if self.wire:
            parts = self.wire.pop(0)
            self.queue.append(opened(parts[0])[1])
            missing = self.receiver.accept(parts[0])
            assert missing <= 0, "a message that the sender still had was skipped"
            if missing == 0:
                self.taken.append(int(parts[1]))

    def record(self):
        if self.queue:
            number = self.queue.pop(0)
            self.recorded.append(number)
            if self.needs[0] != STREAM or number + 1 > self.needs[1]:
                self.needs = (STREAM, number + 1)
            self.words.append(self.needs)

    def acknowledge(self):
        if self.words and self.greeted:
            self.sender.acknowledged(*self.words.pop(0))

    def drop(self):
        self.connect(restart=False)

    def crash(self):
        self.connect(restart=True)


EVENTS = ["offer", "send", "greet", "receive", "record", "acknowledge"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(EVENTS * 4 + ["drop", "crash"]), max_size=250), st.integers(1, 12))
def test_whatever_dies_whenever_every_message_is_recorded_in_order(events, capacity):
    line = Line(capacity)
    for event in events:
        getattr(line, event)()
        assert line.sender.held_bytes == line.sender.next - line.sender.first <= capacity
        assert set(range(line.sender.first)) <= set(line.recorded), "forgotten before it was recorded"
    line.drop()
    line.greet()
    for _ in range(len(line.queue) + line.offered + 1):
        for event in ("send", "receive", "record", "acknowledge"):
            getattr(line, event)()
    first_time = list(dict.fromkeys(line.recorded))
    assert first_time == list(range(line.offered))
    assert line.taken == sorted(set(line.taken))
    assert line.sender.held_bytes == 0


@given(st.binary(max_size=40))
def test_what_is_no_control_word_is_none(raw):
    word = read_control(raw)
    assert word is None or control(*word) == raw or len(raw) == 24


def test_control_words_come_back():
    for kind in (b"HELO", b"ACKN"):
        assert read_control(control(kind, STREAM, 2**63)) == (kind, STREAM, 2**63)
    assert read_control(control(b"KILL", STREAM, 0)) is None


@pytest.mark.parametrize("number", [0, 3, 2**64 - 1])
def test_an_acknowledgement_of_what_was_never_sent_forgets_no_more_than_there_is(number):
    sender = LinkSender(STREAM, 100)
    for _ in range(3):
        sender.add([b"x"], 1)
    sender.acknowledged(STREAM, number)
    assert (sender.first, sender.next) == (min(number, 3), 3)
    sender.acknowledged(b"streamBB", 3)
    assert sender.first == min(number, 3)


def test_a_new_stream_starts_wherever_it_starts():
    receiver = LinkReceiver()
    rng = np.random.default_rng(0)
    for stream in (b"streamAA", b"streamBB"):
        start = int(rng.integers(1, 100))
        assert [receiver.accept(envelope(stream, start + k)) for k in (0, 1, 1, 5)] == [0, 0, -1, 3]
