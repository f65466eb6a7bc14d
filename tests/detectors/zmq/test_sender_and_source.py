"""Senders and transports over real sockets on loopback."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import zmq
import zmq.auth

from ptystream.codecs import decode
from ptystream.detectors.zmq import Sender, SenderError, ZmqScan
from ptystream.events import Frames, Rejected, Samples, ScanEnded, ScanStarted
from ptystream.recording import Recorder, Recording

RNG = np.random.default_rng(3)
FRAMES = RNG.poisson(4.0, (30, 12, 9)).astype("u2")


def source(address, **parameters):
    p = ZmqScan.Parameters(address=address, **parameters)
    decoder = ZmqScan.decoder(p, "s/data")
    return ZmqScan.transport(p, "s/data", decoder), decoder


def take(transport, decoder, until, *, acknowledge=True, limit_s=60.0):
    """Events until `until(events)`."""
    events, deadline = [], time.monotonic() + limit_s
    while not until(events):
        assert time.monotonic() < deadline, events[-3:]
        message = transport.receive(0.1)
        if message is not None:
            events += decoder.feed(message)
            if acknowledge:
                transport.acknowledge(message)
    return events


def settle(transport, sender):
    """Until the sender knows that everything was taken."""
    deadline = time.monotonic() + 60
    while sender.unacknowledged:
        assert time.monotonic() < deadline
        message = transport.receive(0.05)
        if message is not None:
            transport.acknowledge(message)


def ended(events):
    return any(isinstance(event, ScanEnded) for event in events)


def pixels_of(events):
    return {int(i): decode(p).copy() for e in events if isinstance(e, Frames) for i, p in zip(e.indices, e.payloads, strict=True)}


def send_scan(sender, scan="s", frames=FRAMES, batch=4, **options):
    sender.start(scan, num_frames=len(frames))
    for first in range(0, len(frames), batch):
        sender.frames(first, frames[first : first + batch], **options)
        sender.samples(first, y=np.arange(3.0), x=np.arange(3.0))
    sender.end(len(frames))


@pytest.mark.parametrize("sender_binds", [True, False])
@pytest.mark.parametrize("link", ["acknowledged", "push"])
@pytest.mark.parametrize("codec", ["raw", "bslz4"])
def test_what_is_sent_arrives_whoever_listens(link, sender_binds, codec, tmp_path):
    address = f"ipc://{tmp_path}/s"
    with Sender(address, link, bind=sender_binds) as sender:
        transport, decoder = source(address, link=link, bind=not sender_binds)
        transport.open()
        thread = threading.Thread(target=send_scan, args=(sender,), kwargs={"codec": codec})
        thread.start()
        events = take(transport, decoder, ended)
        thread.join()
        closer = threading.Thread(target=sender.flush)
        closer.start()
        while closer.is_alive():
            transport.receive(0.02)
        transport.close()
        transport.close()
    assert isinstance(events[0], ScanStarted)
    assert not any(isinstance(event, Rejected) for event in events)
    got = pixels_of(events)
    assert list(got) == list(range(30))
    np.testing.assert_array_equal([got[k] for k in range(30)], FRAMES)
    assert sum(isinstance(event, Samples) for event in events) == 8


def test_what_a_slow_subscriber_lost_is_counted_to_the_message():
    pixels, count = np.zeros((300, 300), "u2"), 400
    with Sender(link="pub", high_water_mark=1) as sender:
        transport, decoder = source(sender.address, link="pub", high_water_mark=1)
        transport.open()
        sender.start("s")
        events, tried = [], 0
        while not events:  # until the subscription has reached the publisher
            sender.samples(0, y=[0.0], x=[0.0])
            tried += 1
            events = [e for m in [transport.receive(0.02)] if m is not None for e in decoder.feed(m)]
        for number in range(count):
            sender.frames(number, pixels)
        last = 0
        while last < 300_000 and not ended(events):
            sender.end(count)  # until it is not this one that is lost
            last += 1
            message = transport.receive(0.01)
            events += [] if message is None else decoder.feed(message)
        transport.close()
    frames = sum(isinstance(e, Frames) for e in events)
    gaps = [e.count for e in events if isinstance(e, Rejected)]
    assert {e.reason for e in events if isinstance(e, Rejected)} == {"gap"}
    assert frames < count
    assert count - frames <= sum(gaps) <= count - frames + last + tried


@pytest.mark.parametrize("copy", [True, False])
def test_only_a_copy_may_change_after_it_was_given(copy):
    with Sender() as sender:
        sender.start("s")
        image = FRAMES[0].copy()
        sender.frames(0, image, copy=copy)
        image[...] = 9
        sender.end()
        transport, decoder = source(sender.address)
        transport.open()
        events = take(transport, decoder, ended)
        settle(transport, sender)
        transport.close()
    assert np.array_equal(pixels_of(events)[0], FRAMES[0]) is copy


def test_back_pressure_makes_the_sender_wait_and_then_say_so():
    with Sender(buffer_bytes=10 * FRAMES[0].nbytes, timeout_s=0.2) as sender:
        sender.start("s")

        def fill():
            for number in range(20):
                sender.frames(number, FRAMES[0])

        with pytest.raises(SenderError, match="is the receiver running"):
            fill()
        sent = sender.unacknowledged
        assert 5 < sent < 11
        sender._link.acknowledged(sender._link.stream, sender._link.next)  # so that closing has nothing to wait for
        sender.frames(sent, FRAMES[0])
        sender._link.acknowledged(sender._link.stream, sender._link.next)


def test_flush_says_how_many_messages_nobody_acknowledged():
    sender = Sender(timeout_s=0.3)
    sender.start("s")
    sender.frames(0, FRAMES[:2])
    for given, told in ((0.1, "0.1 s"), (None, "0.3 s")):
        with pytest.raises(SenderError, match=f"2 of 2 messages are not acknowledged after {told}"):
            sender.flush(given)
    sender.close()
    with pytest.raises(SenderError, match="closed"):
        sender.end()


def test_a_message_taken_and_not_recorded_is_kept_by_the_sender_across_a_reconnection():
    with Sender() as sender:
        sender.start("s")
        for number in range(5):
            sender.frames(number, FRAMES[number])
        transport, decoder = source(sender.address)
        transport.open()
        take(transport, decoder, lambda events: len(pixels_of(events)) == 5, acknowledge=False)
        transport._hello()  # as after a lost connection
        transport.receive(0.2)
        transport.close()
        assert sender.unacknowledged == 6
        again, decoder = source(sender.address)
        again.open()
        events = take(again, decoder, lambda events: len(pixels_of(events)) == 5)
        settle(again, sender)
        again.close()
        assert isinstance(events[0], ScanStarted)


def test_acknowledgements_flow_while_messages_come_without_a_pause():
    with Sender(buffer_bytes=100_000, timeout_s=60.0) as sender:
        transport, decoder = source(sender.address)
        transport.open()
        over = threading.Event()

        def pour():
            sender.start("s")
            for number in range(2000):
                sender.frames(number, FRAMES[0])
            over.set()

        thread = threading.Thread(target=pour)
        thread.start()
        events = take(transport, decoder, lambda events: len(events) >= 2001)
        thread.join(60)
        assert over.is_set()
        settle(transport, sender)
        transport.close()
        assert [int(e.indices[0]) for e in events[1:]] == list(range(2000))


def test_a_restarted_sender_is_found_again_and_its_stream_is_new(tmp_path):
    address = f"ipc://{tmp_path}/s"
    transport, decoder = source(address)
    events = []
    for scan in ("one", "two"):
        with Sender(address) as sender:
            if scan == "one":
                transport.open()
            send_scan(sender, scan)
            events += take(transport, decoder, ended)
            settle(transport, sender)
    transport.close()
    assert [e.epoch for e in events if isinstance(e, ScanEnded)] == ["one", "two"]
    assert sum(isinstance(e, Frames) for e in events) == 16


RECORDER = """
import sys
from ptystream.detectors.zmq import ZmqScan
from ptystream.recording import Recorder, Recording
from pathlib import Path
address, path = sys.argv[1:]
p = ZmqScan.Parameters(address=address)
decoder = ZmqScan.decoder(p, "s/data")
recorder = Recorder(path)
for message in Recording(path):
    decoder.feed(message)
