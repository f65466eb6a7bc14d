// The page: what comes over the wire is drawn by the parts of it, what the user does changes what is looked at.
import * as api from "./api.js";
import { CYCLIC } from "./colours.js";
import * as compare from "./compare.js";
import * as frames from "./frames.js";
import { listenToKeys } from "./keys.js";
import * as maps from "./map.js";
import * as measure from "./measure.js";
import * as objects from "./objects.js";
import * as panels from "./panels.js";
import { layerOf, namesOf } from "./pictures.js";
import * as probes from "./probes.js";
import * as quality from "./quality.js";
import { $, change, onChange, state } from "./state.js";
import * as steering from "./steering.js";
import { ago, clock, length, seconds } from "./units.js";
import { connect } from "./wire.js";

// What a test, or a curious user, may look at.
const ptystream = (window.ptystream = { number: -1, runs: [], header: null, arrays: {}, drawn: 0, errors: [], cyclic: CYCLIC, state, measured: measure.measured, objects: objects.shown, viewport: objects.viewport, map: maps.map, api });

const SILENT_MS = 5000;
const fixed = new URLSearchParams(location.hash.slice(1)); // #run=…&number=…: a link to one snapshot
if (fixed.has("run")) Object.assign(state, { following: !fixed.has("number"), run: fixed.get("run") });

function draw() {
  const { picture } = state;
  if (!picture) return;
  const { header } = picture, { ledger } = header, expected = ledger.expected ? ` / ${ledger.expected}` : "";
  standing();
  $("iteration").textContent = header.iteration;
  $("frames").textContent = `${ledger.used || 0}${expected}`;
  $("rate").textContent = (header.rates.frames_per_second || 0).toFixed(0);
  $("latency").textContent = header.rates.latency_seconds === undefined ? "–" : seconds(header.rates.latency_seconds);
  const known = ["expected", "received", "decoded", "paired", "prepared", "used", "waiting"];
  const reasons = Object.entries(ledger).filter(([k, v]) => !known.includes(k) && v > 0);
  $("excluded").textContent = reasons.length ? reasons.map(([k, v]) => `${v} ${k.replaceAll("_", " ")}`).join(", ") : "0";
  const frc = (header.quality || {}).frc, names = namesOf(picture, "object"), pixel = names.length && header.object[names[0]].pixel_size_m;
  $("resolution-stat").hidden = !frc || !frc.resolution_m;
  if (frc && frc.resolution_m) $("resolution").textContent = pixel ? length(frc.resolution_m) : `${frc.resolution_m.toFixed(1)} px`;
  list($("object-name"), names, state.object, "object");
  list($("probe-name"), namesOf(picture, "probe"), state.probe, "probe");
  const image = layerOf(picture, "object", state.object, state.layer);
  const layers = image && image.layers > 1 ? Array.from({ length: image.layers }, (_, k) => k) : [];
  if (layers.length && image.slices > 1) for (let k = 0; k < image.layers; k += image.slices) layers.unshift(-1 - (image.layers - image.slices - k) / image.slices);
  $("object-layer").hidden = !layers.length;
  const entries = layers.map((layer) => [String(layer), objects.layerName(image, layer)]), told = entries.map(([, text]) => text).join("\n");
  if (document.activeElement !== $("object-layer") && [...$("object-layer").options].map((o) => o.text).join("\n") !== told) $("object-layer").replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  if (layers.length) $("object-layer").value = String(image.layer);
  document.body.dataset.solo = state.solo; document.body.dataset.compare = state.compare;
  $("coverage").setAttribute("aria-pressed", String(state.coverage));
  $("live").setAttribute("aria-pressed", String(state.following)); $("live").classList.toggle("on", state.following);
  $("live").textContent = state.following ? "live" : "held";
  objects.draw(); probes.draw(); maps.draw(); measure.draw(); quality.draw(); compare.draw(); panels.draw();
  age();
  ptystream.drawn++;
}

// A page without its server stays so whatever is pressed; of a run that is over nothing more is to come. Between two words of the
// server on its session the seconds go on here.
let lost = false, open = false, session = { state: "unknown", silent_s: 0, text: "", runs: [] }, heardAt = 0;
const over = ({ state: now }) => ["finished", "failed"].includes(now);
function silence() {
  const since = session.silent_s + (performance.now() - heardAt) / 1000;
  if (session.state === "ended") return ["session ended", ""];
  if (session.state === "silent") return ["session not answering", `for ${since.toFixed(0)} s`];
  return session.state === "unknown" && heardAt && since > 5 && !state.picture ? ["nothing heard of the session", `for ${since.toFixed(0)} s`] : ["", ""];
}
function standing() {
  const { picture } = state, done = picture && over(picture.header), alone = lost && !done, [away, since] = lost || !state.following ? ["", ""] : silence();
  const now = picture ? picture.header.state : open ? "waiting for a picture" : "connecting", says = alone ? "connection lost" : away ? (done ? `${now} · ${away}` : away) : now;
  if ($("state").textContent !== says) $("state").textContent = says;
  $("state").className = `pill ${alone || (away && !done) ? "lost" : now}`;
  $("silent").textContent = done ? "" : since;
  const beat = picture && state.following && session.runs.find(({ run }) => run === picture.header.run);
  if (beat) $("iteration").textContent = Math.max(beat.iteration, picture.header.iteration); // pictures may be far between
}

