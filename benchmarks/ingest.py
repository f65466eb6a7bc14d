"""How much of ZeroMQ's own speed is left when messages become frames in slabs: 256² uint16 over tcp on loopback.

The measure is a bare PUSH/PULL that copies each message into a ring. Beside it: our transport and decoder, each frame copied
into its row of a slab, fed by the same bare sender (`push`) or by `Sender` over the acknowledged link, with and without a copy
of what it is given. Senders are processes of their own. Medians of rounds that take turns, so that a noisy machine meets all
alike.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zmq

from ptystream.codecs import decode
from ptystream.detectors.zmq import Sender, ZmqScan
from ptystream.detectors.zmq.protocol import header
from ptystream.events import Frames
from ptystream.recording import Recorder

SIDE, RING = 256, 512
CASES = (("push", False), ("acknowledged", False), ("acknowledged, copied", False), ("push", True), ("acknowledged", True))
REACH = {"push": {8: 0.8, 1: 0.6}, "acknowledged": {8: 0.6, 1: 0.6}}


def _bare_sender(pipe, batch, messages):
    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.linger = 10_000
    pipe.send(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}")
    pixels = np.random.default_rng(0).poisson(3.0, (batch, SIDE, SIDE)).astype("<u2")
    head = header("frames", scan="s", first=0, n=batch, shape=[SIDE, SIDE], dtype="<u2", codec="raw", ts=False, pos=False, q=0)
    pipe.recv()
    for _ in range(messages):
        socket.send_multipart([head, pixels], copy=False)
    pipe.recv()


def _our_sender(pipe, batch, messages, link, copy):
    pixels = np.random.default_rng(0).poisson(3.0, (batch, SIDE, SIDE)).astype("<u2")
    with Sender(link=link, buffer_bytes=256 << 20) as sender:
        pipe.send(sender.address)
        pipe.recv()
        sender.start("s")
        for number in range(messages):
            sender.frames(number * batch, pixels, copy=copy)
        sender.end(messages * batch)
        sender.flush()
        pipe.recv()


def _start(body, *arguments):
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=body, args=(theirs, *arguments))
    process.start()
    return process, ours, ours.recv()


def bare(batch: int, messages: int, ring: np.ndarray) -> float:
    """Frames per second of PUSH/PULL into a ring."""
    process, pipe, address = _start(_bare_sender, batch, messages)
    with zmq.Context.instance().socket(zmq.PULL) as socket:
        socket.connect(address)
        flat, size, at = ring.reshape(-1), ring[0].size * batch, 0
        pipe.send("go")
        socket.poll(10_000)
        began = time.perf_counter()
        for _ in range(messages):
            parts = socket.recv_multipart(copy=False)
            if at + size > flat.size:
                at = 0
            flat[at : at + size] = np.frombuffer(parts[1].buffer, "<u2")
            at += size
        took = time.perf_counter() - began
    pipe.send("done")
    process.join()
    return messages * batch / took


def ours(link: str, batch: int, messages: int, slab: np.ndarray, record: bool) -> float:
    """Frames per second through transport and decoder into a slab; with `record` through a recorder as well."""
    if link == "push":
        process, pipe, address = _start(_bare_sender, batch, messages)
    else:
        link, _, copies = link.partition(", ")
        process, pipe, address = _start(_our_sender, batch, messages, link, bool(copies))
    parameters = ZmqScan.Parameters(address=address, link=link)
    decoder = ZmqScan.decoder(parameters, "s/data")
    transport = ZmqScan.transport(parameters, "s/data", decoder)
    transport.open()
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "r") if record else None
        pipe.send("go")
        received, began = 0, 0.0
        while received < messages * batch:
            message = transport.receive(1.0)
            if message is None:
                continue
            began = began or time.perf_counter()
            if recorder is not None:
                recorder.write(message, transport.acknowledge)
            for event in decoder.feed(message):
                if isinstance(event, Frames):
                    for index, payload in zip((event.indices % RING).tolist(), event.payloads, strict=True):
                        decode(payload, slab[index])
                    received += len(event.payloads)
            if recorder is None:
                transport.acknowledge(message)
        if recorder is not None:
            recorder.flush()
        took = time.perf_counter() - began
        pipe.send("done")
        while process.is_alive():  # the sender waits until its last message is acknowledged
            message = transport.receive(0.05)
            if message is not None:
                recorder.write(message, transport.acknowledge) if recorder is not None else transport.acknowledge(message)
        if recorder is not None:
            recorder.close()
    transport.close()
    return messages * batch / took


def main(rounds: int = 5, frames: int = 16_000) -> int:
    """Print the table; 1 where a reach is missed."""
    ring = np.ones((RING, SIDE, SIDE), "<u2")
    missed = 0
    print(f"frames/s of {SIDE}² uint16, medians of {rounds} rounds of {frames} frames; share of bare PUSH/PULL into a ring")
    for batch in (8, 1):
        messages = frames // batch if batch > 1 else frames // 2
        figures: dict[object, list[float]] = {"bare": [], **{case: [] for case in CASES}}
        for _ in range(rounds):
            figures["bare"].append(bare(batch, messages, ring))
            for case in CASES:
                figures[case].append(ours(case[0], batch, messages, ring, case[1]))
        base = statistics.median(figures["bare"])
        print(f"{batch} a message: bare {base:8.0f}")
        for link, record in CASES:
            share = statistics.median(a / b for a, b in zip(figures[link, record], figures["bare"], strict=True))
            reach = None if record else REACH.get(link, {}).get(batch)
            missed += reach is not None and share < reach
            told = "reported" if reach is None else f"reach {reach:.0%}"
            name = link + (", recorded" if record else "")
            rate = statistics.median(figures[link, record])
            print(f"  {name:24}{rate:8.0f}  {share:5.0%}  ({told})", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
