"use strict";
// The wire to the server: a websocket that mends itself, and messages turned back into whole pictures. docs/reference/viewer.md has the
// layout. A picture that was handed out never changes: {header, arrays: {name: {data, shape}}, about: {run, number, oldest, newest, runs}}.

const KINDS = {
  "|u1": Uint8Array, "<u2": Uint16Array, "<u4": Uint32Array, "<i4": Int32Array, "<i8": BigInt64Array, "<f4": Float32Array, "<f8": Float64Array,
};
const MAX_HEADER = 1 << 24, MAX_BODY = 1 << 30, RETRY_MS = 1000, LONGEST_RETRY_MS = 10000;

// The server has put the token of the address into a cookie, which no script can read: it need not stay where others could read it.
if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname + location.hash);

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
const padded = (bytes) => Math.ceil(bytes / 8) * 8;

// Header and body of a message. Throws where it is none.
function split(buffer) {
  if (buffer.byteLength < 4) throw new Error("a message of less than four bytes");
  const length = new DataView(buffer).getUint32(0, true);
  if (length > MAX_HEADER || 4 + length > buffer.byteLength) throw new Error(`a header of ${length} bytes in a message of ${buffer.byteLength}`);
  return [JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))), new Uint8Array(buffer, 4 + length)];
}

// Type, number of values and bytes of an array that a header announces.
function announced(entry) {
  const kind = KINDS[entry.dtype];
  if (!kind || !Array.isArray(entry.shape) || !entry.shape.every((n) => Number.isInteger(n) && n >= 0)) throw new Error(`array ${entry.name}: ${entry.dtype} ${entry.shape}`);
  const bytes = product(entry.shape) * kind.BYTES_PER_ELEMENT;
  if (bytes > MAX_BODY) throw new Error(`array ${entry.name}: ${bytes} bytes`);
  return [kind, bytes];
}

// A message of whole arrays, not compressed: what /api/frame and /api/ledger answer. {header, arrays}.
export function unpack(buffer) {
  const [header, body] = split(buffer), arrays = {};
  let at = 0;
  for (const entry of header.arrays) {
    const [kind, bytes] = announced(entry);
    if (at + bytes > body.length) throw new Error(`array ${entry.name}: the message ends before it`);
    arrays[entry.name] = { data: new kind(body.buffer, body.byteOffset + at, bytes / kind.BYTES_PER_ELEMENT), shape: entry.shape };
    at += padded(bytes);
  }
  return { header, arrays };
}

async function inflate(bytes, size) {
  const out = new Uint8Array(size), reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  let at = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > size) { await reader.cancel(); throw new Error(`more than the ${size} bytes that were announced`); }
    out.set(value, at); at += value.length;
  }
  if (at !== size) throw new Error(`${at} bytes came, ${size} were announced`);
  return out;
}

// Puts tiles of an image onto a copy of what was there: values are differences modulo 256. Returns the bytes that were read.
function addTiles(out, shape, side, indices, body, at) {
  const [height, width] = shape.slice(-2), down = Math.ceil(height / side), across = Math.ceil(width / side), began = at;
  for (const index of indices) {
    const layer = Math.floor(index / (down * across)), y0 = (Math.floor(index / across) % down) * side, x0 = (index % across) * side;
    const rows = Math.min(side, height - y0), columns = Math.min(side, width - x0);
    let to = (layer * height + y0) * width + x0;
    if (to + (rows - 1) * width + columns > out.length || at + rows * columns > body.length) throw new Error("a tile outside its image or message");
    for (let y = 0; y < rows; y++, to += width - columns) for (let x = 0; x < columns; x++) out[to++] += body[at++];
  }
  return at - began;
}

// Puts tiles of a table, rows as they are, in their place.
function putRows(out, rowBytes, side, indices, body, at) {
  const began = at;
  for (const index of indices) {
    const to = index * side * rowBytes, bytes = Math.min(side * rowBytes, out.length - to);
    if (bytes <= 0 || at + bytes > body.length) throw new Error("rows outside their table or message");
    out.set(body.subarray(at, at + bytes), to); at += bytes;
  }
  return at - began;
}

