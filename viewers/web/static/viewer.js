"use strict";
import { connect } from "./wire.js";
// Draws what the server sends; no state but the last snapshot and how the user looks at it.
const $ = (id) => document.getElementById(id);
const LEDGER = ["#5a6675", "#d9a441", "#4cc38a", "#e5534b", "#b06ee0", "#58b7ff"];
const LEDGER_NAMES = ["received", "paired", "used", "excluded", "missing", "interpolated"];
const view = { zoom: 1, x: 0, y: 0 };
const ptystream = (window.ptystream = { number: -1, runs: [], header: null, arrays: {}, drawn: 0, errors: [] });
let following = true, chosen = null, covered = null; // chosen: a run, null: the newest; covered: rows and columns of the object that are drawn

// Cyclic map: two hues that meet in the dark and in the light, so that -π and π look the same.
const CYCLIC = new Uint8Array(256 * 3);
for (let i = 0; i < 256; i++) {
  const t = (2 * Math.PI * i) / 256, light = 0.5 - 0.46 * Math.cos(t), s = Math.sin(t);
  CYCLIC[3 * i] = 255 * Math.min(1, Math.max(0, light * (1 + 0.12 * s) + 0.2 * Math.max(0, s) * (1 - light)));
  CYCLIC[3 * i + 1] = 255 * Math.min(1, Math.max(0, light * 0.93 - 0.06 * Math.abs(s)));
  CYCLIC[3 * i + 2] = 255 * Math.min(1, Math.max(0, light * (1 - 0.12 * s) + 0.28 * Math.max(0, -s) * (1 - 0.4 * light)));
}
ptystream.cyclic = CYCLIC;

function hsv(h, v) {
  const i = Math.floor(h * 6), f = h * 6 - i, s = 0.85, p = v * (1 - s), q = v * (1 - f * s), t = v * (1 - (1 - f) * s);
  return [[v, t, p], [q, v, p], [p, v, t], [p, q, v], [t, p, v], [v, p, q]][i % 6].map((c) => 255 * c);
}

function paint(canvas, width, height, colour) {
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), out = image.data;
  for (let k = 0; k < width * height; k++) colour(k, out, 4 * k);
  context.putImageData(image, 0, 0);
}

function drawObject(header, arrays) {
  const name = Object.keys(header.object)[0];
  if (!name) return;
  const about = header.object[name], amplitude = arrays[`object/${name}/amplitude`], phase = arrays[`object/${name}/phase`];
  const [, height, width] = amplitude.shape, seen = arrays[`coverage/${name}`];
  const shown = (k) => !seen || seen.data[k] >= 26;
  const raw = !$("ramp").checked, [a, b, c] = about.ramp, turn = 256 / (2 * Math.PI);
  paint($("object-phase"), width, height, (k, out, at) => {
    let code = phase.data[k];
    if (raw) code = (((Math.round(code + turn * (a + b * Math.floor(k / width) + c * (k % width))) % 256) + 256) % 256);
    out[at] = CYCLIC[3 * code]; out[at + 1] = CYCLIC[3 * code + 1]; out[at + 2] = CYCLIC[3 * code + 2]; out[at + 3] = shown(k) ? 255 : 0;
  });
  paint($("object-amplitude"), width, height, (k, out, at) => {
    out[at] = out[at + 1] = out[at + 2] = amplitude.data[k]; out[at + 3] = shown(k) ? 255 : 0;
  });
  covered = [height, 0, width, 0];
  for (let k = 0; k < width * height; k++) if (shown(k)) {
    const y = Math.floor(k / width), x = k % width;
    covered = [Math.min(covered[0], y), Math.max(covered[1], y + 1), Math.min(covered[2], x), Math.max(covered[3], x + 1)];
  }
  const [low, high] = about.limits[0];
  bar($("bar-phase"), (t) => { const i = Math.min(255, Math.floor(256 * t)); return [CYCLIC[3 * i], CYCLIC[3 * i + 1], CYCLIC[3 * i + 2]]; }, ["-π", "0", "π rad"]);
  bar($("bar-amplitude"), (t) => [255 * t, 255 * t, 255 * t], [low.toFixed(2), "", high.toFixed(2)]);
  place(about.pixel_size_m);
}

