// The two large pictures: phase and amplitude of an object, or two snapshots of it, and what is drawn upon them.
import { cyclic, diverging, grey, rising } from "./colours.js";
import * as legends from "./legends.js";
import { paintCoverage, paintDifference, paintPart } from "./painting.js";
import { amplitudeAt, differenceOf, extentOf, isQuickLook, layerOf, phaseAt, rawPhaseAt, spreadOf, visible, weakPhase } from "./pictures.js";
import { $, change, state } from "./state.js";
import { distance, length, place, short } from "./units.js";
import { Viewport, gestures } from "./viewport.js";

export const viewport = new Viewport(() => { placeAll(); });
export const shown = { now: null, before: null, difference: null, why: "" }; // layers that are drawn
const views = ["left", "right"].map((id, number) => {
  const figure = $(id), box = figure.querySelector(".view");
  return { id, number, figure, box, image: figure.querySelector(".image"), cover: figure.querySelector(".cover"), seen: figure.querySelector(".seen"), marks: figure.querySelector(".marks"), legend: figure.querySelector(".legend"), scale: figure.querySelector(".scale"), title: figure.querySelector(".title"), drawn: null };
});
let covered = null, compared = [null, null, null];

// What each view shows: {image, part, title, kind}.
function plan() {
  const { now, before, difference } = shown, part = state.solo || "phase", named = (image) => (image && image.layers > 1 ? ` · ${image.slices > 1 ? layerName(image, image.layer) : `layer ${image.layer + 1} of ${image.layers}`}` : "");
  const label = (picture) => `${picture.header.run} #${picture.header.number}, iteration ${picture.header.iteration}`;
  if (state.compare !== "off" && before) {
    const pinned = label(state.pinned), current = label(state.picture);
    if (state.compare === "side") return [{ image: before, part, title: `${part} · pinned: ${pinned}` }, { image: now, part, title: `${part} · ${current}` }];
    if (state.compare === "blink") return ["phase", "amplitude"].map((p) => ({ image: state.turn ? before : now, part: p, title: `${p} · ${state.turn ? `pinned: ${pinned}` : current}` }));
    return ["phase", "amplitude"].map((p) => ({ image: difference, part: p, kind: "difference", title: difference ? `${p}: ${current} − pinned ${pinned}` : `${p} · ${shown.why}` }));
  }
  if (now && isQuickLook(now.name)) return [["amplitude", "from dark to bright"], ["phase", "phase"]].map(([p, text]) => ({ image: now, part: p, title: `${now.name} · ${text}, without iteration` }));
  const whole = now && now.layer < 0, ramp = state.ramp ? "global phase and ramp removed" : "as the engine holds it";
  return [{ image: now, part: "phase", title: `object phase${whole ? "s of all slices, added" : named(now)} · ${ramp}` }, { image: now, part: "amplitude", title: `object amplitude${whole ? "s of all slices, multiplied" : named(now)}` }];
}

// What a layer is called: a mode with its share of the power, or a slice of a thick object with its depth.
export function layerName(image, layer) {
  const { slices, layers, depths, power } = image, share = (k) => `${(100 * power[k]).toFixed(power[k] < 0.0995 ? 1 : 0)} %`;
  if (slices === 1) return `layer ${layer + 1}: ${share(layer)}`;
  const several = layers > slices, mode = layer < 0 ? -1 - layer : Math.floor(layer / slices), of = several ? `mode ${mode + 1}, ` : "";
  return layer < 0 ? `${of}all slices together` : `${of}slice ${(layer % slices) + 1} of ${slices}, ${length(depths[layer % slices])} deep`;
}