function list(select, names, chosen, what = "") {
  select.hidden = names.length < 2;
  if ([...select.options].map((o) => o.value).join("\n") !== names.join("\n")) select.replaceChildren(...names.map((name) => new Option(`${what} ${name}`.trim(), name)));
  if (names.includes(chosen)) select.value = chosen;
}

function age() {
  const { picture } = state;
  standing();
  if (picture && picture.header.newest_frame_ns) $("age").textContent = `${seconds(Math.max(0, Date.now() / 1000 - picture.header.newest_frame_ns / 1e9))} old`;
  if (!picture) return;
  // How old a picture is that nothing followed: a session may be paused, wait, or be gone.
  const { created_ns: made, iteration } = picture.header, waits = state.following && !over(picture.header) && Date.now() - made / 1e6 > SILENT_MS;
  $("when").textContent = `${clock(made)}${waits ? `, ${ago(made)}` : ""} · iteration ${iteration}`;
}

const wire = connect({
  about(said) {
    state.about = said;
    ptystream.number = said.number;
    $("history").min = said.oldest; $("history").max = said.newest;
    if (state.following) $("history").value = said.number;
    listRuns(said.runs, said.run);
    compare.draw();
  },
  picture(picture) {
    state.picture = picture;
    $("history").value = picture.about.number;
    draw();
    Object.assign(ptystream, { header: picture.header, arrays: picture.arrays });
  },
  state(now) {
    open = now === "open"; lost = !open;
    standing();
    if (!lost) wish();
  },
  session(said) { session = said; heardAt = performance.now(); standing(); },
  error(error) { ptystream.errors.push(String(error)); },
});
ptystream.wire = wire;

// One run: its name. Several: a list, newest first; what is chosen there is followed, a past picture holds on to its run.
function listRuns(runs, shown) {
  const select = $("runs"), several = runs.length > 1;
  $("run").textContent = several ? "" : shown;
  select.hidden = !several;
  if (state.run !== null && !runs.includes(state.run)) state.run = null;
  if (runs.join("\n") !== ptystream.runs.join("\n")) {
    ptystream.runs = runs;
    select.replaceChildren(new Option(`newest: ${runs[runs.length - 1]}`, ""), ...[...runs].reverse().map((run) => new Option(run, `=${run}`)));
  }
  const held = state.following ? state.run : shown;
  select.value = held === null ? "" : `=${held}`;
}

function wish() {
  const run = state.following || !state.picture ? state.run : state.picture.header.run;
  const number = state.picture ? Number($("history").value) : Number(fixed.get("number"));
  wire.wish({ run, show: state.following ? null : number });
}

function follow(on) {
  change({ following: on });
  wish();
}
// To an older (-1) or newer snapshot, and hold it.
function step(by) {
  $("history").value = Number($("history").value) + by;
  follow(false);
}

onChange(draw);
objects.listen((done) => { if (done) panels.open("measure"); measure.draw(); });
measure.listen(); measure.onOpen(panels.open);
compare.listen();
steering.makeButtons();
panels.listen({ steer: steering.load });
const lookAt = (number, scan) => { panels.open("frame"); frames.look(number, scan); };
maps.listen(lookAt, (text) => { panels.open("frame"); $("frame-says").textContent = text; });
$("frame-form").addEventListener("submit", (event) => { event.preventDefault(); frames.look($("frame-number").valueAsNumber, $("frame-scan").value); });
$("runs").addEventListener("change", () => { state.run = $("runs").value ? $("runs").value.slice(1) : null; follow(true); });
$("history").addEventListener("input", () => follow(false));
$("live").addEventListener("click", () => follow(!state.following));
$("ramp").addEventListener("change", () => change({ ramp: $("ramp").checked }));
$("coverage").addEventListener("click", () => change({ coverage: !state.coverage }));
$("object-name").addEventListener("change", (event) => { objects.viewport.fitted = true; change({ object: event.target.value, layer: null }); });
$("object-layer").addEventListener("change", (event) => change({ layer: Number(event.target.value) }));
$("probe-name").addEventListener("change", (event) => change({ probe: event.target.value, mode: null }));
const fit = () => { objects.viewport.reset(); probes.reset(); maps.reset(); draw(); };
const zoom = (factor) => { objects.viewport.scale(factor, objects.boxOf()); objects.centre(); };
$("reset").addEventListener("click", fit);
$("zoom-in").addEventListener("click", () => zoom(1.5));
$("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
const enlarge = () => { const on = $("map-figure").classList.toggle("large"); $("map-large").setAttribute("aria-expanded", String(on)); $("map-large").textContent = on ? "smaller" : "larger"; maps.reset(); change(); if (on) $("map").focus(); };
$("map-large").addEventListener("click", enlarge);
listenToKeys({ follow: () => follow(!state.following), step, zoom, fit, enlarge, panels, measure, compare });
window.addEventListener("error", (event) => ptystream.errors.push(event.message));
window.addEventListener("unhandledrejection", (event) => ptystream.errors.push(String(event.reason)));
matchMedia("(prefers-color-scheme: light)").addEventListener("change", draw);
let resized = 0;
window.addEventListener("resize", () => { cancelAnimationFrame(resized); resized = requestAnimationFrame(draw); });
setInterval(age, 200);
setInterval(quality.draw, 5000); // ages
api.me().then((me) => { $("side").dataset.role = me.role; document.querySelector("[data-panel=steer]").hidden = me.role !== "operate" || !me.steering; change({ me }); ptystream.me = me; });