function drawProbe(header, arrays) {
  const name = Object.keys(header.probe)[0];
  if (!name) return;
  const about = header.probe[name], amplitude = arrays[`probe/${name}/amplitude`], phase = arrays[`probe/${name}/phase`];
  const [layers, height, width] = amplitude.shape, all = width * layers;
  paint($("probe"), all, height, (k, out, at) => {
    const x = k % all, y = Math.floor(k / all), from = (Math.floor(x / width) * height + y) * width + (x % width);
    const rgb = hsv(((phase.data[from] / 256) + 0.5) % 1, amplitude.data[from] / 255);
    out[at] = rgb[0]; out[at + 1] = rgb[1]; out[at + 2] = rgb[2]; out[at + 3] = 255;
  });
  $("probe-note").textContent = "hue: phase, brightness: amplitude" + (layers > 1 ? " · " + about.power.map((p) => (100 * p).toFixed(0) + " %").join(", ") : "");
  bar($("bar-probe"), (t) => hsv((t + 0.5) % 1, 1), ["-π", "0", "π rad"]);
}

function bar(canvas, colour, labels) {
  const context = canvas.getContext("2d"), height = canvas.height;
  context.clearRect(0, 0, canvas.width, height);
  for (let y = 10; y < height - 10; y++) {
    const [r, g, b] = colour((height - 11 - y) / (height - 21));
    context.fillStyle = `rgb(${r},${g},${b})`;
    context.fillRect(4, y, 12, 1);
  }
  context.font = "11px system-ui, sans-serif"; context.fillStyle = "#d8dee6"; context.textBaseline = "middle";
  labels.forEach((label, i) => context.fillText(label, 20, height - 10 - ((height - 20) * i) / 2));
}

function place(pixel) {
  for (const box of document.querySelectorAll(".view")) {
    const canvas = box.firstElementChild, probe = box.classList.contains("probe");
    if (!canvas.width) continue;
    const [top, bottom, left, right] = !probe && covered && covered[1] > covered[0] ? covered : [0, canvas.height, 0, canvas.width];
    const fit = Math.min(box.clientWidth / (right - left), box.clientHeight / (bottom - top)) * 0.95;
    const zoom = fit * (probe ? 1 : view.zoom), x = probe ? 0 : view.x, y = probe ? 0 : view.y;
    canvas.style.transform = `translate(${x - (zoom * (left + right)) / 2}px, ${y - (zoom * (top + bottom)) / 2}px) scale(${zoom})`;
    const unit = pixel ? pixel[1] : 1, target = (box.clientWidth / 5 / zoom) * unit, power = 10 ** Math.floor(Math.log10(target));
    const length = [5, 2, 1].map((s) => s * power).find((l) => l <= target) || power, bar = box.querySelector(".scale");
    bar.style.width = `${(length / unit) * zoom}px`;
    bar.textContent = pixel ? (length >= 0.999e-6 ? `${+(length * 1e6).toPrecision(2)} µm` : `${+(length * 1e9).toPrecision(2)} nm`) : `${+length.toPrecision(2)} px`;
  }
}

function surface(canvas) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * scale; canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.scale(scale, scale); context.font = "11px system-ui, sans-serif";
  return [context, width, height];
}

