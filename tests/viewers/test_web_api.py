"""Who may do what by the web, and what hostile or mistaken requests get: an answer that says why, and nothing else."""

import asyncio
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import uvicorn
from matplotlib.image import imread
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from ptystream.publish.display import display, visible, with_ramps
from ptystream.publish.publisher import Publisher
from ptystream.publish.snapshot import Image, Snapshot
from ptystream.steering.desk import Desk, Refused, action, audit
from ptystream.steering.server import Server
from ptystream.viewers.web.access import Access
from ptystream.viewers.web.application import application
from ptystream.viewers.web.bridge import Bridge
from ptystream.viewers.web.feed import Feed
from ptystream.viewers.web.png import cyclic
from ptystream.viewers.web.serving import configured
from ptystream.viewers.web.tokens import kept

VIEW, OPERATE = "look-token", "steer-token"


def snapshot(number: int = 0, run: str = "scan 1/ä", side: int = 60) -> Snapshot:
    random = np.random.default_rng(number)
    wave = np.exp(1j * random.uniform(-3, 3, (2, side, side + 10))) * random.uniform(0.5, 1.5, (2, side, side + 10))
    seen = np.ones((side, side + 10), np.float32)
    seen[:10] = 0.01
    table = random.normal(size=(5, 3))
    return Snapshot(
        run=run,
        number=number + 40,
        created_ns=time.time_ns(),
        engine="DM",
        iteration=10 * number,
        state="running",
        probe={"p": Image(wave[:, :32, :32].astype("c8"), (1e-8, 2e-8), (0, 0))},
        object={"o/1": Image(wave.astype("c8"), (1e-8, 2e-8), (-3, 4), (0.3, 0.01, -0.02))},
        coverage={"o/1": seen},
        positions=np.ones((4, 2), "f4"),
        errors=table,
        misfit=table,
        ledger={"received": 4, "used": 4, "expected": 9},
        ledger_map=np.array([[0, 0, 2], [3, 4, 2], [1, 5, 1], [2, 2, 0]], "f4"),
        newest_frame_ns=time.time_ns(),
        started_ns=12345,
    )


class Asked:
    """A session as far as the web asks one."""

    def __init__(self) -> None:
        self.alpha = 1.0
        self.hold = threading.Event()
        self.hold.set()

    @action("viewer", at_once=True, changes=False)
    def ledger(self, run: str = "", scan: str = "", first: int = 0) -> dict[str, Any]:
        """As the session's."""
        if run == "gone":
            raise Refused("run", run, "there is no such run")
        data = np.arange(first, 5, dtype="<f8")
        arrays = [{"name": "index", "dtype": "<f8", "shape": [len(data)], "data": data.tobytes()}]
        arrays.append({"name": "state", "dtype": "|u1", "shape": [3], "data": b"\1\2\3"})
        return {"run": run, "scan": scan, "states": ["used"], "nothing": float("nan"), "arrays": arrays}

    @action("viewer", at_once=True, changes=False)
    def frame(self, frame: int, run: str = "", scan: str = "") -> dict[str, Any]:
        """As the session's; 7 answers nonsense."""
        pattern = {"name": "pattern", "dtype": "<f4", "shape": [2, 2], "data": b"\0" * (12 if frame == 7 else 16)}
        return {"frame": frame, "arrays": [pattern]}

    @action(at_once=True)
    def set(self, path: str, value: float) -> dict[str, Any]:
        """Change the only parameter."""
        before, self.alpha = self.alpha, value
        return {"path": path, "before": before, "value": value, "never": float("inf")}

    @action(at_once=True)
    def save(self) -> str:
        """Takes as long as somebody likes."""
        self.hold.wait(30.0)
        return "saved"


