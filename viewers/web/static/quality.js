// What was measured of the result's quality, each figure with its age; what was not measured is not shown.
import { colourOf, curves } from "./charts.js";
import { $, element, rows, state } from "./state.js";
import { ago, length, short } from "./units.js";

export function drawCurves() {
  if (!state.picture) return;
  const { errors, misfit } = state.picture.arrays, n = errors.shape[0], x = Array.from({ length: Math.max(n, misfit.shape[0]) }, (_, k) => k + 1);
  const column = (table, k) => Array.from({ length: table.shape[0] }, (_, row) => table.data[3 * row + k]), any = (values) => values.some((v) => v > 0);
  const own = [0, 1, 2].map((k) => column(errors, k)), likelihood = !any(own[0]) && any(own[1]);
  const first = colourOf("--first"), second = colourOf("--second"), third = colourOf("--third"), dim = colourOf("--dim");
  curves($("errors"), likelihood ? [{ name: "likelihood", x, y: own[1], colour: first }] : [{ name: "fourier", x, y: own[0], colour: first }, { name: "exit", x, y: own[2], colour: second, dash: [6, 3] }], { log: true, xLabel: "iteration" });
  curves($("misfit"), [{ name: "photon", x, y: column(misfit, 1), colour: third }, { name: "Poisson", x, y: column(misfit, 2), colour: dim, dash: [2, 3] }, { name: "amplitude", x, y: column(misfit, 0), colour: first, dash: [6, 3] }], { log: true, xLabel: "iteration" });
}

const percent = (v) => `${(100 * v).toFixed(1)} %`;
const towards = ([y, x]) => `${size(Math.hypot(y, x))} (y ${size(y)}, x ${size(x)})`;
const pixels = ([y, x]) => `y ${y.toFixed(2)}, x ${x.toFixed(2)} px`;
let unit = "m";
const size = (v) => (unit === "m" ? length(v) : `${short(v)} px`);

// [value, label, text of it]: a value that was not measured has no row.
const FIGURES = {
  coverage: [["overlap", "overlap of neighbours", percent], ["holes", "too little light", (v) => `${percent(v)} of the scanned area`], ["frames_per_beam", "frames per beam", short]],
  drift: [["probe_m", "probe has moved", towards], ["positions_m", "positions have moved", towards], ["rms_m", "positions, rms", (v) => size(v)], ["trend_m", "their trend over the scan", towards]],
  convergence: [["state", "misfit is", String], ["per_iteration", "change per iteration", (v) => `${v > 0 ? "+" : ""}${(100 * v).toPrecision(2)} %`]],
  quick_look: [["kind", "picture", String], ["frames", "frames in it", String], ["rotation_deg", "scan is turned by", (v) => `${v.toFixed(1)}°`], ["curl", "curl left (½: noise)", short], ["mirrored", "patterns are mirrored", String], ["center_px", "patterns' centre", pixels], ["descan_px", "descan, down the rows; along them", (v) => (v.length === 4 ? `${pixels(v.slice(0, 2))}; ${pixels(v.slice(2))}` : null)], ["aberrations_m", "C10, C12a, C12b", (v) => v.map((c) => `${(1e10 * c).toFixed(1)} Å`).join(", ")]],
  convention: [["chosen", "chosen", (v) => (v === null ? "none: a tie" : v)], ["lead", "leads by", (v) => `${short(v)} ×`], ["why", "why", String], ["ties", "fit equally well", (v) => v.map((names) => names.join(" = ")).join("; ") || null]],
};
function factsOf(name, q) {
  const facts = FIGURES[name].filter(([key]) => q[key] !== undefined).map(([key, label, text]) => [label, text(q[key])]).filter(([, text]) => text !== null);
  return [...facts, ...(name === "convention" && q.ranking ? q.ranking.map((entry, k) => [`${k + 1}. ${entry.name}`, `misfit ${short(entry.misfit)}`]) : [])];
}
const TITLES = { quick_look: "Quick look", coverage: "Coverage", drift: "Drift", convergence: "Convergence", convention: "Orientation of detector and positions" };

export function draw() {
  drawCurves();
  const panel = $("panel-quality");
  if (panel.hidden || !state.picture) return;
  const { header } = state.picture, quality = header.quality || {}, names = Object.keys(header.object);
  unit = names.length && header.object[names[0]].pixel_size_m ? "m" : "px";
  const age = (q) => `measured ${ago(q.measured_ns)}, iteration ${q.iteration}`;
  $("frc").hidden = !quality.frc;
  if (quality.frc) {
    const q = quality.frc, scale = unit === "m" ? 1e-6 : 1, all = (q.frequency_per_m || []).map((f) => f * scale), first = all[0] === 0 ? 1 : 0, x = all.slice(first), facts = []; // means are subtracted: at zero nothing is left to correlate
    const lines = [{ name: "correlation", x, y: (q.correlation || []).slice(first), colour: colourOf("--first") }, { name: "half-bit threshold", x, y: (q.threshold || []).slice(first), colour: colourOf("--second"), dash: [5, 4] }];
    curves($("frc-chart"), lines, { xLabel: unit === "m" ? "per µm" : "per pixel", low: Math.min(0, ...lines[0].y), high: 1.02, vertical: q.resolution_m ? scale / (2 * q.resolution_m) : null });
    if (q.resolution_m !== undefined) facts.push(["resolution", q.resolution_m === null ? "finer than these pixels can show" : `${size(q.resolution_m)} (half the period)`]);
    if (q.frames !== undefined) facts.push(["from", `${q.frames} frames${q.iterations === undefined ? "" : `, ${q.iterations} iterations of each half`}${q.share === undefined ? "" : `, ${percent(q.share)} of the time`}`]);
    rows($("frc-table"), facts);
    $("frc-age").textContent = age(q);
  }
  $("quality-figures").replaceChildren(...Object.keys(FIGURES).filter((name) => quality[name]).map((name) => {
    const table = element("table", { class: "facts" }), section = element("section", { "data-figure": name }, element("h3", {}, TITLES[name]), table, element("p", { class: "age" }, age(quality[name])));
    rows(table, factsOf(name, quality[name]));
    return section;
  }));
  $("quality-none").hidden = Object.keys(quality).length > 0;
}
