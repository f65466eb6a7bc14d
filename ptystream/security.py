"""Who may listen where, and CURVE keys for sockets that leave the machine."""

from __future__ import annotations

import contextlib
import ipaddress
import time
from pathlib import Path
from typing import Any

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message


def is_loopback(address: str) -> bool:
    """Whether a ZeroMQ address can only be reached from this machine."""
    scheme, _, rest = address.partition("://")
    if scheme in ("ipc", "inproc"):
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_listening(address: str, keys: str | None, insecure: bool) -> None:
    """Raises `ValueError` with a remedy where a socket would listen beyond loopback without keys."""
    if keys is None and not insecure and not is_loopback(address):
        raise ValueError(
            f"address {address!r} would listen beyond loopback without encryption: use tcp://127.0.0.1:…, give CURVE keys, "
            "or allow it with insecure: true"
        )


def secure(
    context: zmq.Context[Any],
    socket: zmq.Socket[Any],
    listens: bool,
    keys: str | None,
    peer_keys: str | None,
    *,
    known: bool = False,
) -> ThreadAuthenticator | None:
    """Put CURVE on a socket that is not yet bound or connected; nothing is done where neither is given.

    `keys`: own certificate file with the secret key. `peer_keys`: when connecting the other end's public certificate file;
    when listening a folder of public certificates, the only ones that are let in: the authenticator returned serves the whole
    `context` and is to be stopped with it. `known`: who listens is told with each message whose key it came with
    ('User-Id'), also where everybody is let in. Raises `ValueError` with the file and a remedy.
    """
    if keys is None and peer_keys is None:
        return None
    if listens:
        if keys is None:
            raise ValueError(f"peer_keys {peer_keys!r}: who listens needs keys of its own: give keys, a certificate file")
        _own(socket, keys)
        socket.curve_server = True
        if peer_keys is None and not known:
            return None
        if peer_keys is not None and not Path(peer_keys).is_dir():
            raise ValueError(f"peer_keys {peer_keys!r}: not a folder; who listens needs a folder of public certificates")
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve(domain="*", location=zmq.auth.CURVE_ALLOW_ANY if peer_keys is None else str(peer_keys))
        return authenticator
    if peer_keys is None:
        raise ValueError(f"keys {keys!r}: who connects needs peer_keys too: the public certificate file of the other end")
    if keys is not None:
        _own(socket, keys)
    else:
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.curve_serverkey = _certificate(peer_keys, "peer_keys")[0]
    return None


def stop(authenticator: ThreadAuthenticator | None) -> None:
    """Stop an authenticator; its context may have ended already."""
    if authenticator is not None:
        with contextlib.suppress(zmq.ZMQError):
            authenticator.stop()


REFUSED = {
    zmq.Event.HANDSHAKE_FAILED_AUTH: "wrong key: the other end does not let ours in; give it our public file",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "wrong key: one end encrypts and the other does not; give `peer_keys`, or remove it",
}
"""What the security handshake of ZeroMQ failed with, and what to do."""


def handshake(address: str, kind: int, keys: str | None, peer_keys: str | None, timeout_s: float = 2.0) -> str | None:
    """Connect a socket of this kind as `secure` would and leave again: None where the other end lets it in, or why not.

    `kind` must be the counterpart of the other end's, and one that takes no messages away by connecting: DEALER or SUB.
    """
    context = zmq.Context()
    try:
        socket = context.socket(kind)
        try:
            secure(context, socket, False, keys, peer_keys)
        except ValueError as error:
            return str(error)
        monitor = socket.get_monitor_socket()
        socket.connect(address)
        deadline, connected = time.monotonic() + timeout_s, False
        while (left := deadline - time.monotonic()) > 0 and monitor.poll(max(1, int(left * 1000))):
            event = zmq.Event(recv_monitor_message(monitor)["event"])
            connected |= event == zmq.Event.CONNECTED
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                return None
            if event in REFUSED:
                return REFUSED[event]
            if event == zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
                return "wrong key: peer_keys is not the public file of the other end, or only one end encrypts"
        return "answers, but does not speak ZeroMQ" if connected else "nobody listens"
    except zmq.ZMQError as error:
        return str(error.strerror)
    finally:
        context.destroy(linger=0)


def _own(socket: zmq.Socket[Any], keys: str) -> None:
    public, secret = _certificate(keys, "keys")
    if secret is None:
        raise ValueError(f"keys {keys!r}: holds no secret key; give the file that ends in .key_secret")
    socket.curve_publickey, socket.curve_secretkey = public, secret


def _certificate(path: str, name: str) -> tuple[bytes, bytes | None]:
    try:
        return zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} {path!r}: {error}; make certificates with `ptystream keys`") from error
