// Where the frames are and what became of them. From each picture at once; with numbers and reasons when somebody asks.
import * as api from "./api.js";
import { KINDS, kindOf } from "./colours.js";
import { colourOf, surface } from "./charts.js";
import { isQuickLook } from "./pictures.js";
import { $, change, element, state } from "./state.js";
import { place } from "./units.js";
import { Viewport, gestures } from "./viewport.js";

const NAMES = ["received", "paired", "used", "excluded", "missing", "interpolated"]; // of the third column of ledger_map
const MANY = 4000, NEAR = 14, FRESH_MS = 2000;
const canvas = $("map"), viewport = new Viewport(() => paint());
let points = null, known = { run: "", scans: [] }, asked = { run: "", scan: "", used: "", at: -Infinity, table: null, busy: null };
export const map = { viewport, get points() { return points; } };

// {y, x (pixels), state, index or null, names, counts, unit}.
function fromPicture({ header, arrays: { ledger_map: table } }) {
  const n = table.shape[0], found = { y: new Float64Array(n), x: new Float64Array(n), state: new Uint8Array(n), index: null, names: NAMES, pixel: pixelOf(header) };
  for (let k = 0; k < n; k++) { found.y[k] = table.data[3 * k]; found.x[k] = table.data[3 * k + 1]; found.state[k] = table.data[3 * k + 2]; }
  return found;
}
const pixelOf = (header) => { const names = Object.keys(header.object).filter((one) => !isQuickLook(one)), name = names.includes(state.object) ? state.object : names[0]; return name ? header.object[name].pixel_size_m : null; };

function fromLedger({ header, arrays }) {
  const pixel = header.pixel_size_m, unit = header.unit === "m" && pixel ? pixel : [1, 1];
  return {
    y: Float64Array.from(arrays.y.data, (v) => v / unit[0]), x: Float64Array.from(arrays.x.data, (v) => v / unit[1]), state: arrays.state.data,
    index: arrays.index.data, names: header.states, pixel, scans: header.scans, scan: header.scan, scanOf: () => header.scan,
  };
}

// Ledgers of several scans as one table.
function together(tables) {
  if (tables.length === 1) return tables[0];
  const ends = [], joined = (name, kind) => { const out = new kind(ends[ends.length - 1]); tables.forEach((table, k) => out.set(table[name], k ? ends[k - 1] : 0)); return out; };
  for (const { y } of tables) ends.push((ends[ends.length - 1] || 0) + y.length);
  const [{ names, pixel, scans }] = tables;
  return { y: joined("y", Float64Array), x: joined("x", Float64Array), state: joined("state", Uint8Array), index: joined("index", Float64Array), names, pixel, scans, scan: "", ends, scanOf: (k) => tables[ends.findIndex((end) => k < end)].scan };
}

async function ledgers(run, scan) {
  const first = fromLedger(await api.ledger(run, scan)), others = scan ? [] : first.scans.filter((name) => name !== first.scan);
  const tables = [first, ...(await Promise.all(others.map((name) => api.ledger(run, name)))).map(fromLedger)];
  return together(tables.sort((a, b) => first.scans.indexOf(a.scan) - first.scans.indexOf(b.scan)));
}

// The ledger with numbers, of the chosen scan or of all; as it was a moment ago where it is the same run and nothing has come.
// Rejects with why not.
export async function numbered() {
  const run = state.picture.header.run, used = JSON.stringify(state.picture.header.ledger), scan = state.scan;
  if (asked.table && asked.run === run && asked.scan === scan && (asked.used === used || performance.now() - asked.at < FRESH_MS)) return asked.table;
  if (!state.me.steering) throw new Error("the viewer was not told where the session is steered, so frames cannot be asked for");
  if (!asked.busy || asked.wanted !== `${run} ${scan}`) {
    asked.wanted = `${run} ${scan}`;
    asked.busy = ledgers(run, scan).then((table) => { asked = { run, scan, used, at: performance.now(), table, busy: null }; return table; }, (error) => { asked.busy = null; throw error; });
  }
  return asked.busy;
}