export function draw() {
  const { picture, pinned } = state;
  if (!picture) return;
  shown.now = layerOf(picture, "object", state.object, state.layer);
  if (!shown.now) { for (const view of views) view.title.textContent = `object ${view.number ? "amplitude" : "phase"} · no frame yet`; return; }
  shown.before = pinned && state.compare !== "off" ? layerOf(pinned, "object", state.object, state.layer) : null;
  if (state.compare === "difference" && shown.before) {
    const key = [picture, pinned, `${state.object} ${state.layer}`];
    if (!key.every((part, k) => part === compared[k])) {
      shown.difference = differenceOf(shown.before, shown.now);
      shown.why = shown.difference ? "" : "not to be compared: their pixels differ in size";
      compared = key;
    }
  }
  covered = extentOf(shown.now);
  viewport.fit(covered, views[0].box.clientWidth ? views[0].box : views[1].box);
  for (const [k, wanted] of plan().entries()) paint(views[k], wanted);
  placeAll();
}

function paint(view, { image, part, kind, title }) {
  view.title.textContent = title;
  view.drawn = image ? { image, part, kind } : null;
  view.image.hidden = !image;
  if (!image) return;
  const together = state.compare !== "off" && shown.before;
  const weak = part === "phase" && kind !== "difference" && state.ramp && !together ? weakPhase(image) : null;
  const contrast = state.contrast[part] || (together && part === "amplitude" ? [shown.now.low, shown.now.high] : weak ? [-weak, weak] : null);
  if (kind === "difference") {
    const size = spreadOf(image[part]);
    paintDifference(view.image, image, image[part], size);
    legends.bar(view.legend, diverging, [short(-size), "0", part === "phase" ? `${short(size)} rad` : short(size)]);
    view.size = size;
  } else {
    paintPart(view.image, image, part, { contrast, ramp: state.ramp });
    if (part === "phase" && !contrast) legends.wheel(view.legend, (t) => cyclic(t + 0.5), false, view.box.clientWidth < 420 ? 72 : 92);
    else {
      const [low, high] = contrast || [image.low, image.high];
      legends.bar(view.legend, grey, [low, (low + high) / 2, high].map((v, k) => v.toFixed(2) + (k === 2 && part === "phase" ? " rad" : "")));
    }
  }
  view.cover.hidden = !(state.coverage && image.seen);
  view.seen.hidden = view.cover.hidden;
  if (!view.cover.hidden) { paintCoverage(view.cover, image); legends.strip(view.seen, rising, ["0", "coverage", "100 %"], 150); }
}

function placeAll() {
  document.body.dataset.moved = viewport.fitted ? "no" : "yes";
  for (const view of views) {
    if (!view.drawn) continue;
    const { image } = view.drawn, { zoom } = viewport;
    for (const canvas of [view.image, view.cover]) {
      canvas.style.transform = `translate(${(image.offset[1] - 0.5 - viewport.x) * zoom}px, ${(image.offset[0] - 0.5 - viewport.y) * zoom}px) scale(${zoom})`;
    }
    legends.scale(view.scale, view.box, zoom, image.pixel);
    mark(view);
  }
}