function curves(canvas, table, series) {
  const [context, width, height] = surface(canvas), rows = table.shape[0], left = 46, bottom = 22;
  const values = series.flatMap((s) => Array.from({ length: rows }, (_, k) => table.data[3 * k + s.column])).filter((v) => v > 0);
  if (!values.length) { context.fillStyle = "#8592a3"; context.fillText("not computed", 12, 20); return; }
  const low = Math.log10(Math.min(...values)) - 0.05, high = Math.log10(Math.max(...values)) + 0.05;
  const px = (k) => left + ((width - left - 8) * k) / Math.max(1, rows - 1), py = (v) => 6 + (height - bottom - 8) * (1 - (Math.log10(v) - low) / (high - low));
  context.strokeStyle = "#2a313b"; context.fillStyle = "#8592a3";
  const marks = high - low > 2.5 ? [1] : [1, 2, 5], skip = Math.ceil((high - low) / 6);
  for (let e = Math.floor(low); e <= Math.ceil(high); e++) for (const m of marks) {
    if (((e % skip) + skip) % skip) continue;
    const v = m * 10 ** e;
    if (Math.log10(v) < low || Math.log10(v) > high) continue;
    context.beginPath(); context.moveTo(left, py(v)); context.lineTo(width - 8, py(v)); context.stroke();
    context.fillText(v >= 1e4 || v < 1e-3 ? `1e${e}` : String(+v.toPrecision(1)), 4, py(v) + 4);
  }
  series.forEach((s, i) => {
    context.strokeStyle = s.colour; context.lineWidth = 1.6; context.beginPath();
    for (let k = 0; k < rows; k++) { const v = table.data[3 * k + s.column]; if (v > 0) context.lineTo(px(k), py(v)); }
    context.stroke();
    context.fillStyle = s.colour; context.fillText(s.name, left + 6 + i * 82, height - 6);
  });
}

function map(canvas, table, pixel) {
  const [context, width, height] = surface(canvas), n = table.shape[0];
  if (!n) return;
  let y0 = Infinity, y1 = -Infinity, x0 = Infinity, x1 = -Infinity;
  for (let k = 0; k < n; k++) {
    const y = table.data[3 * k], x = table.data[3 * k + 1];
    y0 = Math.min(y0, y); y1 = Math.max(y1, y); x0 = Math.min(x0, x); x1 = Math.max(x1, x);
  }
  const zoom = Math.min((width - 30) / Math.max(1, x1 - x0), (height - 40) / Math.max(1, y1 - y0));
  const counts = [0, 0, 0, 0, 0], r = Math.max(1.5, Math.min(4, zoom * 2));
  for (let k = 0; k < n; k++) {
    const code = table.data[3 * k + 2];
    counts[code]++;
    context.fillStyle = LEDGER[code];
    context.beginPath();
    context.arc(width / 2 + zoom * (table.data[3 * k + 1] - (x0 + x1) / 2), (height - 16) / 2 + zoom * (table.data[3 * k] - (y0 + y1) / 2), r, 0, 7);
    context.fill();
  }
  let at = 8;
  counts.forEach((count, code) => {
    if (!count) return;
    const text = `${LEDGER_NAMES[code]} ${count}`;
    context.fillStyle = LEDGER[code]; context.fillText(text, at, height - 6); at += context.measureText(text).width + 12;
  });
}

function seconds(s) { return s < 10 ? s.toFixed(1) + " s" : s < 600 ? s.toFixed(0) + " s" : (s / 60).toFixed(0) + " min"; }

function draw() {
  const { header, arrays } = ptystream;
  if (!header) return;
  $("state").textContent = header.state; $("state").className = "pill " + header.state;
  const ledger = header.ledger, expected = ledger.expected ? ` / ${ledger.expected}` : "";
  $("iteration").textContent = header.iteration;
  $("frames").textContent = `${ledger.used || 0}${expected}`;
  $("rate").textContent = (header.rates.frames_per_second || 0).toFixed(0);
  $("latency").textContent = header.rates.latency_seconds === undefined ? "–" : seconds(header.rates.latency_seconds);
  const known = ["expected", "received", "decoded", "paired", "prepared", "used", "waiting"];
  const reasons = Object.entries(ledger).filter(([k, v]) => !known.includes(k) && v > 0);
  $("excluded").textContent = reasons.length ? reasons.map(([k, v]) => `${v} ${k.replaceAll("_", " ")}`).join(", ") : "0";
  $("phase-note").textContent = $("ramp").checked ? "global phase and ramp removed" : "as the engine holds it";
  drawObject(header, arrays);
  drawProbe(header, arrays);
  const own = (column) => arrays.errors.data.some((v, k) => k % 3 === column && v > 0);
  const likelihood = !own(0) && own(1);  // an engine without a fourier error
  const projections = [{ column: 0, colour: "#58b7ff", name: "fourier" }, { column: 2, colour: "#d9a441", name: "exit" }];
  curves($("errors"), arrays.errors, likelihood ? [{ column: 1, colour: "#58b7ff", name: "likelihood" }] : projections);
  curves($("misfit"), arrays.misfit, [{ column: 1, colour: "#4cc38a", name: "photon" }, { column: 2, colour: "#8592a3", name: "Poisson" }, { column: 0, colour: "#b06ee0", name: "amplitude" }]);
  map($("map"), arrays.ledger_map);
  ptystream.drawn++;
}

