// Where the frames are and what became of them. From each picture at once; with numbers and reasons when somebody asks.
import * as api from "./api.js";
import { KINDS, kindOf } from "./colours.js";
import { colourOf, surface } from "./charts.js";
import { $, change, element, state } from "./state.js";
import { place } from "./units.js";
import { Viewport, gestures } from "./viewport.js";

const NAMES = ["received", "paired", "used", "excluded", "missing", "interpolated"]; // of the third column of ledger_map
const MANY = 4000, NEAR = 14, FRESH_MS = 2000;
const canvas = $("map"), viewport = new Viewport(() => paint());
let points = null, asked = { run: "", scan: "", used: "", at: -Infinity, table: null, busy: null };
export const map = { get points() { return points; } };

// {y, x (pixels), state, index or null, names, counts, unit}.
function fromPicture({ header, arrays: { ledger_map: table } }) {
  const n = table.shape[0], found = { y: new Float64Array(n), x: new Float64Array(n), state: new Uint8Array(n), index: null, names: NAMES, pixel: pixelOf(header) };
  for (let k = 0; k < n; k++) { found.y[k] = table.data[3 * k]; found.x[k] = table.data[3 * k + 1]; found.state[k] = table.data[3 * k + 2]; }
  return found;
}
const pixelOf = (header) => { const name = state.object in header.object ? state.object : Object.keys(header.object)[0]; return name ? header.object[name].pixel_size_m : null; };

function fromLedger({ header, arrays }) {
  const pixel = header.pixel_size_m, unit = header.unit === "m" && pixel ? pixel : [1, 1];
  return {
    y: Float64Array.from(arrays.y.data, (v) => v / unit[0]), x: Float64Array.from(arrays.x.data, (v) => v / unit[1]), state: arrays.state.data,
    index: arrays.index.data, names: header.states, pixel, scans: header.scans, scan: header.scan, run: header.run,
  };
}

// The ledger with numbers; as it was a moment ago where it is the same run and nothing has come. Rejects with why not.
export async function numbered() {
  const run = state.picture.header.run, used = JSON.stringify(state.picture.header.ledger), scan = state.scan;
  if (asked.table && asked.run === run && asked.scan === scan && (asked.used === used || performance.now() - asked.at < FRESH_MS)) return asked.table;
  if (!state.me.steering) throw new Error("the viewer was not told where the session is steered, so frames cannot be asked for");
  if (!asked.busy || asked.wanted !== `${run} ${scan}`) {
    asked.wanted = `${run} ${scan}`;
    asked.busy = api.ledger(run, scan).then((answer) => { asked = { run, scan, used, at: performance.now(), table: fromLedger(answer), busy: null }; return asked.table; }, (error) => { asked.busy = null; throw error; });
  }
  return asked.busy;
}

export function draw() {
  if (!state.picture) return;
  const large = $("map-figure").classList.contains("large"), fresh = asked.table && asked.run === state.picture.header.run && asked.scan === state.scan;
  points = large && fresh ? asked.table : fromPicture(state.picture);
  if (large && state.me.steering) numbered().then((table) => { if (table !== points) { points = table; show(); } }, (error) => { $("map-note").textContent = error.message; });
  show();
}

function show() {
  const counts = new Map();
  for (const code of points.state) { const name = points.names[code] || "excluded"; counts.set(name, (counts.get(name) || 0) + 1); }
  const merged = new Map();
  for (const [name, n] of counts) { const kind = kindOf(name), own = kind === "excluded" && name !== "excluded" ? name.replaceAll("_", " ") : KINDS[kind].says; const known = merged.get(own) || { kind, n: 0 }; known.n += n; merged.set(own, known); }
  const order = Object.keys(KINDS), legend = [...merged].sort(([, a], [, b]) => order.indexOf(a.kind) - order.indexOf(b.kind)).map(([says, { kind, n }]) => { const item = element("li", { "data-kind": kind }, `${says} `, element("b", {}, String(n))); return item; });
  if (legend.map((item) => item.textContent).join() !== [...$("map-legend").children].map((item) => item.textContent).join()) $("map-legend").replaceChildren(...legend);
  canvas.setAttribute("aria-label", `scan map: ${[...merged].map(([says, { n }]) => `${n} ${says}`).join(", ") || "no frame yet"}`);
  const scans = points.scans || [], list = $("map-scan");
  list.hidden = scans.length < 2;
  if ([...list.options].map((o) => o.value).join() !== scans.join()) list.replaceChildren(...scans.map((name) => new Option(name, name)));
  if (points.scan) list.value = points.scan;
  paint();
}