// Line, rectangle, and the place of the frame that is looked at.
function mark(view) {
  const { marks, box } = view, ratio = window.devicePixelRatio || 1;
  marks.width = Math.round(box.clientWidth * ratio); marks.height = Math.round(box.clientHeight * ratio);
  const context = marks.getContext("2d"), at = ([y, x]) => viewport.to(box, y, x).reverse();
  context.scale(ratio, ratio); context.lineJoin = "round"; context.font = "12px system-ui, sans-serif";
  const stroke = (path) => { for (const [colour, width] of [["rgba(0, 0, 0, .8)", 4], ["#ffd23f", 1.8]]) { context.strokeStyle = colour; context.lineWidth = width; context.beginPath(); path(); context.stroke(); } };
  const write = (text, x, y) => {
    const wide = context.measureText(text).width, left = Math.min(Math.max(4, x), Math.max(4, box.clientWidth - wide - 8)), top = Math.min(Math.max(16, y), box.clientHeight - 6);
    context.fillStyle = "rgba(0, 0, 0, .7)"; context.fillRect(left - 3, top - 12, wide + 6, 16); context.fillStyle = "#ffd23f"; context.fillText(text, left, top);
  };
  const pixel = view.drawn.image.pixel;
  if (state.line) {
    const [from, to] = state.line.map(at), long = Math.hypot(...state.line[0].map((v, k) => (v - state.line[1][k]) * (pixel ? pixel[k] : 1)));
    stroke(() => { context.moveTo(...from); context.lineTo(...to); });
    stroke(() => { context.arc(...from, 4, 0, 7); });
    write(distance(long, pixel ? 1 : null), to[0] + 8, to[1] - 6);
  }
  if (state.box) {
    const [from, to] = state.box.map(at), sides = [0, 1].map((k) => Math.abs(state.box[1][k] - state.box[0][k]) * (pixel ? pixel[k] : 1));
    stroke(() => context.rect(Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1])));
    write(sides.map((side) => distance(side, pixel ? 1 : null)).join(" × "), Math.min(from[0], to[0]), Math.min(from[1], to[1]) - 6);
  }
  if (state.frame && state.frame.position && !isQuickLook(view.drawn.image.name)) {
    const [x, y] = at(state.frame.position), reach = ((state.frame.side || 0) / 2) * viewport.zoom;
    stroke(() => { context.moveTo(x - 7, y); context.lineTo(x + 7, y); context.moveTo(x, y - 7); context.lineTo(x, y + 7); });
    if (reach > 10) stroke(() => context.rect(x - reach, y - reach, 2 * reach, 2 * reach));
  }
}

// What lies at a lattice point, as text; null: nothing there.
export function readAt(view, at) {
  if (!at || !view.drawn) return "";
  const { image, part, kind } = view.drawn, y = Math.round(at[0]) - image.offset[0], x = Math.round(at[1]) - image.offset[1], where = place(at[0], at[1], image.pixel);
  if (y < 0 || x < 0 || y >= image.height || x >= image.width) return where;
  const k = y * image.width + x;
  if (kind === "difference") return Number.isNaN(image[part][k]) ? `${where} · not in both` : `${where} · phase ${image.phase[k].toFixed(3)} rad · amplitude ${image.amplitude[k].toFixed(3)} (differences)`;
  const coverage = image.seen ? ` · coverage ${((100 * image.seen[k]) / 255).toFixed(0)} %` : "";
  if (!visible(image, k)) return `${where}${coverage}`;
  const phase = (state.ramp ? phaseAt : rawPhaseAt)(image, k);
  return `${where} · phase ${phase.toFixed(3)} rad · amplitude ${amplitudeAt(image, k).toFixed(3)}${coverage}`;
}

// `measured` is called when a line or rectangle was drawn or is being drawn.
export function listen(measured) {
  for (const view of views) {
    gestures(view.box, viewport, {
      drag(stage, from, to) {
        const what = { profile: "line", roi: "box" }[state.tool];
        if (!what) return false;
        if (stage === "move" || stage === "end") { state[what] = [from, to]; placeAll(); measured(stage === "end"); }
        return true;
      },
      hover: (at) => { $("readout").textContent = readAt(view, at); },
    });
    view.box.addEventListener("focus", () => { $("readout").textContent = readAt(view, [viewport.y, viewport.x]); });
    new ResizeObserver(() => { if (covered) viewport.fit(covered, views[0].box.clientWidth ? views[0].box : views[1].box); placeAll(); }).observe(view.box);
  }
}
export const redraw = placeAll;
export const centre = () => { $("readout").textContent = readAt(views.find((view) => view.box.clientWidth) || views[0], [viewport.y, viewport.x]); };
export const boxOf = () => (views[0].box.clientWidth ? views[0].box : views[1].box);
export const contrastFrom = (figures) => change({ contrast: Object.fromEntries(["amplitude", "phase"].map((part) => [part, figures[part] && figures[part].max > figures[part].min ? [figures[part].min, figures[part].max] : null])) });
