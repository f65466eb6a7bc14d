"""What a browser is told of a picture makes that picture: against a plain re-implementation, and in a real Chromium."""

import asyncio
import base64
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import ptystream.viewers.web
from ptystream.viewers.web.picture import Picture
from ptystream.viewers.web.sharing import Shared
from ptystream.viewers.web.tiles import encode

Arrays = dict[str, NDArray[Any]]


def unpacked(message: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(message[:4], "little")
    assert (4 + length) % 8 == 0
    header = json.loads(message[4 : 4 + length])
    body = message[4 + length :]
    if header["wire"]["coding"] == "deflate-raw":
        body = zlib.decompress(body, -15)
    assert len(body) == header["wire"]["bytes"]
    return header, body


def decoded(message: bytes, held: Mapping[int, Arrays]) -> Arrays:
    """What docs/reference/viewer.md says of a message, pixel by pixel."""
    header, body = unpacked(message)
    wire, at = header["wire"], 0
    found: Arrays = {}

    def take(size: int) -> bytes:
        nonlocal at
        part = body[at : at + size]
        assert len(part) == size
        at += size
        return part

    for entry, count in zip(header["arrays"], wire["tiles"], strict=True):
        shape, dtype = entry["shape"], np.dtype(entry["dtype"])
        size = math.prod(shape) * dtype.itemsize
        if count is None:
            found[entry["name"]] = np.frombuffer(take(size), dtype).reshape(shape)
            take(-at % 8)
            continue
        before = held[wire["base"]][entry["name"]]
        indices = np.frombuffer(take(4 * count), "<u4")
        take(-at % 8)
        if entry["dtype"] == "|u1":
            out = before.copy().reshape(-1, *shape[-2:])
            tile, (height, width) = wire["tile"], shape[-2:]
            down, across = math.ceil(height / tile), math.ceil(width / tile)
            for index in map(int, indices):
                for y in range(height):
                    for x in range(width):
                        layer = index // (down * across)
                        if (layer * down + y // tile) * across + x // tile == index:
                            out[layer, y, x] = (int(out[layer, y, x]) + take(1)[0]) % 256
            found[entry["name"]] = out.reshape(shape)
        else:
            table = np.zeros(shape, dtype)
            table[: len(before)] = before
            for index in map(int, indices):
                for row in range(index * wire["rows"], min((index + 1) * wire["rows"], shape[0])):
                    table[row] = np.frombuffer(take(shape[1] * dtype.itemsize), dtype)
            found[entry["name"]] = table
        take(-at % 8)
    assert at == len(body)
    return found


def picture(
    random: np.random.Generator, side: tuple[int, int] = (70, 130), layers: int = 1, rows: int = 3, run: str = "a", **more: Any
) -> Picture:
    return remade(
        {
            "probe/p/phase": random.integers(0, 256, (layers, 9, 9), np.uint8),
            "object/o/amplitude": random.integers(0, 256, (1, *side), np.uint8),
            "coverage/o": random.integers(0, 256, side, np.uint8),
            "errors": random.normal(size=(rows, 3)),
        },
        run,
        **more,
    )


def remade(arrays: Arrays, run: str = "a", offset: tuple[int, int] = (0, 0)) -> Picture:
    listed = [{"name": name, "dtype": a.dtype.str, "shape": list(a.shape)} for name, a in arrays.items()]
    places = {"probe": {"p": {"offset": [0, 0]}}, "object": {"o": {"offset": list(offset)}}}
    return Picture(run, {"run": run, **places, "arrays": listed}, arrays)


def same(left: Mapping[str, NDArray[Any]], right: Mapping[str, NDArray[Any]]) -> bool:
    return list(left) == list(right) and all(np.array_equal(left[k], right[k], equal_nan=True) for k in left)


@given(
    st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 600), st.integers(0, 600), st.sampled_from(["none", "deflate-raw"])
)
@settings(max_examples=25, deadline=None)
def test_tiles_put_onto_the_base_make_the_picture(seed: int, changes: int, before: int, more: int, coding: Any) -> None:
    random = np.random.default_rng(seed)
    base = picture(random, rows=before)
    arrays = {name: array.copy() for name, array in base.arrays.items()}
    for name in random.choice(["probe/p/phase", "object/o/amplitude", "coverage/o"], changes):
        at = tuple(random.integers(0, n) for n in arrays[name].shape)
        arrays[name][at] = random.integers(0, 256)
    arrays["errors"] = np.concatenate([arrays["errors"], np.full((more, 3), np.nan)])
    new = remade(arrays)
    message = encode(new, base, coding)
    assert same(decoded(message, {base.serial: dict(base.arrays)}), new.arrays)
    wire = unpacked(message)[0]["wire"]
    assert None not in wire["tiles"]
    assert wire["tiles"][0] <= min(changes, 1)
    assert same(decoded(encode(new, None, coding), {}), new.arrays)


def test_what_did_not_change_is_not_sent_and_a_table_is_told_from_where_it_grew() -> None:
    base = picture(np.random.default_rng(0), (256, 256), rows=1000)
    arrays = dict(base.arrays)
    arrays["coverage/o"] = base.arrays["coverage/o"].copy()
    arrays["coverage/o"][200, 70] ^= 1
    arrays["errors"] = np.concatenate([base.arrays["errors"], np.ones((5, 3))])
    header, body = unpacked(encode(remade(arrays), base))
    assert header["wire"]["tiles"] == [0, 0, 1, 1]
    assert header["wire"]["base"] == base.serial
    assert int.from_bytes(body[:4], "little") == 3 * 4 + 1
    assert len(body) == 8 + 64 * 64 + 8 + (1005 - 768) * 24


@pytest.mark.parametrize("offset", [(0, 0), (-32, 0), (0, -32), (-32, -32)])
@pytest.mark.parametrize("larger", [(32, 0), (0, 32), (32, 32), (0, 0)])
def test_a_canvas_that_grows_or_moves_comes_whole(offset: tuple[int, int], larger: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    base = picture(random)
    arrays = dict(base.arrays)
    for name in ("object/o/amplitude", "coverage/o"):
        before = base.arrays[name]
        arrays[name] = np.pad(before, [(0, 0)] * (before.ndim - 2) + [(0, more) for more in larger])
    new = remade(arrays, offset=offset)
    message = encode(new, base)
    assert same(decoded(message, {base.serial: dict(base.arrays)}), new.arrays)
    moved = offset != (0, 0) or larger != (0, 0)
    assert unpacked(message)[0]["wire"]["tiles"] == [0, None if moved else 0, None if moved else 0, 0]


def test_another_run_more_modes_and_a_table_that_shrank_come_whole() -> None:
    random = np.random.default_rng(2)
    base = picture(random, rows=9)
    for new, whole in (
        (picture(random, run="b"), [True, True, True, True]),
        (remade(picture(random, layers=2).arrays | {"errors": base.arrays["errors"]}), [True, False, False, False]),
        (remade(dict(base.arrays) | {"errors": base.arrays["errors"][:8]}), [False, False, False, True]),
        (remade(dict(base.arrays) | {"errors": base.arrays["errors"].astype("f4")}), [False, False, False, True]),
        (remade(dict(base.arrays) | {"coverage/q": base.arrays["coverage/o"]}), [False] * 4 + [True]),
    ):
        message = encode(new, base)
        assert [count is None for count in unpacked(message)[0]["wire"]["tiles"]] == whole
        assert same(decoded(message, {base.serial: dict(base.arrays)}), new.arrays)


def test_a_message_is_made_once_for_all_and_of_few_bases_the_others_get_it_whole() -> None:
    random = np.random.default_rng(3)
    bases = [picture(random) for _ in range(6)]
    new = picture(random)

    async def run() -> tuple[list[bytes], list[bytes], int, int]:
        shared = Shared()
        first = await asyncio.gather(*(shared.message(new, bases[0], "none") for _ in range(50)))
        once = shared.made
        others = [await shared.message(new, base, "none") for base in bases]
        shared.close()
        return first, others, once, shared.made

    first, others, once, made = asyncio.run(run())
    assert once == 1
    assert len({id(message) for message in first}) == 1
    told_by = [unpacked(message)[0]["wire"]["base"] for message in others]
    assert told_by == [base.serial for base in bases[:4]] + [None, None]
    assert made == 5
    assert others[4] is others[5]


def test_messages_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.viewers.web.sharing.SHARED_BYTES", 100_000)
    random = np.random.default_rng(4)

    async def run() -> tuple[int, int]:
        shared = Shared()
        sizes = [len(await shared.message(picture(random), None, "none")) for _ in range(20)]
        shared.close()
        return sum(map(len, shared._kept.values())), max(sizes)

    kept, largest = asyncio.run(run())
    assert largest < kept <= 100_000


DECODE = """async ([messages, forget]) => {
  const { decode } = await import("/wire.js");
  const said = [];
  let held = null;
  for (const text of messages) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    let picture;
    try { picture = await decode(bytes.buffer, held); } catch (error) { said.push(String(error)); continue; }
    if (picture === null) { said.push(null); continue; }
    if (!forget) held = picture;
    const found = {};
    for (const [name, array] of Object.entries(picture.arrays)) {
      const raw = new Uint8Array(array.data.buffer, array.data.byteOffset, array.data.byteLength);
      let text = ""; for (const byte of raw) text += String.fromCharCode(byte);
      found[name] = [array.data.constructor.name, array.shape, btoa(text)];
    }
    said.push(found);
  }
  return said;
}"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_browser_makes_the_same_of_it_and_refuses_what_is_damaged(chromium: str) -> None:
    from playwright.sync_api import Route, sync_playwright

    random = np.random.default_rng(5)
    pictures = [picture(random, layers=2, rows=300)]
    for k in range(4):
        arrays = {name: array.copy() for name, array in pictures[-1].arrays.items()}
        arrays["object/o/amplitude"][0, 60:66, 20 * k : 20 * k + 30] += 7
        arrays["probe/p/phase"][1, 2, 3] ^= 9
        arrays["errors"] = np.concatenate([arrays["errors"], random.normal(size=(k, 3))])
        pictures.append(remade(arrays))
    pictures.append(picture(random, (75, 140), rows=0))
    pictures.append(remade(dict(pictures[-1].arrays), offset=(3, 0)))
    bases = [None, *pictures[:-1]]
    script = (Path(ptystream.viewers.web.__file__).parent / "static" / "wire.js").read_text()

    def answer(route: Route) -> None:
        html = "<!doctype html><title>wire</title>"
        as_script = {"body": script, "content_type": "text/javascript"}
        route.fulfill(**as_script if route.request.url.endswith("wire.js") else {"body": html, "content_type": "text/html"})

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=FLAGS, timeout=120_000)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.route("**/*", answer)
        page.goto("http://wire.test/")

        def ask(messages: list[bytes], forget: bool = False) -> list[Any]:
            found: list[Any] = page.evaluate(DECODE, [[base64.b64encode(m).decode() for m in messages], forget])
            return found

        for coding in ("none", "deflate-raw"):
            messages = [encode(new, base, coding) for new, base in zip(pictures, bases, strict=True)]  # type: ignore[arg-type]
            for found, new in zip(ask(messages), pictures, strict=True):
                assert list(found) == list(new.arrays)
                for name, array in new.arrays.items():
                    kind, shape, raw = found[name]
                    assert kind == {"|u1": "Uint8Array", "<f8": "Float64Array"}[array.dtype.str]
                    assert tuple(shape) == array.shape
                    assert base64.b64decode(raw) == array.tobytes()
            assert ask(messages[:3], forget=True)[1:] == [None, None]  # what it does not hold cannot be a base
            header, _ = unpacked(messages[1])
            for hostile in (
                b"",
                b"\xff\xff\xff\xff",
                messages[1][: len(messages[1]) - 20],
                with_wire(messages[1], bytes=header["wire"]["bytes"] - 8),
                with_wire(messages[1], bytes=1 << 40),
                with_wire(messages[1], tiles=[9, 9, 9, 9]),
                with_wire(messages[1], tiles=[1 << 30, 0, 0, 0]),
                with_wire(messages[1], tiles=[None, None, None, None]),
                with_wire(messages[1], tile=4096),
                with_wire(messages[1], coding="br"),
            ):
                first, second = ask([messages[0], hostile])
                assert isinstance(first, dict)
                assert isinstance(second, str), second
        browser.close()


def with_wire(message: bytes, **changes: Any) -> bytes:
    """The message with other words about its body."""
    length = int.from_bytes(message[:4], "little")
    header = json.loads(message[4 : 4 + length])
    header["wire"] |= changes
    text = json.dumps(header).encode()
    text += b" " * (-(4 + len(text)) % 8)
    return len(text).to_bytes(4, "little") + text + message[4 + length :]