// The picture of a message and the one it was told by; null: that base is not what we have.
export async function decode(buffer, held) {
  const [header, packed] = split(buffer), wire = header.wire, arrays = {};
  if (!Number.isInteger(wire.bytes) || wire.bytes < 0 || wire.bytes > MAX_BODY) throw new Error(`a body of ${wire.bytes} bytes`);
  if (wire.base !== null && (!held || held.header.wire.serial !== wire.base)) return null;
  if (wire.coding !== "none" && wire.coding !== "deflate-raw") throw new Error(`coding ${wire.coding}`);
  const body = wire.coding === "none" ? packed : await inflate(packed, wire.bytes);
  if (body.length !== wire.bytes) throw new Error(`${body.length} bytes came, ${wire.bytes} were announced`);
  let at = 0;
  header.arrays.forEach((entry, k) => {
    const [kind, bytes] = announced(entry), count = wire.tiles[k];
    const out = new Uint8Array(bytes);
    if (count === null) {
      if (at + bytes > body.length) throw new Error(`array ${entry.name}: the message ends before it`);
      out.set(body.subarray(at, at + bytes)); at += padded(bytes);
    } else {
      const before = held && wire.base !== null ? held.arrays[entry.name] : null;
      if (!before || before.data.byteLength > bytes || at + 4 * count > body.length) throw new Error(`array ${entry.name}: tiles of what is not there`);
      if (kind === Uint8Array && before.data.byteLength !== bytes) throw new Error(`array ${entry.name}: tiles of another shape`);
      out.set(new Uint8Array(before.data.buffer, before.data.byteOffset, before.data.byteLength));
      const indices = new Uint32Array(body.slice(at, at + 4 * count).buffer);
      at += padded(4 * count);
      const rowBytes = product(entry.shape.slice(1)) * kind.BYTES_PER_ELEMENT;
      at += padded(kind === Uint8Array ? addTiles(out, entry.shape, wire.tile, indices, body, at) : putRows(out, rowBytes, wire.rows, indices, body, at));
    }
    arrays[entry.name] = { data: new kind(out.buffer), shape: entry.shape };
  });
  if (at !== body.length) throw new Error(`${body.length} bytes came, ${at} belong to arrays`);
  return { header, arrays };
}

// on.about({run, number, oldest, newest, runs}); on.picture(picture), which may return a promise: the next one is sent when it is kept;
// on.session({state, silent_s, text, runs}), about once a second; on.state("open" | "lost"); on.error(error). `rate`: pictures a second at the most, null: as they come.
// What it returns: wish({run, show}) as of the server, rate (may be set), bytes (taken in so far), close().
export function connect(on, { rate = null } = {}) {
  const address = new URL("stream", location.href), deflate = typeof DecompressionStream !== "undefined";
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.hash = "";
  let socket = null, held = null, wanted = null, over = false, pause = RETRY_MS, timer = 0;
  const say = (word) => { if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(word)); };
  const wire = {
    bytes: 0, keyframes: 0, pictures: 0,
    wish(word) { wanted = word; say(word); },
    get rate() { return rate; },
    set rate(value) { rate = value; say({ rate }); },
    close() { over = true; clearTimeout(timer); if (socket) socket.close(); },
  };

  async function take(data, from) {
    if (typeof data === "string") {
      const about = JSON.parse(data);
      if (about.session) on.session(about.session); else { from.about = about; on.about(about); }
      return;
    }
    wire.bytes += data.byteLength;
    const about = from.about, picture = await decode(data, held);
    if (picture === null) { held = null; say({ keyframe: true }); return; }
    wire.pictures++; wire.keyframes += picture.header.wire.base === null;
    held = picture;
    try { await on.picture({ ...picture, about }); } catch (error) { on.error(error); }
    say({ drawn: about.number });
  }

  function open() {
    const query = new URLSearchParams();
    if (deflate) query.set("coding", "deflate-raw");
    if (rate !== null) query.set("rate", rate);
    if (on.session) query.set("session", "yes");
    address.search = query.toString();
    const here = { about: null };
    let line = Promise.resolve();
    held = null;
    socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { pause = RETRY_MS; on.state("open"); if (wanted) say(wanted); };
    socket.onmessage = ({ data, target }) => {
      line = line.then(() => take(data, here)).catch((error) => { on.error(error); target.close(); });
    };
    socket.onclose = () => {
      if (over) return;
      on.state("lost");
      timer = setTimeout(open, pause);
      pause = Math.min(2 * pause, LONGEST_RETRY_MS);
    };
  }

  open();
  return wire;
}
