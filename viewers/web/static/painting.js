// Pixels of a picture on canvases of the same size as the picture; the screen scales them.
import { CYCLIC, diverging, grey, rising } from "./colours.js";
import { rawPhaseAt, visible } from "./pictures.js";

const words = (colour) => Uint32Array.from({ length: 256 }, (_, k) => { const [r, g, b] = colour(k).map(Math.round); return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; });
const TURNING = words((k) => [CYCLIC[3 * k], CYCLIC[3 * k + 1], CYCLIC[3 * k + 2]]);
const GREY = words((k) => [k, k, k]);
const EITHER = words((k) => diverging(k / 255));
const COVER = words((k) => rising(k / 255));

function sized(canvas, { height, width }) {
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  return [context, image, new Uint32Array(image.data.buffer)];
}

// One part of an object's layer. `contrast` [low, high] or null: amplitudes between the layer's limits, phases all round.
export function paintPart(canvas, image, part, { contrast = null, ramp = true } = {}) {
  const [context, out, pixels] = sized(canvas, image), n = image.height * image.width;
  if (part === "amplitude") {
    const [low, high] = contrast || [image.low, image.high], own = !contrast || (low === image.low && high === image.high);
    const table = own ? GREY : words((k) => grey((image.low + ((image.high - image.low) * k) / 255 - low) / (high - low)));
    for (let k = 0; k < n; k++) pixels[k] = visible(image, k) ? table[image.amplitude[k]] : 0;
  } else {
    const between = (phase) => grey((phase - contrast[0]) / (contrast[1] - contrast[0]));
    const table = contrast ? words((k) => between((2 * Math.PI * k) / 256 - Math.PI)) : TURNING;
    if (ramp) for (let k = 0; k < n; k++) pixels[k] = visible(image, k) ? table[image.phase[k]] : 0;
    else for (let k = 0; k < n; k++) pixels[k] = visible(image, k) ? table[Math.round(((rawPhaseAt(image, k) + Math.PI) * 256) / (2 * Math.PI)) & 255] : 0;
  }
  context.putImageData(out, 0, 0);
}

// Values about zero, between -size and size; nothing where there is no number.
export function paintDifference(canvas, image, values, size) {
  const [context, out, pixels] = sized(canvas, image);
  for (let k = 0; k < values.length; k++) pixels[k] = Number.isNaN(values[k]) ? 0 : EITHER[Math.max(0, Math.min(255, Math.round(127.5 + (127.5 * values[k]) / size)))];
  context.putImageData(out, 0, 0);
}

export function paintCoverage(canvas, image) {
  const [context, out, pixels] = sized(canvas, image);
  if (image.seen) for (let k = 0; k < image.seen.length; k++) pixels[k] = image.seen[k] ? COVER[image.seen[k]] : 0;
  context.putImageData(out, 0, 0);
}

// Modes of a probe in rows of so many, or one; hue(t, v) of phase and amplitude.
export function paintProbe(canvas, layers, hue, columns) {
  const { height, width } = layers[0], wide = width * columns, [context, out] = sized(canvas, { height: height * Math.ceil(layers.length / columns), width: wide });
  layers.forEach((image, number) => {
    const top = Math.floor(number / columns) * height, left = (number % columns) * width;
    for (let y = 0, k = 0; y < height; y++) for (let x = 0; x < width; x++, k++) {
      const rgb = hue((image.phase[k] / 256 + 0.5) % 1, image.amplitude[k] / 255), at = 4 * ((top + y) * wide + left + x);
      out.data[at] = rgb[0]; out.data[at + 1] = rgb[1]; out.data[at + 2] = rgb[2]; out.data[at + 3] = 255;
    }
  });
  context.putImageData(out, 0, 0);
}

// Counts on a logarithmic scale up to `most`; what is masked stays dark red.
export function paintCounts(canvas, { data, shape: [height, width] }, mask, most) {
  const [context, out, pixels] = sized(canvas, { height, width }), unit = 1 / Math.log1p(most), masked = words(() => [90, 20, 30])[0];
  for (let k = 0; k < data.length; k++) pixels[k] = mask && !mask.data[k] ? masked : COVER[Math.max(0, Math.min(255, Math.round(255 * Math.log1p(data[k]) * unit)))];
  context.putImageData(out, 0, 0);
}