function age() {
  const header = ptystream.header;
  if (!header || !header.newest_frame_ns) return;
  $("age").textContent = seconds(Math.max(0, Date.now() / 1000 - header.newest_frame_ns / 1e9)) + " old";
}

const wire = connect({
  about(said) {
    ptystream.number = said.number;
    $("history").min = said.oldest; $("history").max = said.newest;
    if (following) $("history").value = said.number;
    listRuns(said.runs, said.run);
  },
  picture({ header, arrays }) {
    Object.assign(ptystream, { header, arrays });
    $("when").textContent = new Date(header.created_ns / 1e6).toLocaleTimeString() + ` · iteration ${header.iteration}`;
    draw(); age();
  },
  state(now) {
    if (now === "open") wish();
    else if (!ptystream.header || !["finished", "failed"].includes(ptystream.header.state)) { $("state").textContent = "connection lost"; $("state").className = "pill lost"; }
  },
  error(error) { ptystream.errors.push(String(error)); },
});
ptystream.wire = wire;

// One run: its name. Several: a list, newest first; what is chosen there is followed, a past picture holds on to its run.
function listRuns(runs, shown) {
  const list = $("runs"), several = runs.length > 1;
  $("run").textContent = several ? "" : shown;
  list.hidden = !several;
  if (chosen !== null && !runs.includes(chosen)) chosen = null;
  if (runs.join("\n") !== ptystream.runs.join("\n")) {
    ptystream.runs = runs;
    list.replaceChildren(new Option(`newest: ${runs[runs.length - 1]}`, ""), ...[...runs].reverse().map((run) => new Option(run, "=" + run)));
  }
  const held = following ? chosen : shown;
  list.value = held === null ? "" : "=" + held;
}

function wish() {
  const run = following || !ptystream.header ? chosen : ptystream.header.run;
  wire.wish({ run, show: following ? null : Number($("history").value) });
}

function follow(on) {
  following = on;
  $("live").classList.toggle("on", on);
  wish();
}

$("runs").addEventListener("change", () => { chosen = $("runs").value ? $("runs").value.slice(1) : null; follow(true); });
$("history").addEventListener("input", () => follow(false));
$("live").addEventListener("click", () => follow(!following));
$("ramp").addEventListener("change", draw);
$("reset").addEventListener("click", () => { Object.assign(view, { zoom: 1, x: 0, y: 0 }); draw(); });
for (const box of document.querySelectorAll(".view:not(.probe)")) {
  box.addEventListener("wheel", (event) => {
    event.preventDefault();
    const factor = Math.exp(-event.deltaY / 400), at = box.getBoundingClientRect();
    const x = event.clientX - at.left - at.width / 2, y = event.clientY - at.top - at.height / 2;
    view.x = x - (x - view.x) * factor; view.y = y - (y - view.y) * factor; view.zoom *= factor;
    draw();
  }, { passive: false });
  box.addEventListener("pointerdown", (event) => box.setPointerCapture(event.pointerId));
  box.addEventListener("pointermove", (event) => { if (event.buttons) { view.x += event.movementX; view.y += event.movementY; draw(); } });
}
window.addEventListener("resize", draw);
window.addEventListener("error", (event) => ptystream.errors.push(event.message));
setInterval(age, 200);
