// The probe: all modes side by side with their share of the power, or one of them.
import { hue } from "./colours.js";
import * as legends from "./legends.js";
import { paintProbe } from "./painting.js";
import { layerOf } from "./pictures.js";
import { $, change, element, state } from "./state.js";
import { Viewport, gestures } from "./viewport.js";

const figure = $("probes"), box = figure.querySelector(".view"), canvas = $("probe"), viewport = new Viewport(() => place());
const WHEEL = 74;
let held = null;

export function draw() {
  if (!state.picture) return;
  const first = layerOf(state.picture, "probe", state.probe, 0);
  if (!first) { figure.querySelector(".title").textContent = "probe · no frame yet"; return; }
  const single = state.mode !== null && state.mode < first.layers, layers = single ? [layerOf(state.picture, "probe", state.probe, state.mode)] : Array.from({ length: first.layers }, (_, k) => layerOf(state.picture, "probe", state.probe, k));
  const columns = columnsOf(layers.length, first);
  paintProbe(canvas, layers, hue, columns);
  held = { height: first.height * Math.ceil(layers.length / columns), width: first.width * columns, pixel: first.pixel };
  figure.querySelector(".title").textContent = single ? `probe mode ${state.mode + 1}` : "probe";
  figure.classList.toggle("several", first.layers > 1);
  legends.wheel(figure.querySelector(".legend"), (t, v) => hue((t + 1) % 1, v), true, WHEEL);
  const modes = $("modes"), share = (k) => `${(100 * first.power[k]).toFixed(first.power[k] < 0.0995 ? 1 : 0)} %`;
  modes.hidden = first.layers < 2;
  if (modes.childElementCount !== first.layers + 1) {
    modes.replaceChildren(...["all", ...first.power].map((_, k) => {
      const button = element("button", { type: "button" });
      button.addEventListener("click", () => change({ mode: k ? k - 1 : null }));
      return button;
    }));
  }
  [...modes.children].forEach((button, k) => {
    button.textContent = k ? `${k}: ${share(k - 1)}` : "all";
    button.setAttribute("aria-pressed", String(k ? single && state.mode === k - 1 : !single));
    button.title = k ? `mode ${k}, ${share(k - 1)} of the power` : "all modes side by side";
  });
  place();
}

// In a row or more, whatever shows them largest.
function columnsOf(count, { height, width }) {
  let best = 1, most = 0;
  for (let columns = 1; columns <= count; columns++) {
    const zoom = Math.min((box.clientWidth - WHEEL) / (columns * width), box.clientHeight / (Math.ceil(count / columns) * height));
    if (zoom > most * 1.001) [best, most] = [columns, zoom];
  }
  return best;
}

function place() {
  if (!held) return;
  viewport.fit([0, held.height, 0, held.width], { clientWidth: Math.max(1, box.clientWidth - WHEEL), clientHeight: box.clientHeight });
  if (viewport.fitted) viewport.x += WHEEL / 2 / viewport.zoom; // beside the wheel
  canvas.style.transform = `translate(${(-0.5 - viewport.x) * viewport.zoom}px, ${(-0.5 - viewport.y) * viewport.zoom}px) scale(${viewport.zoom})`;
  legends.scale(figure.querySelector(".scale"), box, viewport.zoom, held.pixel);
}

gestures(box, viewport);
new ResizeObserver(place).observe(box);
export const reset = () => viewport.reset();