@dataclass
class Site:
    """A web server that runs, and how it is asked."""

    port: int
    publisher: Publisher
    session: Asked
    feed: Feed
    loop_died: list[str] = field(default_factory=list)

    def ask(self, path: str, token: str | None = None, body: Any = None, **headers: str) -> tuple[int, HTTPResponse, bytes]:
        line = HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            given["Authorization"] = f"Bearer {token}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            given = {"Content-Type": "application/json"} | given
        line.request("GET" if body is None else "POST", path, body, given)
        answer = line.getresponse()
        content = answer.read()
        line.close()
        return answer.status, answer, content

    def steer(self, token: str | None = OPERATE, action: Any = "set", **arguments: Any) -> tuple[int, Any]:
        status, _, content = self.ask("/api/steer", token, {"action": action, "arguments": arguments})
        return status, json.loads(content)

    def published(self, offered: Snapshot) -> None:
        """Offer it, and wait until the web server has it."""
        self.publisher.offer(offered)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = self.feed.get()
            if found is not None and found.picture.header["number"] == offered.number:
                return
            threading.Event().wait(0.01)
        raise TimeoutError


@contextmanager
def served(app: Any, port: int = 0) -> Iterator[uvicorn.Server]:
    """The application on a port of this machine."""
    server = uvicorn.Server(configured(app, port))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def port_of(server: uvicorn.Server) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


@contextmanager
def running(access: Access, *, steering: bool = True, timeout_s: float = 15.0) -> Iterator[Site]:
    session = Asked()
    asked = Server(Desk(session))
    publisher = Publisher()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptystream.viewers.web.bridge.TIMEOUT_S", timeout_s)
        bridge = Bridge.to(asked.endpoint) if steering else None
    feed = Feed(publisher.endpoint)
    with served(application(feed, access, bridge)) as server:
        yield Site(port_of(server), publisher, session, feed)
        session.hold.set()
    feed.close()
    if bridge is not None:
        bridge.close()
    asked.close()
    publisher.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Site]:
    """Beyond loopback: both roles by token."""
    with running(Access(VIEW, OPERATE, loopback=False)) as site:
        yield site


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    """On loopback: whoever is here may look."""
    with running(Access(None, OPERATE, loopback=True)) as site:
        yield site


def me(site: Site, token: str | None = None, **headers: str) -> Any:
    status, _, content = site.ask("/api/me", token, **headers)
    return json.loads(content).get("role") if status == 200 else status


def test_the_token_says_who_may_do_what(guarded: Site, here: Site) -> None:
    assert [me(guarded, token) for token in (VIEW, OPERATE, None, "wrong", "", VIEW[:-1])] == ["view", "operate", *[403] * 4]
    assert [me(here, token) for token in (OPERATE, None, "wrong", VIEW)] == ["operate", "view", 403, 403]
    for site, path in ((guarded, "/"), (guarded, "/api/export.png"), (guarded, "/api/ledger"), (guarded, "/api/export.h5")):
        assert site.ask(path)[0] == 403
    assert guarded.ask("/static/wire.js")[0] == 200
    assert json.loads(guarded.ask("/api/me", OPERATE)[2])["link"] == f"/?token={VIEW}"
    assert json.loads(here.ask("/api/me", OPERATE)[2]) == {"role": "operate", "steering": True, "link": "/"}


def test_new_tokens_differ_and_only_beyond_loopback_one_is_needed_to_look() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert Access.to(host).view is None
        assert Access.to(host).operate is None
    made = [Access.to(host, steering=True) for host in ("127.0.0.1", "10.0.0.1", "0.0.0.0", "beamline")]
    assert [access.view is None for access in made] == [True, False, False, False]
    tokens = [token for access in made for token in (access.view, access.operate) if token is not None]
    assert len(set(tokens)) == 7
    assert min(map(len, tokens)) >= 20
    assert len({access.cookie for access in made}) == 4


def test_the_page_puts_the_token_into_a_cookie_that_scripts_and_other_sites_do_not_get(guarded: Site, here: Site) -> None:
    status, answer, _ = guarded.ask(f"/?token={OPERATE}")
    assert status == 200
    set_cookie = answer.headers["set-cookie"]
    assert all(word in set_cookie for word in ("HttpOnly", "SameSite=strict", "Path=/"))
    cookie = set_cookie.partition(";")[0]
    assert me(guarded, Cookie=cookie) == "operate"
    assert me(guarded, VIEW, Cookie=cookie) == "view"  # the address says more than the cookie
    assert me(guarded, "wrong", Cookie=cookie) == 403
    assert guarded.ask("/?token=wrong")[0] == 403
    assert "set-cookie" not in guarded.ask("/?token=wrong")[1].headers
    assert "set-cookie" not in here.ask("/")[1].headers
    assert me(here, Cookie="ptystream_0=stale; other=1") == "view"