export function draw() {
  if (!state.picture) return;
  const { header } = state.picture;
  if (known.run !== header.run) state.scan = "";
  known = { run: header.run, scans: header.scans };
  // Pictures tell places and states of all scans together, the ledger which is whose.
  const large = $("map-figure").classList.contains("large"), fresh = asked.table && asked.run === header.run && asked.scan === state.scan, wanted = large || state.scan;
  points = (large || state.scan) && fresh ? asked.table : fromPicture(state.picture);
  if (wanted && state.me.steering) numbered().then((table) => { points = table; show(); }, (error) => { $("map-note").textContent = error.message; });
  show();
}

// [word, {kind, n}] of each thing that became of frames, what is well first.
function counted(codes, names) {
  const found = new Map(), merged = new Map(), order = Object.keys(KINDS);
  for (const code of codes) { const name = names[code] || "excluded"; found.set(name, (found.get(name) || 0) + 1); }
  for (const [name, n] of found) { const kind = kindOf(name), says = kind === "excluded" && name !== "excluded" ? name.replaceAll("_", " ") : KINDS[kind].says, same = merged.get(says) || { kind, n: 0 }; same.n += n; merged.set(says, same); }
  return [...merged].sort(([, a], [, b]) => order.indexOf(a.kind) - order.indexOf(b.kind));
}
const inWords = (counts) => counts.map(([says, { n }]) => `${n} ${says}`).join(", ") || "no frame yet";

function show() {
  const all = counted(points.state, points.names), legend = all.map(([says, { kind, n }]) => element("li", { "data-kind": kind }, `${says} `, element("b", {}, String(n))));
  if (legend.map((item) => item.textContent).join() !== [...$("map-legend").children].map((item) => item.textContent).join()) $("map-legend").replaceChildren(...legend);
  canvas.setAttribute("aria-label", `scan map: ${inWords(all)}`);
  const { ends } = points, each = ends ? ends.map((end, k) => `${points.scans[k]}: ${inWords(counted(points.state.subarray(k ? ends[k - 1] : 0, end), points.names))}`) : [];
  $("map-scans").hidden = !each.length; $("map-scans").textContent = each.join(" · ");
  for (const [list, whole] of [[$("map-scan"), true], [$("frame-scan"), false]]) {
    const { scans } = known, entries = whole ? [["", "all scans"], ...scans.map((name) => [name, name])] : scans.map((name) => [name, name]);
    list.hidden = scans.length < 2 || !state.me.steering;
    if ([...list.options].map((o) => o.value).join("\n") !== entries.map(([value]) => value).join("\n")) list.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  }
  $("map-scan").value = state.scan;
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
  const asking = () => { canvas.setAttribute("aria-busy", "true"); note.textContent = "asking the session…"; };
  const answered = () => { canvas.removeAttribute("aria-busy"); if (note.textContent.startsWith("asking")) note.textContent = ""; };
  gestures(canvas, viewport, {
    tap(at) {
      asking();
      numbered().then((table) => {
        answered();
        const k = nearest(table, at);
        if (k >= 0) choose(table.index[k], table.scanOf(k));
        else note.textContent = "no frame here";
      }, (error) => { answered(); refuse(error.message); });
    },
    hover(at) {
      if (canvas.hasAttribute("aria-busy")) return;
      if (!at || !points) { note.textContent = ""; return; }
      const k = nearest(points, at), name = k < 0 ? "" : points.names[points.state[k]].replaceAll("_", " ");
      note.textContent = `${place(at[0], at[1], points.pixel)}${k < 0 ? "" : ` · ${points.index ? `frame ${points.index[k]}${points.ends ? ` of ${points.scanOf(k)}` : ""}, ` : ""}${name}`}`;
    },
  });
  $("map-scan").addEventListener("change", (event) => { viewport.reset(); change({ scan: event.target.value }); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || event.shiftKey) return;
    event.preventDefault(); event.stopPropagation();
    asking();
    numbered().then((table) => {
      answered();
      const rank = (k) => table.scans.indexOf(table.scanOf(k)), sorted = Array.from(table.index, (_, k) => k).sort((a, b) => rank(a) - rank(b) || table.index[a] - table.index[b]);
      const at = sorted.findIndex((k) => state.frame && table.index[k] === state.frame.number && table.scanOf(k) === state.frame.scan), next = sorted[at < 0 ? 0 : (at + step + sorted.length) % sorted.length];
      if (sorted.length) choose(table.index[next], table.scanOf(next));
    }, (error) => { answered(); refuse(error.message); });
  });
  new ResizeObserver(paint).observe(canvas);
}
export const reset = () => viewport.reset();
export const repaint = paint;
