"""Keys: made by the command, demanded beyond loopback, and a refusal that says so."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from ptystream.cli.keys import keys
from ptystream.detectors.zmq.sender import Sender
from ptystream.security import check_listening, handshake


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Certificates of a detector, a session and a stranger; the session is let in."""
    assert keys(["detector", "session", "stranger"], str(tmp_path / "keys")) == 0
    (tmp_path / "allowed").mkdir()
    shutil.copy(tmp_path / "keys" / "session.key", tmp_path / "allowed")
    return tmp_path


@contextmanager
def detector(folder: Path | None, **more: str) -> Iterator[str]:
    """A sender that listens, with keys where there is a folder."""
    own = {} if folder is None else {"keys": f"{folder}/keys/detector.key_secret", "peer_keys": f"{folder}/allowed"}
    with Sender("tcp://127.0.0.1:*", **(own | more)) as sender:
        yield sender.address


def test_secrets_are_for_their_owner_alone_and_nothing_is_replaced(tmp_path: Path) -> None:
    keys(["a"], str(tmp_path / "keys"))
    secret = tmp_path / "keys" / "a.key_secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    before = secret.read_bytes()
    with pytest.raises(RuntimeError, match="exists"):
        keys(["b", "a"], str(tmp_path / "keys"))
    assert secret.read_bytes() == before
    assert not (tmp_path / "keys" / "b.key").exists()


@pytest.mark.parametrize("name", ["../a", "a/b", ".hidden", "", "a b"])
def test_a_name_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a name has"):
        keys([name], str(tmp_path / "keys"))


def test_the_right_key_is_let_in(made: Path) -> None:
    with detector(made) as address:
        secret, public = f"{made}/keys/session.key_secret", f"{made}/keys/detector.key"
        assert handshake(address, zmq.DEALER, secret, public) is None


@pytest.mark.parametrize(("own", "peer"), [("stranger", "detector"), ("session", "stranger"), (None, "detector"), (None, None)])
def test_a_wrong_key_is_called_so_and_soon(own: str | None, peer: str | None, made: Path) -> None:
    with detector(made) as address:
        secret = None if own is None else f"{made}/keys/{own}.key_secret"
        public = None if peer is None else f"{made}/keys/{peer}.key"
        assert "wrong key" in (handshake(address, zmq.DEALER, secret, public) or "")


def test_keys_for_an_end_that_has_none_are_called_wrong(made: Path) -> None:
    with detector(None) as address:
        assert "wrong key" in (handshake(address, zmq.DEALER, None, f"{made}/keys/detector.key") or "")
        assert handshake(address, zmq.DEALER, None, None) is None


def test_what_is_no_zeromq_is_not_called_a_wrong_key() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert handshake(f"tcp://127.0.0.1:{port}", zmq.DEALER, None, None, 0.5) == "answers, but does not speak ZeroMQ"
    assert handshake(f"tcp://127.0.0.1:{port}", zmq.DEALER, None, None, 0.5) == "nobody listens"


@pytest.mark.parametrize("address", ["tcp://*:5", "tcp://0.0.0.0:5", "tcp://[::]:5", "tcp://10.0.0.1:5", "tcp://eth0:5"])
def test_who_listens_beyond_loopback_needs_keys_or_says_so(address: str) -> None:
    with pytest.raises(ValueError, match="insecure"):
        check_listening(address, None, False)
    check_listening(address, "a.key_secret", False)
    check_listening(address, None, True)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:5", "tcp://localhost:5", "tcp://[::1]:5", "ipc://a", "inproc://a"])
def test_loopback_needs_none(address: str) -> None:
    check_listening(address, None, False)
