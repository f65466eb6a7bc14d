// The panel of profiles and rectangles: drawn on the picture, or typed in.
import { colourOf, curves, say } from "./charts.js";
import { figuresOf, profileOf } from "./measuring.js";
import { contrastFrom, redraw, shown } from "./objects.js";
import { $, change, rows, state } from "./state.js";
import { area, distance, length, short, unitOf } from "./units.js";

const FIELDS = ["y0", "x0", "y1", "x1"];
export const measured = { profile: null, figures: null };

export function draw(typed = false) {
  for (const tool of ["pan", "profile", "roi"]) $(`tool-${tool}`).setAttribute("aria-pressed", String(state.tool === tool));
  document.body.dataset.tool = state.tool;
  if ($("panel-measure").hidden) return;
  const image = shown.now, pixel = image && image.pixel, drawn = state.tool === "roi" ? state.box : state.line;
  const [step, name] = pixel ? unitOf(pixel) : [1, "pixels"];
  $("measure-unit").textContent = name;
  if (!typed && !$("measure-form").contains(document.activeElement)) FIELDS.forEach((name, k) => { $(`measure-${name}`).value = drawn ? +(drawn[k >> 1][k % 2] * (pixel ? pixel[k % 2] / step : 1)).toFixed(4) : ""; });
  const profiles = [];
  if (image && state.line) {
    const reach = state.line[0].map((v, k) => (state.line[1][k] - v) * (pixel ? pixel[k] : 1)), total = Math.hypot(...reach), unit = pixel ? (total >= 2e-6 ? [1e-6, "µm"] : total >= 2e-9 ? [1e-9, "nm"] : [1e-10, "Å"]) : [1, "px"];
    const add = (from, name, dash) => {
      const profile = profileOf(from, ...state.line, !state.ramp), n = profile.distance.length, x = profile.distance.map((_, k) => (k / (n - 1)) * (total / unit[0]));
      profiles.push({ name: `phase${name}`, x, y: profile.phase, colour: colourOf("--first"), dash, right: false }, { name: `amplitude${name}`, x, y: profile.amplitude, colour: colourOf("--second"), right: true, dash });
      return { ...profile, x, unit: unit[1], length: total };
    };
    measured.profile = add(image, "", null);
    if (shown.before) add(shown.before, " pinned", [5, 4]);
    $("profile-says").textContent = `length ${pixel ? length(total) : distance(total, null)}`;
    curves($("profile-chart"), profiles, { xLabel: unit[1], yLabel: "rad" });
  } else { measured.profile = null; $("profile-says").textContent = ""; say($("profile-chart"), "choose Profile and draw a line on a picture"); }
  measured.figures = image && state.box ? figuresOf(image, ...state.box, !state.ramp) : null;
  const { figures } = measured, table = $("roi-table");
  $("roi-contrast").disabled = !figures || !figures.pixels;
  $("contrast-reset").disabled = !state.contrast.amplitude && !state.contrast.phase;
  table.hidden = !figures;
  $("roi-says").textContent = figures ? (figures.pixels ? `area ${area(figures.pixels, pixel)} (${figures.pixels} pixels)` : "no covered pixel in it") : "choose Region and draw a rectangle on a picture";
  if (figures && figures.pixels) rows(table.tBodies[0], []), table.tBodies[0].replaceChildren(...["mean", "std", "min", "max", "median"].map((name) => { const row = document.createElement("tr"), head = document.createElement("th"); head.scope = "row"; head.textContent = { std: "std. dev.", min: "minimum", max: "maximum" }[name] || name; row.append(head, ...["phase", "amplitude"].map((part) => { const cell = document.createElement("td"); cell.textContent = short(figures[part][name]); return cell; })); return row; }));
  else table.tBodies[0].replaceChildren();
}

export function listen() {
  for (const tool of ["pan", "profile", "roi"]) $(`tool-${tool}`).addEventListener("click", () => choose(tool));
  $("measure-form").addEventListener("input", () => {
    const values = FIELDS.map((name) => $(`measure-${name}`).valueAsNumber), pixel = shown.now && shown.now.pixel;
    if (values.some(Number.isNaN)) return;
    const [y0, x0, y1, x1] = values.map((v, k) => (pixel ? (v * unitOf(pixel)[0]) / pixel[k % 2] : v));
    state[state.tool === "roi" ? "box" : "line"] = [[y0, x0], [y1, x1]];
    redraw(); draw(true);
  });
  $("measure-form").addEventListener("submit", (event) => event.preventDefault());
  $("roi-contrast").addEventListener("click", () => contrastFrom(measured.figures));
  $("contrast-reset").addEventListener("click", () => change({ contrast: { amplitude: null, phase: null } }));
  $("measure-clear").addEventListener("click", () => change({ line: null, box: null }));
}

let opener = () => {};
export const onOpen = (open) => { opener = open; };
export function choose(tool) {
  const wanted = state.tool === tool ? "pan" : tool;
  change({ tool: wanted });
  if (wanted !== "pan") opener("measure");
}
