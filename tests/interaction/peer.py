"""A client of ptypy's interaction wire, written from the description of the wire alone: nothing of the package is used."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import zmq


class Peer:
    """One that says CONNECT; `ask` is REQ and REP, `published` what comes under a ticket."""

    def __init__(self, port: int, name: str = "peer") -> None:
        self.server = port
        self.context = zmq.Context()
        self.requests = self.context.socket(zmq.REQ)
        self.requests.linger = 0
        self.requests.connect(f"tcp://127.0.0.1:{port}")
        self.stream: Any = None
        self.id, self.ticket, self.got = None, 0, {}
        reply = self.ask("CONNECT", {"name": name})
        self.status, self.id = reply["status"], reply["ID"]
        if self.id is not None:
            self.port = reply["port"]
            self.stream = self.context.socket(zmq.SUB)
            self.stream.linger = 0
            self.stream.connect(f"tcp://127.0.0.1:{self.port}")
            self.stream.setsockopt(zmq.SUBSCRIBE, b"")

    def ask(self, command: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
        send(self.requests, {"ID": self.id, "cmd": command, "args": arguments} | more)
        assert self.requests.poll(20_000), f"no reply to {command}"
        return receive(self.requests)

    def get_now(self, text: str) -> Any:
        reply = self.ask("GETNOW", {"str": text})
        assert reply["status"] == "ok", reply["status"]
        return reply["out"]

    def request(self, command: str, text: str, **more: Any) -> int:
        """Queue a GET, SET or DO; returns its ticket."""
        self.ticket += 1
        reply = self.ask(command, {"ticket": self.ticket, "str": text} | more)
        assert reply == {"status": "ok"}
        return self.ticket

    def wait(self, *tickets: int, timeout_ms: int = 20_000) -> list[dict[str, Any]]:
        while not all(ticket in self.got for ticket in tickets):
            assert self.stream.poll(timeout_ms), f"tickets {tickets}: {set(tickets) - set(self.got)} did not come"
            message = receive(self.stream)
            self.got[message["ticket"]] = message
        return [self.got.pop(ticket) for ticket in tickets]

    def get(self, text: str) -> Any:
        (message,) = self.wait(self.request("GET", text))
        assert message["status"] == "ok", message["status"]
        return message["out"]

    def close(self) -> None:
        self.context.destroy(linger=0)


def send(socket: Any, message: Any) -> None:
    """Arrays are sent behind the message, in which their place is held."""
    arrays: list[np.ndarray] = []

    def place(array: Any) -> str:
        arrays.append(np.ascontiguousarray(array))
        return f"NPYARRAY[{len(arrays) - 1:03d}]"

    plain = json.loads(json.dumps(message, default=place))
    if not arrays:
        socket.send_json({"hasarray": False, "message": plain})
        return
    told = [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays]
    socket.send_json({"hasarray": True, "message": plain, "arraylist": told}, flags=zmq.SNDMORE)
    for k, array in enumerate(arrays):
        socket.send(array.tobytes(), flags=zmq.SNDMORE if k + 1 < len(arrays) else 0)


def receive(socket: Any) -> Any:
    header = json.loads(socket.recv())
    assert set(header) == ({"hasarray", "message", "arraylist"} if header["hasarray"] else {"hasarray", "message"})
    arrays = [
        np.frombuffer(socket.recv(), told["dtype"]).reshape(told["shape"])
        for told in (header["arraylist"] if header["hasarray"] else [])
    ]
    assert not socket.getsockopt(zmq.RCVMORE)

    def filled(value: Any) -> Any:
        if isinstance(value, str) and (found := re.findall(r"NPYARRAY\[([0-9]{3})\]", value)):
            return arrays[int(found[0])]
        if isinstance(value, dict):
            return {key: filled(inside) for key, inside in value.items()}
        return [filled(inside) for inside in value] if isinstance(value, list) else value

    return filled(header["message"]) if arrays else header["message"]