def test_every_answer_forbids_what_a_page_does_not_need(guarded: Site) -> None:
    for path, token in (("/", VIEW), ("/", None), ("/static/wire.js", None), ("/api/me", VIEW), ("/nowhere", VIEW)):
        headers = guarded.ask(path, token)[1].headers
        policy = dict(entry.strip().split(" ", 1) for entry in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", "[", "10.0.0.1"]
)
def test_under_a_foreign_name_a_server_without_a_token_answers_nothing(here: Site, guarded: Site, host: str) -> None:
    assert me(here, Host=host) == 403
    assert here.ask("/", Host=host)[0] == 403
    assert here.ask("/static/wire.js", Host=host)[0] == 403
    assert me(guarded, VIEW, Host="viewer.facility.example") == "view"  # its token guards it
    with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{here.port}/stream", additional_headers={"Host": host}):
        pass


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9999", "[::1]:80", "localhost:1"])
def test_through_a_tunnel_it_answers(here: Site, host: str) -> None:
    assert me(here, Host=host) == "view"


ELSEWHERE: list[Mapping[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://["},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
]


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_pages_of_other_sites_and_ports_get_nothing(here: Site, headers: Mapping[str, str]) -> None:
    assert me(here, OPERATE, **headers) == 403
    assert here.ask("/api/export.png", **headers)[0] == 403
    before = here.session.alpha
    said = {"action": "set", "arguments": {"path": "a", "value": before + 1}}
    assert here.ask("/api/steer", OPERATE, said, **headers)[0] == 403
    assert here.session.alpha == before
    asked = {name.replace("_", "-"): value for name, value in headers.items()}
    with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{here.port}/stream", additional_headers=asked):
        pass


def test_operators_steer_and_the_audit_says_that_it_came_by_the_web(guarded: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", audit.name):
        status, said = guarded.steer(path="alpha", value=0.25)
    assert (status, said["value"]["value"], said["value"]["never"]) == (200, 0.25, None)
    assert guarded.session.alpha == 0.25
    line = caplog.messages[-1]
    assert line.startswith("web 127.0.0.1, through ")
    assert "set(path='alpha', value=0.25): done" in line


def test_by_the_cookie_only_a_page_of_this_server_steers(guarded: Site) -> None:
    cookie = guarded.ask(f"/?token={OPERATE}")[1].headers["set-cookie"].partition(";")[0]
    said = {"action": "set", "arguments": {"path": "alpha", "value": 0.5}}
    assert guarded.ask("/api/steer", None, said, Cookie=cookie)[0] == 403
    own = f"http://127.0.0.1:{guarded.port}"
    assert guarded.ask("/api/steer", None, said, Cookie=cookie, Origin=own)[0] == 200
    assert guarded.session.alpha == 0.5


def test_viewers_do_not_steer(guarded: Site, here: Site) -> None:
    for site, token in ((guarded, VIEW), (guarded, None), (guarded, "wrong"), (here, None)):
        before = site.session.alpha
        status, said = site.steer(token, path="alpha", value=before + 1)
        assert status == 403
        assert "error" in said
        assert site.session.alpha == before


def test_a_refusal_of_the_session_is_told_with_its_remedy(guarded: Site) -> None:
    assert guarded.steer(action="fly")[0] == 409
    status, said = guarded.steer(path="alpha", value="x")
    assert status == 409
    assert said["fault"]["path"] == "set.value"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b"[1]", 400),
        (b'"set"', 400),
        (b'{"action": 7}', 400),
        (b'{"action": "set", "arguments": [1]}', 400),
        (b'{"action": "set", "arguments": {"value": 1' + b"0" * 400 + b"}}", 400),
        (b'{"action": "' + b"x" * 2000 + b'"}', 409),
        (b'{"action": "set", "arguments": {"path": "' + b"x" * (1 << 20) + b'"}}', 413),
    ],
)
def test_a_request_that_is_none_is_answered_and_changes_nothing(guarded: Site, body: bytes, status: int) -> None:
    before = guarded.session.alpha
    given, _, content = guarded.ask("/api/steer", OPERATE, body, Content_Type="application/json")
    assert given == status, content
    said = json.loads(content)
    assert "error" in said or "fault" in said
    assert guarded.session.alpha == before
    assert guarded.steer(path="alpha", value=before)[0] == 200


