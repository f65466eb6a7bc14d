// One frame: what the detector saw, what probe and object say it should have seen, where they differ, and its way here.
import * as api from "./api.js";
import { diverging, rising } from "./colours.js";
import * as legends from "./legends.js";
import { paintCounts, paintDifference } from "./painting.js";
import { namesOf, slicesOf, spreadOf } from "./pictures.js";
import { $, change, element, rows, state } from "./state.js";
import { clock, length, place, short } from "./units.js";

let asking = 0;

// Ask for a frame and show it; what comes late, when another was asked for, is left.
export async function look(number, scan = state.scan) {
  const own = ++asking, run = state.picture.header.run;
  $("frame-number").value = number;
  if (scan) $("frame-scan").value = scan;
  $("frame-says").textContent = `asking for frame ${number}…`;
  try {
    const answer = await api.frame(run, scan, number);
    if (own === asking) show(answer, number);
  } catch (error) {
    if (own !== asking) return;
    $("frame-says").textContent = `frame ${number}: ${error.message}`;
    $("frame-pictures").hidden = true;
    rows($("frame-table"), []);
    $("frame-history").replaceChildren();
    change({ frame: null });
  }
}

function show({ header, arrays }, number) {
  const { pattern, model, mask } = arrays, position = header.position_m || header.position, pixel = header.pixel_size_m, ledger = header.ledger;
  const unit = header.unit === "m" && pixel ? pixel : [1, 1], at = position ? [position[0] / unit[0], position[1] / unit[1]] : null;
  $("frame-says").textContent = `frame ${number}${$("frame-scan").hidden ? "" : ` of ${header.scan}`} · ${(ledger.state || "").replaceAll("_", " ")}${header.iteration === undefined || !model ? "" : ` · model at iteration ${header.iteration}`}`;
  $("frame-pictures").hidden = !pattern;
  if (pattern) {
    let most = 1;
    for (const { data } of [pattern, model].filter(Boolean)) for (const v of data) if (v > most) most = v;
    paintCounts($("frame-pattern"), pattern, mask, most);
    legends.strip($("frame-legend"), rising, ["0", short(Math.round(Math.expm1(Math.log1p(most) / 2))), short(Math.round(most))]);
    for (const name of ["model", "residual"]) $(`frame-${name}`).closest("figure").hidden = !model;
    if (model) {
      const seen = state.picture.header.object[header.object];
      $("frame-model-says").textContent = seen && slicesOf(seen) > 1 ? "model, through all slices" : "model |F(P·O)|²";
      paintCounts($("frame-model"), model, null, most);
      const residual = Float32Array.from(model.data, (v, k) => (mask && !mask.data[k] ? NaN : Math.sqrt(Math.max(0, v)) - Math.sqrt(Math.max(0, pattern.data[k])))), size = spreadOf(residual);
      paintDifference($("frame-residual"), { height: pattern.shape[0], width: pattern.shape[1] }, residual, size);
      legends.strip($("frame-residual-legend"), diverging, [(-size).toPrecision(2), "0", size.toPrecision(2)]);
    }
    $("frame-residual-scale").hidden = !model;
  }
  const facts = [["position", at ? place(at[0], at[1], pixel) : "not known"]];
  if (header.moved && Math.hypot(...header.moved)) facts.push(["refined by", header.unit === "m" ? length(Math.hypot(...header.moved)) : `${short(Math.hypot(...header.moved))} px`]);
  if (ledger.dose !== null && ledger.dose !== undefined) facts.push(["beam monitor", short(ledger.dose)]);
  if (header.misfit) facts.push(["misfit, amplitude", short(header.misfit.amplitude)], ["misfit, photons", short(header.misfit.photon)]);
  if (header.bin > 1) facts.push(["shown", `${header.bin} × ${header.bin} pixels summed to one`]);
  if (pattern && !model) facts.push(["model", `none: ${header.no_model || "no probe and object see this frame now"}`]);
  rows($("frame-table"), facts);
  const steps = ledger.history || [], first = steps.find((step) => step.at_ns);
  $("frame-history").replaceChildren(...steps.map((step) => element("li", {}, element("b", {}, step.state.replaceAll("_", " ")), step.at_ns ? ` ${clock(step.at_ns)}${step !== first ? ` · ${((step.at_ns - first.at_ns) / 1e9).toFixed(3)} s after ${first.state}` : ""}` : "")));
  // Of several scans one may have an object or a probe of its own: those that this frame sees are shown.
  const sees = Object.fromEntries(["object", "probe"].filter((kind) => header[kind] && header[kind] in state.picture.header[kind] && namesOf(state.picture, kind).length > 1).map((kind) => [kind, header[kind]]));
  change({ ...sees, frame: { number, scan: header.scan, position: at, side: pattern ? header.side : 0 } });
}
