"""The sockets: what each parameter of the source does, and the simulator as a command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from ptystream.codecs import decode
from ptystream.detectors.dectris import DectrisScan
from ptystream.detectors.dectris.protocol import TICK
from ptystream.detectors.dectris.simulator import Camera, Detector, main, series_of
from ptystream.detectors.dectris.source import DectrisTransport
from ptystream.events import Event, Frames, Rejected, ScanEnded, ScanStarted
from ptystream.transport import Message

FRAMES = np.random.default_rng(3).poisson(4.0, (8, 11, 17)).astype("u4")


def opened(address: Any, **given: Any) -> tuple[DectrisTransport, Any]:
    p = DectrisScan.Parameters(address=address, **given)
    decoder = DectrisScan.decoder(p, "s/data")
    transport = DectrisScan.transport(p, "s/data", decoder)
    transport.open()
    return transport, decoder


def take(transport: DectrisTransport, decoder: Any, until: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + 60
    while not until(events):
        assert time.monotonic() < deadline, events[-3:]
        message = transport.receive(0.05)
        if message is not None:
            events += decoder.feed(message)
    return events


def ended(events: list[Event]) -> bool:
    return any(isinstance(event, ScanEnded) for event in events)


def frames_of(events: list[Event]) -> dict[int, Any]:
    return {int(e.indices[0]): decode(e.payloads[0]) for e in events if isinstance(e, Frames)}  # type: ignore[arg-type]


def test_the_parameters_reach_the_decoder() -> None:
    messages = list(series_of(Camera(channels=("a", "b"), shown="b"), 1, FRAMES))

    def told(**given: Any) -> list[Event]:
        decoder = DectrisScan.decoder(DectrisScan.Parameters(**given), "s/data")
        return [e for k, parts in enumerate(messages) for e in decoder.feed(Message(k, "s/data", tuple(parts)))]

    assert frames_of(told())[2].sum() == 0
    np.testing.assert_array_equal(frames_of(told(channel="b"))[2], FRAMES[2])
    (start,) = (e for e in told() if isinstance(e, ScanStarted))
    assert start.metadata["series_unique_id"] == "sim-1"
    messages = messages[4:]
    assert len(frames_of(told())) == 5
    drained = told(running="drain")
    assert [type(e) for e in drained] == [Rejected] * 6


def test_a_tick_ends_what_was_waited_for() -> None:
    with Detector() as detector:
        transport, decoder = opened(detector.address, connections=2, late_s=1.0)
        messages = list(series_of(Camera(), 1, FRAMES))
        detector.send([*messages[:4], *messages[5:]])
        began = time.monotonic()
        events = take(transport, decoder, ended)
        assert time.monotonic() - began >= 1.0
        assert len(frames_of(events)) == 7
        assert transport.receive(0.0) is None  # it is asked for once
        transport.close()
        transport.close()


def test_a_quiet_transport_waits_as_long_as_it_is_told() -> None:
    with Detector() as detector:
        transport, _ = opened(detector.address)
        began = time.monotonic()
        assert transport.receive(0.2) is None
        assert time.monotonic() - began >= 0.2
        transport.close()


def test_messages_of_all_connections_are_taken_in_turn() -> None:
    with Detector() as one, Detector() as two:
        transport, _ = opened([one.address, two.address])
        one.send([[b"1"]] * 20)
        two.send([[b"2"]] * 20)
        deadline, came = time.monotonic() + 60, []
        while len(came) < 40:
            assert time.monotonic() < deadline
            message = transport.receive(0.05)
            if message is not None:
                came.append(bytes(message.parts[0]))
        transport.close()
    assert sorted(came) == [b"1"] * 20 + [b"2"] * 20


def test_a_larger_message_than_allowed_is_not_taken() -> None:
    with Detector(linger_s=0.0) as detector:
        transport, _ = opened(detector.address, max_message_bytes=1024)
        detector.send([[bytes(4096)]])
        assert transport.receive(0.3) is None
        transport.close()


def test_as_many_messages_are_queued_as_was_said() -> None:
    def queued(mark: int) -> int:
        context: Any = zmq.Context.instance()
        socket = context.socket(zmq.PUSH)
        socket.linger, socket.sndhwm, socket.sndtimeo = 0, 1, 2000
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        transport, _ = opened(f"tcp://127.0.0.1:{port}", high_water_mark=mark)
        sent = 0
        try:
            while sent < 200:
                socket.send(bytes(4 << 20), copy=False)
                sent += 1
        except zmq.Again:
            pass
        transport.close()
        socket.close()
        return sent

    assert queued(2) < queued(40) < 200


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:99999", "ipc:///no/such/folder/socket"])
def test_an_address_that_cannot_be_is_named(address: str) -> None:
    try:
        p = DectrisScan.Parameters(address=address)
    except ValueError as error:
        assert address in str(error)  # noqa: PT017
        return
    decoder = DectrisScan.decoder(p, "s/data")
    transport = DectrisScan.transport(p, "s/data", decoder)
    try:
        transport.open()  # ipc: the peer may come later
    except OSError as error:
        assert address in str(error)  # noqa: PT017
    transport.close()


# ------------------------------------------------------------------ the simulator


def test_a_detector_listens_on_loopback_unless_it_is_told_otherwise() -> None:
    with pytest.raises(ValueError, match="loopback"):
        Detector("tcp://0.0.0.0:*")
    Detector("tcp://0.0.0.0:*", insecure=True).close()
    with Detector() as first, pytest.raises(OSError, match="address"):
        Detector(first.address)


def test_messages_are_paced_and_can_be_stopped() -> None:
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    with Detector(linger_s=0.0) as detector:
        transport, _ = opened(detector.address)
        assert detector.send([[b"x"]] * 10, rate_hz=2.0, wait=wait) == 3
        transport.close()
        assert detector.send([[b"x"]] * 2000, wait=lambda seconds: True) < 2000  # nobody takes them
    assert [round(2 * seconds) for seconds in waits] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["v1", "stream2"])
def test_the_command_plays_a_file(tmp_path: Path, format: str) -> None:
    np.save(tmp_path / "f.npy", FRAMES)
    command = [sys.executable, "-m", "ptystream.detectors.dectris.simulator", "--address", "tcp://127.0.0.1:*"]
    command += ["--file", str(tmp_path / "f.npy"), "--format", format, "--rate", "1000", "--series", "5", "--repeat", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["shape"] == [11, 17]
        transport, decoder = opened(said["address"])
        events = take(transport, decoder, lambda events: sum(isinstance(e, ScanEnded) for e in events) == 2)
        transport.close()
        assert process.wait(60) == 0
    assert [e.epoch for e in events if isinstance(e, ScanStarted)] == ["5", "6"]
    np.testing.assert_array_equal(frames_of(events)[7], FRAMES[7])


def test_the_command_refuses_what_is_no_stack(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", FRAMES[0])
    with pytest.raises(SystemExit, match="frame, y, x"):
        main(["--file", str(tmp_path / "f.npy")])


def test_nobody_sends_a_tick_by_mistake() -> None:
    decoder = DectrisScan.decoder(DectrisScan.Parameters(), "s/data")
    assert decoder.feed(Message(0, "s/data", (TICK,))) == []
    (said,) = decoder.feed(Message(0, "s/data", (TICK + b"!",)))
    assert isinstance(said, Rejected)