def test_only_json_steers(guarded: Site) -> None:
    body = b'{"action": "set", "arguments": {"path": "a", "value": 1.0}}'
    assert guarded.ask("/api/steer", OPERATE, body, Content_Type="text/plain")[0] == 415
    assert guarded.ask("/api/steer", OPERATE)[0] == 405


def unpacked(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    length = struct.unpack_from("<I", content)[0]
    header, at, arrays = json.loads(content[4 : 4 + length]), 4 + length, {}
    for entry in header["arrays"]:
        assert at % 8 == 0
        count = int(np.prod(entry["shape"]))
        arrays[entry["name"]] = np.frombuffer(content, entry["dtype"], count, at).reshape(entry["shape"])
        at += arrays[entry["name"]].nbytes
        at += -at % 8
    assert at == len(content)
    return header, arrays


def test_viewers_are_told_frames_and_the_ledger(guarded: Site) -> None:
    status, _, content = guarded.ask("/api/ledger?run=r&scan=s&first=2", VIEW)
    assert status == 200
    header, arrays = unpacked(content)
    assert (header["run"], header["scan"], header["nothing"]) == ("r", "s", None)
    assert arrays["index"].tolist() == [2, 3, 4]
    assert arrays["state"].tolist() == [1, 2, 3]
    header, arrays = unpacked(guarded.ask("/api/frame?frame=3", VIEW)[2])
    assert header["frame"] == 3
    assert arrays["pattern"].shape == (2, 2)
    status, _, content = guarded.ask("/api/ledger?run=gone", VIEW)
    assert status == 404
    assert "no such run" in json.loads(content)["error"]
    assert guarded.ask("/api/frame?frame=7", VIEW)[0] == 502
    for frame in ("", "-1", "x", "1.5", "9" * 30, "%C2%B2"):
        assert guarded.ask(f"/api/frame?frame={frame}", VIEW)[0] == 400


def test_looking_does_not_wait_for_steering_and_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.viewers.web.bridge.WAITING", 3)
    with running(Access(VIEW, OPERATE)) as site:
        site.session.hold.clear()
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(site.steer(action="save")[0])) for _ in range(5)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while answers.count(503) < 2 and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert me(site, VIEW) == "view"  # the event loop waits for nothing
        site.session.hold.set()
        for thread in threads:
            thread.join(30)
        assert sorted(answers) == [200, 200, 200, 503, 503]