function extent() {
  let top = Infinity, bottom = -Infinity, left = Infinity, right = -Infinity;
  for (let k = 0; k < points.y.length; k++) {
    const y = points.y[k], x = points.x[k];
    if (y < top) top = y;
    if (y > bottom) bottom = y;
    if (x < left) left = x;
    if (x > right) right = x;
  }
  const pad = 0.04 * Math.max(1, bottom - top, right - left);
  return bottom >= top ? [top - pad, bottom + 1 + pad, left - pad, right + 1 + pad] : null;
}

function paint() {
  if (!points) return;
  const [context, width, height] = surface(canvas), within = extent();
  if (!within || !width) return;
  viewport.fit(within, canvas);
  const n = points.y.length, r = Math.max(1.3, Math.min(5, 0.35 * viewport.zoom * Math.sqrt(((within[1] - within[0]) * (within[3] - within[2])) / Math.max(1, n)))), kinds = points.names.map(kindOf);
  context.lineWidth = Math.max(1, r / 2.2);
  for (let k = 0; k < n; k++) {
    const y = height / 2 + (points.y[k] - viewport.y) * viewport.zoom, x = width / 2 + (points.x[k] - viewport.x) * viewport.zoom;
    if (!(y > -9 && x > -9 && y < height + 9 && x < width + 9)) continue;
    const kind = KINDS[kinds[points.state[k]] || "excluded"];
    context.fillStyle = context.strokeStyle = kind.colour;
    if (kind.shape === "dot" && n > MANY) { context.fillRect(x - r, y - r, 2 * r, 2 * r); continue; }
    context.beginPath();
    if (kind.shape === "dot" || kind.shape === "ring") context.arc(x, y, r, 0, 7);
    else if (kind.shape === "cross") { context.moveTo(x - r, y - r); context.lineTo(x + r, y + r); context.moveTo(x - r, y + r); context.lineTo(x + r, y - r); }
    else { context.moveTo(x - r, y); context.lineTo(x + r, y); context.moveTo(x, y - r); context.lineTo(x, y + r); }
    if (kind.shape === "dot") context.fill(); else context.stroke();
  }
  if (state.frame && state.frame.position) {
    const y = height / 2 + (state.frame.position[0] - viewport.y) * viewport.zoom, x = width / 2 + (state.frame.position[1] - viewport.x) * viewport.zoom;
    context.strokeStyle = colourOf("--text"); context.lineWidth = 2; context.beginPath(); context.arc(x, y, r + 5, 0, 7); context.stroke();
  }
}

function nearest(table, [y, x]) {
  let best = -1, least = (NEAR / viewport.zoom) ** 2;
  for (let k = 0; k < table.y.length; k++) { const d = (table.y[k] - y) ** 2 + (table.x[k] - x) ** 2; if (d <= least) { least = d; best = k; } }
  return best;
}

// `choose(frame number, scan)` is called for a dot that was clicked, `refuse(text)` where there is none to be had.
export function listen(choose, refuse) {
  const note = $("map-note");
  gestures(canvas, viewport, {
    tap(at) {
      numbered().then((table) => { const k = nearest(table, at); if (k >= 0) choose(table.index[k], table.scan); }, (error) => refuse(error.message));
    },
    hover(at) {
      if (!at || !points) { note.textContent = ""; return; }
      const k = nearest(points, at), name = k < 0 ? "" : points.names[points.state[k]].replaceAll("_", " ");
      note.textContent = `${place(at[0], at[1], points.pixel)}${k < 0 ? "" : ` · ${points.index ? `frame ${points.index[k]}, ` : ""}${name}`}`;
    },
  });
  $("map-scan").addEventListener("change", (event) => change({ scan: event.target.value }));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || event.shiftKey) return;
    event.preventDefault(); event.stopPropagation();
    numbered().then((table) => {
      const sorted = [...table.index].sort((a, b) => a - b), k = sorted.indexOf(state.frame ? state.frame.number : -1);
      if (sorted.length) choose(sorted[k < 0 ? 0 : (k + step + sorted.length) % sorted.length], table.scan);
    }, (error) => refuse(error.message));
  });
  new ResizeObserver(paint).observe(canvas);
}
export const reset = () => viewport.reset();
export const repaint = paint;