transport = ZmqScan.transport(p, "s/data", decoder)
transport.open()
print("open", flush=True)
while True:
    message = transport.receive(0.5)
    if message is not None:
        recorder.write(message, transport.acknowledge)
        decoder.feed(message)
"""


@pytest.mark.slow
def test_after_kill_9_at_any_moment_the_recording_is_whole(tmp_path):
    path, count = tmp_path / "r.ptyrec", 1500
    with Sender(buffer_bytes=200_000, timeout_s=200.0) as sender:

        def pour():
            sender.start("s")
            for number in range(count):
                sender.frames(number, FRAMES[number % 30])
            sender.end(count)

        thread = threading.Thread(target=pour)
        thread.start()
        for round_number in range(3):
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", RECORDER, sender.address, str(path)], stdout=subprocess.PIPE, text=True
            )
            assert child.stdout.readline() == "open\n"
            if round_number < 2:
                size = path.stat().st_size
                deadline = time.monotonic() + 60
                while path.stat().st_size < size + 60_000 * (round_number + 1) and time.monotonic() < deadline:
                    time.sleep(0.001)
                child.kill()
            else:
                thread.join(200)
                sender.flush(60)
                child.kill()
            child.wait(60)
            child.stdout.close()
    decoder = ZmqScan.decoder(None, "s/data")
    events = [event for message in Recording(path) for event in decoder.feed(message)]
    assert not [e for e in events if isinstance(e, Rejected) and e.reason != "duplicate_message"]
    got = [int(i) for e in events if isinstance(e, Frames) for i in e.indices]
    assert got == list(range(count))
    assert isinstance(events[-1], ScanEnded)


def test_a_recorder_takes_what_a_live_transport_gives_and_the_sender_is_told(tmp_path):
    with Sender() as sender:
        transport, decoder = source(sender.address)
        recorder = Recorder(tmp_path / "r.ptyrec")
        transport.open()
        send_scan(sender)
        while sender.unacknowledged:
            message = transport.receive(0.05)
            if message is not None:
                recorder.write(message, transport.acknowledge)
        transport.close()
        recorder.close()
    events = [event for message in Recording(tmp_path / "r.ptyrec") for event in decoder.feed(message)]
    np.testing.assert_array_equal([pixels_of(events)[k] for k in range(30)], FRAMES)


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:*", "tcp://*:*", "tcp://[::]:*", "tcp://notlocalhost:5000"])
def test_listening_beyond_loopback_is_refused_with_a_remedy(address):
    transport, _ = source(address, bind=True, link="push")
    with pytest.raises(OSError, match=r"beyond loopback.*insecure: true"):
        transport.open()
    with pytest.raises(ValueError, match=r"beyond loopback.*insecure: true"):
        Sender(address)


def test_an_address_that_cannot_be_had_is_named():
    with Sender(link="push") as sender:
        transport, _ = source(sender.address, bind=True, link="push")
        with pytest.raises(OSError, match=sender.address):
            transport.open()


@pytest.fixture
def certificates(tmp_path):
    (tmp_path / "friends").mkdir()
    for name in ("server", "friend", "stranger"):
        zmq.auth.create_certificates(tmp_path, name)
    (tmp_path / "friends" / "friend.key").write_text((tmp_path / "friend.key").read_text())
    return lambda name: str(tmp_path / name)


@pytest.mark.parametrize(("who", "gets_in"), [("friend", True), ("stranger", False)])
def test_with_keys_only_those_who_are_known_are_let_in(certificates, who, gets_in):
    with Sender(keys=certificates("server.key_secret"), peer_keys=certificates("friends"), timeout_s=1.0) as sender:
        transport, decoder = source(sender.address, keys=certificates(f"{who}.key_secret"), peer_keys=certificates("server.key"))
        transport.open()
        send_scan(sender)
        if gets_in:
            assert ended(take(transport, decoder, ended))
            settle(transport, sender)
        else:
            assert transport.receive(0.7) is None
            sender._link.acknowledged(sender._link.stream, sender._link.next)  # so that closing has nothing to wait for
        transport.close()


def test_keys_that_do_not_fit_are_named(certificates, tmp_path):
    for options, text in (
        ({"keys": certificates("server.key")}, "no secret key"),
        ({"keys": str(tmp_path / "nowhere")}, "nowhere"),
        ({"peer_keys": certificates("friends")}, "keys of its own"),
        ({"keys": certificates("server.key_secret"), "peer_keys": certificates("server.key")}, "not a folder"),
    ):
        with pytest.raises(ValueError, match=text):
            Sender(**options)
    transport, _ = source("tcp://127.0.0.1:9", keys=certificates("server.key_secret"))
    with pytest.raises(OSError, match="peer_keys too"):
        transport.open()


def test_what_the_wire_cannot_carry_is_refused_before_it_is_sent():
    with Sender(link="pub") as sender:
        with pytest.raises(SenderError, match=r"call start\(scan\) first"):
            sender.frames(0, FRAMES)
        sender.start("s")
        with pytest.raises(TypeError, match=r"float64.*astype"):
            sender.frames(0, FRAMES.astype(float))
        with pytest.raises(ValueError, match="must be"):
            sender.frames(0, FRAMES[None])
        with pytest.raises(ValueError, match="2 values for 3 frames"):
            sender.frames([1, 2], FRAMES[:3])
        with pytest.raises(ValueError, match="timestamps_ns: 1 values for 3 frames"):
            sender.frames(0, FRAMES[:3], timestamps_ns=[5])
        with pytest.raises(ValueError, match="all of one length"):
            sender.samples(0, y=[1.0], x=[1.0, 2.0])
        with pytest.raises(ValueError, match="all of one length"):
            sender.samples(0)
        with pytest.raises(ValueError, match="must be a text"):
            sender.start("")