def test_a_session_that_does_not_answer_is_told_in_time() -> None:
    nobody = socket.create_server(("127.0.0.1", 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptystream.viewers.web.bridge.TIMEOUT_S", 0.3)
        bridge = Bridge.to(f"tcp://127.0.0.1:{nobody.getsockname()[1]}")
    with pytest.raises(TimeoutError, match="no answer to 'save'"):
        asyncio.run(bridge.steer.ask("save", {}, "me"))
    bridge.close()
    nobody.close()
    with running(Access(VIEW, OPERATE), timeout_s=0.3) as site:
        site.session.hold.clear()
        status, said = site.steer(action="save")
        assert status == 504
        assert "no answer" in said["error"]


def test_without_a_steering_address_the_reason_is_told() -> None:
    with running(Access(None, OPERATE), steering=False) as site:
        assert json.loads(site.ask("/api/me")[2])["steering"] is False
        status, said = site.steer(action="save")
        assert status == 404
        assert "--steer" in said["error"]
        assert site.ask("/api/ledger")[0] == 404


# ---------------------------------------------------------------- exports


def test_a_picture_is_exported_as_the_page_draws_it(here: Site) -> None:
    offered = snapshot(3)
    here.published(offered)
    found = here.feed.get()
    assert found is not None
    shown = display(with_ramps(offered))
    opaque = np.tile(np.where(visible(shown.coverage["o/1"]), 255, 0), (1, 2))

    def exported(asked: str) -> Any:
        status, answer, content = here.ask(f"/api/export.png?{asked}")
        assert status == 200, content
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-disposition"].startswith("attachment")
        return np.rint(255 * imread(BytesIO(content))).astype(np.uint8)

    phase = exported("run=scan%201/%C3%A4&number=" + str(found.number))
    codes = np.concatenate(list(shown.object["o/1"].phase), axis=1)
    assert (phase[..., :3] == cyclic()[codes]).all()
    assert (phase[..., 3] == opaque).all()
    grey = exported("part=amplitude&name=o/1")
    assert (grey[..., 0] == np.concatenate(list(shown.object["o/1"].amplitude), axis=1)).all()
    assert exported("what=probe&part=amplitude").shape[:2] == (32, 64)


def test_numbers_are_exported_as_the_engine_held_them(here: Site) -> None:
    offered = snapshot(4)
    here.published(offered)
    found = here.feed.get()
    assert found is not None
    for asked in ("", f"?run=scan%201/%C3%A4&number={found.number}"):
        status, answer, content = here.ask(f"/api/export.h5{asked}")
        assert status == 200
        assert "ä" not in answer.headers["content-disposition"]
        with h5py.File(BytesIO(content)) as file:
            assert file.attrs["run"] == offered.run
            assert file.attrs["iteration"] == offered.iteration
            assert file.attrs["number"] == offered.number
            assert file.attrs["started_ns"] == 12345
            group = file["object/o_1"]
            data = group["data"]
            assert (data[:] == offered.object["o/1"].data).all()
            assert [dim.label or dim[0].name.rpartition("/")[2] for dim in data.dims] == ["mode", "y", "x"]
            assert list(group.attrs["axes"]) == ["mode", "y", "x"]
            assert group["y"][0] == pytest.approx(-3e-8)
            assert group["x"][1] - group["x"][0] == pytest.approx(2e-8)
            assert group["y"].attrs["units"] == "m"
            assert list(group.attrs["pixel_size_m"]) == [1e-8, 2e-8]
            assert (group["coverage"][:] == offered.coverage["o/1"]).all()
            assert (file["probe/p/data"][:] == offered.probe["p"].data).all()
            assert (file["misfit"][:] == offered.misfit).all()
            assert file["ledger"].attrs["used"] == 4


def test_what_is_not_kept_is_told_with_its_reason(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.viewers.web.exact.EXACT_BYTES", 1)
    here.published(snapshot(5))
    here.published(snapshot(6))
    found = here.feed.get()
    assert found is not None
    for asked, why in (
        ("run=never", "Nothing is kept of a run 'never'"),
        (f"number={found.number + 1}", "is not kept"),
        (f"number={found.number - 1}", "complex numbers are not"),
    ):
        status, _, content = here.ask(f"/api/export.h5?{asked}")
        assert status == 404
        assert why in json.loads(content)["error"]
    assert here.ask(f"/api/export.h5?number={found.number}")[0] == 200
    assert here.ask(f"/api/export.png?number={found.number - 1}")[0] == 200
    for asked in ("what=ghost", "part=all", "number=x", "number=-1"):
        assert here.ask(f"/api/export.png?{asked}")[0] == 400
    assert here.ask("/api/export.png?name=other")[0] == 404


# ---------------------------------------------------------------- the stream, and hostile peers


def pictures_of(browser: Any) -> Callable[[], tuple[dict[str, Any], bytes]]:
    def next_one() -> tuple[dict[str, Any], bytes]:
        while not isinstance(message := browser.recv(30), bytes):
            pass
        length = struct.unpack_from("<I", message)[0]
        header = json.loads(message[4 : 4 + length])
        return header, message[4 + length :]

    return next_one


def test_a_browser_is_told_what_changed_since_the_picture_that_it_has_and_gets_it_whole_when_it_asks(here: Site) -> None:
    with connect(f"ws://127.0.0.1:{here.port}/stream?coding=deflate-raw", max_size=None) as browser:
        follow = pictures_of(browser)
        here.published(snapshot(10))
        header, body = follow()
        while header["number"] != 50:
            browser.send('{"drawn": 0}')
            header, body = follow()
        assert header["wire"]["coding"] == "deflate-raw"
        assert len(zlib.decompress(body, -15)) == header["wire"]["bytes"]
        held = header["wire"]["serial"]
        here.published(snapshot(11))
        browser.send('{"drawn": 0}')
        header, _ = follow()
        assert header["wire"]["base"] == held
        browser.send('{"keyframe": true}')
        header, _ = follow()
        assert header["wire"]["base"] is None
        assert header["number"] == 51
        browser.send('{"drawn": 0}')
    with connect(f"ws://127.0.0.1:{here.port}/stream?coding=nonsense&rate=x", max_size=None) as browser:
        header, body = pictures_of(browser)()
        assert header["wire"]["base"] is None
        assert len(body) == header["wire"]["bytes"]


def test_a_base_that_is_no_longer_kept_makes_the_next_picture_whole(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    here.published(snapshot(19, run="before"))
    monkeypatch.setattr("ptystream.viewers.web.history.HISTORY_BYTES", 1)
    with connect(f"ws://127.0.0.1:{here.port}/stream", max_size=None) as browser:
        follow = pictures_of(browser)
        follow()
        here.published(snapshot(20, run="other"))
        here.published(snapshot(21, run="other"))
        browser.send('{"drawn": 0}')
        header, _ = follow()
        assert header["number"] == 61
        assert header["wire"]["base"] is None


def test_a_browser_gets_as_many_pictures_a_second_as_it_wants() -> None:
    with running(Access.to("localhost")) as site, connect(f"ws://127.0.0.1:{site.port}/stream?rate=2", max_size=None) as browser:
        came: list[tuple[float, int]] = []
        over = threading.Event()

        def offer() -> None:
            number = 0
            while not over.wait(0.03):
                site.publisher.offer(snapshot(number, side=20))
                number += 1

        offering = threading.Thread(target=offer)
        offering.start()
        follow = pictures_of(browser)
        for _ in range(6):
            came.append((time.monotonic(), follow()[0]["number"]))
            browser.send('{"drawn": 0}')
        spent = came[-1][0] - came[1][0]
        assert spent > 3 * 0.5  # four periods, of which the first may have begun already
        browser.send('{"rate": null}')
        began = time.monotonic()
        for _ in range(6):
            follow()
            browser.send('{"drawn": 0}')
        assert time.monotonic() - began < spent
        over.set()
        offering.join()


def to_the_end(browser: Any) -> None:
    while True:
        browser.recv(30)


GARBAGE = ["[", "[1]", "7", '{"show": {}, "run": []}', '{"rate": "x"}', '{"rate": -1}', '{"rate": 1e999}', '{"rate": true}']
GARBAGE += ['{"show": 1e999}', "[" * 3000, '{"drawn": ' + "9" * 3500 + "}", '{"show": ' + "9" * 60 + "}"]


def test_garbage_on_a_websocket_ends_nothing_but_itself(here: Site) -> None:
    address = f"ws://127.0.0.1:{here.port}/stream"
    here.published(snapshot(29, run="before"))
    with connect(address, max_size=None) as browser:
        follow = pictures_of(browser)
        follow()
        for word in (*GARBAGE, b"\0\1\2", "x" * 60_000):
            browser.send(word)
        here.published(snapshot(30, run="after"))
        browser.send('{"drawn": 0, "show": null, "rate": null}')
        assert follow()[0]["number"] == 70
        browser.send("x" * 70_000)
        with pytest.raises(ConnectionClosed):
            to_the_end(browser)
    with connect(address, max_size=None) as browser:
        pictures_of(browser)()


def test_a_browser_that_hangs_is_given_up_and_nothing_of_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.viewers.web.stream.LONGEST_DRAW_S", 0.5)
    monkeypatch.setattr("ptystream.viewers.web.limits.LAST_S", 0.2)
    publisher = Publisher()
    feed = Feed(publisher.endpoint)
    with served(application(feed)) as server, socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as hung:
        asked = f"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:{port_of(server)}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        hung.sendall(f"{asked}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
        assert hung.recv(12) == b"HTTP/1.1 101"
        assert len(server.server_state.connections) == 1
        Site(0, publisher, Asked(), feed).published(snapshot(1, side=1500))  # more than the kernel's buffers hold
        deadline = time.monotonic() + 30
        while server.server_state.connections and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        assert not server.server_state.connections
        assert not feed._listeners
    feed.close()
    publisher.close()


def test_browsers_and_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.viewers.web.application.MAX_BROWSERS", 3)
    monkeypatch.setattr("ptystream.viewers.web.limits.MAX_CONNECTIONS", 20)
    monkeypatch.setattr("ptystream.viewers.web.limits.FIRST_REQUEST_S", 1.0)
    with running(Access.to("localhost")) as site, ExitStack() as stack:
        address = f"ws://127.0.0.1:{site.port}/stream"
        browsers = [stack.enter_context(connect(address)) for _ in range(3)]
        with pytest.raises(InvalidStatus), connect(address):
            pass
        browsers.pop().close()
        deadline = time.monotonic() + 30
        while len(browsers) < 3 and time.monotonic() < deadline:
            try:
                browsers.append(stack.enter_context(connect(address)))
            except InvalidStatus:
                threading.Event().wait(0.02)
        assert len(browsers) == 3
        idle = [socket.create_connection(("127.0.0.1", site.port), timeout=30) for _ in range(1000)]
        ends = [line.recv(1) for line in idle]  # at once beyond the limit, the others once they have been idle for long
        assert ends == [b""] * 1000
        for line in idle:
            line.close()
        site.published(snapshot(1, side=20))
        assert pictures_of(browsers[0])()[0]["number"] == 41
        assert me(site) == "view"


# ---------------------------------------------------------------- the command


def test_tokens_are_kept_in_a_file_of_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    made = kept(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert kept(str(path)) == made
    access = Access.to("10.0.0.1", steering=True, tokens=made)
    assert (access.view, access.operate) == (made["view"], made["operate"])
    path.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        kept(str(path))
    path.chmod(0o600)
    wrong = ["", "[1]", ": [", "{view: aaaaaaaaaaaaaaaaaaa}", "view: 12345678901234567\noperate: x"]
    for text in wrong:
        path.write_text(text)
        with pytest.raises(ValueError, match="tokens: "):
            kept(str(path))
    path.write_text("view: aaaaaaaaaaaaaaaaaaa\noperate: aaaaaaaaaaaaaaaaaaa")
    with pytest.raises(ValueError, match="are the same"):
        kept(str(path))
    with pytest.raises(ValueError, match="No such file"):
        kept(str(tmp_path / "no" / "web.yaml"))


@pytest.mark.parametrize("steering", [False, True])
def test_view_prints_an_address_to_look_and_with_a_steering_address_one_to_operate(tmp_path: Path, steering: bool) -> None:
    publisher, asked = Publisher(), Server(Desk(Asked()))
    command = [sys.executable, "-P", "-m", "ptystream", "view", publisher.endpoint, "--tokens", str(tmp_path / "web.yaml")]
    more = ["--steer", asked.endpoint] if steering else []
    with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as viewer:
        assert viewer.stdout is not None
        address = viewer.stdout.readline().strip()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", address)
        assert found is not None, address
        if steering:
            line = viewer.stdout.readline().strip()
            token = kept(str(tmp_path / "web.yaml"))["operate"]
            assert line == f"to operate: {address}?token={token}"
        site = Site(int(found[1]), publisher, Asked(), None)  # type: ignore[arg-type]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                assert me(site) == "view"
                break
            except ConnectionError:
                threading.Event().wait(0.05)
        if steering:
            assert me(site, token) == "operate"
            assert site.steer(token, path="alpha", value=2.0)[0] == 200
        viewer.terminate()
        viewer.communicate(timeout=60)
    publisher.close()
    asked.close()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--steer", "nonsense"], "looks like tcp://"),
        (["--steer", "tcp://127.0.0.1:1", "--terminal"], "only looks"),
        (["--tokens", "/no/such/folder/file"], "No such file"),
        (["--host", "203.0.113.1"], "annot assign"),
    ],
)
def test_view_says_what_is_wrong_with_its_options(more: list[str], why: str) -> None:
    command = [sys.executable, "-P", "-m", "ptystream", "view", "tcp://127.0.0.1:1", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert why in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- in a real browser

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LIMIT_MS = 120_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_page_works_under_its_policy_and_keeps_the_token_out_of_sight(guarded: Site, chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    guarded.published(snapshot(80))
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=FLAGS, timeout=LIMIT_MS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(LIMIT_MS)
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        address = f"http://127.0.0.1:{guarded.port}/"

        def until(expression: str, wanted: Any) -> None:
            deadline = time.monotonic() + 60
            while (found := page.evaluate(expression)) != wanted and time.monotonic() < deadline:
                page.wait_for_timeout(20)  # a function that waits in the page would be evaluated, which the policy forbids
            assert found == wanted, said

        page.goto(f"{address}?token={VIEW}#here")
        until("window.ptystream?.header?.number", 120)
        for number in (81, 82):
            guarded.published(snapshot(number))
            until("window.ptystream.header.number", 40 + number)
        assert page.evaluate("window.ptystream.header.wire.base") is not None
        assert page.evaluate("location.href") == f"{address}#here"
        assert page.evaluate("document.cookie") == ""
        who = "(async () => (await (await fetch('api/me')).json()).role)()"
        assert page.evaluate(who) == "view"
        assert page.evaluate("(async () => (await fetch('api/export.png')).status)()") == 200
        steer = """(async () => (await fetch('api/steer', {method: 'POST', headers: {'Content-Type': 'application/json'},
            body: JSON.stringify({action: 'set', arguments: {path: 'alpha', value: 0.125}})})).status)()"""
        assert said == []
        assert page.evaluate(steer) == 403
        said.clear()  # the browser tells of answers that are errors
        page.goto(f"{address}?token={OPERATE}")
        until("window.ptystream?.header?.number", 122)
        assert page.evaluate(who) == "operate"
        assert page.evaluate(steer) == 200
        assert guarded.session.alpha == 0.125
        page.goto(address)  # the cookie is enough
        until("window.ptystream?.header?.number", 122)
        assert said == []
        browser.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_page_mends_its_connection_and_begins_with_a_whole_picture(chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    publisher = Publisher()
    feed = Feed(publisher.endpoint)
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=FLAGS, timeout=LIMIT_MS)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, bypass_csp=True)
        page.set_default_timeout(LIMIT_MS)
        port, bases = 0, []
        for number in (1, 2):
            with served(application(feed), port) as server:
                port = port_of(server)
                if number == 1:
                    page.goto(f"http://127.0.0.1:{port}/")
                    page.wait_for_function("document.getElementById('state').textContent === 'waiting for a picture'")
                publisher.offer(snapshot(10 * number))
                page.wait_for_function("n => window.ptystream?.header?.number === n", arg=40 + 10 * number)
                bases.append(page.evaluate("window.ptystream.header.wire.base"))
                publisher.offer(snapshot(10 * number + 1))
                page.wait_for_function("n => window.ptystream?.header?.number === n", arg=41 + 10 * number)
                bases.append(page.evaluate("window.ptystream.header.wire.base"))
            page.wait_for_function("document.body.innerText.includes('connection lost')")
            page.keyboard.press("o")  # what is drawn again says so still
            assert page.inner_text("#state") == "connection lost"
        assert bases[0] is None
        assert bases[1] is not None
        assert bases[3] is not None
        browser.close()
    feed.close()
    publisher.close()
