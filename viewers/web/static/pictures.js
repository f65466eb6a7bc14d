// What the pixels of a picture mean: layers with their values, coverage and place, whatever picture they come from.
const TURN = (2 * Math.PI) / 256;
const WEAK = 0.3; // rad
const VISIBLE = 26; // coverage codes below: less than a tenth of the peak, not drawn

export const namesOf = (picture, kind) => Object.keys(picture.header[kind]);

// Slices of a thick object, one below the other: so many layers are one mode. 1: it is thin.
export const slicesOf = (about) => (about.depths_m || []).length || 1;
const DEEPER = -1; // what `layer` is for the first mode's slices together, one less for the next mode's

// Whether an object is a picture that needed no iteration: its pixels are those of the scan, and no position lies on them.
export const isQuickLook = (name) => name.startsWith("quick look");

// One layer of a probe or object: {amplitude, phase, seen, height, width, offset, pixel, ramp, low, high, power, layers, name}.
// Of a thick object also its slices together (`layer` below 0, or null), as `throughAll` has them.
export function layerOf(picture, kind, name, layer) {
  const names = namesOf(picture, kind);
  if (!names.length) return null;
  const chosen = names.includes(name) ? name : names[0], about = picture.header[kind][chosen], slices = slicesOf(about);
  const amplitude = picture.arrays[`${kind}/${chosen}/amplitude`], phase = picture.arrays[`${kind}/${chosen}/phase`];
  const [layers, height, width] = amplitude.shape, size = height * width, seen = kind === "object" ? picture.arrays[`coverage/${chosen}`] : null;
  const part = (k) => ({
    amplitude: amplitude.data.subarray(k * size, (k + 1) * size), phase: phase.data.subarray(k * size, (k + 1) * size),
    seen: seen ? seen.data : null, height, width, offset: about.offset, pixel: about.pixel_size_m, ramp: about.ramp,
    low: about.limits[k][0], high: about.limits[k][1], scale: about.scale[k], power: about.power, layers, layer: k, name: chosen, slices, depths: about.depths_m || [],
  });
  if (slices === 1 || (layer !== null && layer >= 0)) return part(Math.min(Math.max(0, layer), layers - 1));
  const mode = Math.min(DEEPER - (layer === null ? DEEPER : layer), layers / slices - 1), key = `${chosen} ${mode}`, made = kept.get(picture) || new Map();
  kept.set(picture, made);
  if (!made.has(key)) made.set(key, { ...throughAll(Array.from({ length: slices }, (_, k) => part(mode * slices + k))), layer: DEEPER - mode });
  return made.get(key);
}
const kept = new WeakMap();

// Slices one behind the other as a thin object would be: phases added, amplitudes multiplied. Without the mean phase of what is covered.
function throughAll(parts) {
  const [first] = parts, n = first.height * first.width, turns = new Uint8Array(n), product = new Float32Array(n), phase = new Uint8Array(n), amplitude = new Uint8Array(n);
  let re = 0, im = 0;
  for (let k = 0; k < n; k++) {
    let sum = 128, value = 1;
    for (const part of parts) { sum += part.phase[k] - 128; value *= amplitudeAt(part, k); }
    turns[k] = sum; product[k] = value;
    if (visible(first, k)) { re += Math.cos(TURN * sum); im += Math.sin(TURN * sum); }
  }
  const mean = Math.round(Math.atan2(im, re) / TURN), sample = [], step = Math.max(1, Math.floor(n / 20000));
  for (let k = 0; k < n; k += step) if (visible(first, k)) sample.push(product[k]);
  sample.sort((a, b) => a - b);
  const at = (share) => (sample.length ? sample[Math.round(share * (sample.length - 1))] : 1), low = at(0.005), high = at(0.995) > low ? at(0.995) : low + 1;
  for (let k = 0; k < n; k++) { phase[k] = turns[k] - mean + 128; amplitude[k] = Math.max(0, Math.min(255, Math.round((255 * (product[k] - low)) / (high - low)))); }
  const [a, b, c] = first.ramp, times = parts.length;
  return { ...first, phase, amplitude, low, high, scale: parts.reduce((all, { scale }) => all * scale, 1), ramp: [times * a + (mean - 128) * TURN, times * b, times * c] };
}

export const visible = (image, k) => !image.seen || image.seen[k] >= VISIBLE;
export const amplitudeAt = (image, k) => image.low + ((image.high - image.low) * image.amplitude[k]) / 255;
export const phaseAt = (image, k) => TURN * image.phase[k] - Math.PI;
export const wrapped = (phase) => phase - 2 * Math.PI * Math.floor(phase / (2 * Math.PI) + 0.5);

// The phase as the engine holds it: with the ramp that was removed.
export function rawPhaseAt(image, k) {
  const [a, b, c] = image.ramp;
  return wrapped(phaseAt(image, k) + a + b * Math.floor(k / image.width) + c * (k % image.width));
}

// Rows and columns on the lattice that are covered: [top, bottom, left, right).
export function extentOf(image) {
  const { height, width, offset } = image;
  let top = height, bottom = 0, left = width, right = 0;
  for (let y = 0, k = 0; y < height; y++) for (let x = 0; x < width; x++, k++) if (visible(image, k)) {
    if (y < top) top = y;
    if (y >= bottom) bottom = y + 1;
    if (x < left) left = x;
    if (x >= right) right = x + 1;
  }
  if (bottom <= top) [top, bottom, left, right] = [0, height, 0, width];
  return [top + offset[0], bottom + offset[0], left + offset[1], right + offset[1]];
}

// What two objects differ by, where both are covered, on the lattice of the second: {phase, amplitude, height, width, offset, seen}.
// Phases have their own ramps removed on both sides; NaN where one is not there. Null where they are not to be compared.
export function differenceOf(before, now) {
  const same = (p, q) => (p === null) === (q === null) && (p === null || p.every((v, k) => Math.abs(v - q[k]) < 1e-6 * v));
  if (!same(before.pixel, now.pixel)) return null;
  const { height, width } = now, phase = new Float32Array(height * width).fill(NaN), amplitude = new Float32Array(height * width).fill(NaN);
  const dy = now.offset[0] - before.offset[0], dx = now.offset[1] - before.offset[1];
  for (let y = 0; y < height; y++) {
    const from = y + dy;
    if (from < 0 || from >= before.height) continue;
    for (let x = Math.max(0, -dx), end = Math.min(width, before.width - dx); x < end; x++) {
      const k = y * width + x, j = from * before.width + x + dx;
      if (!visible(now, k) || !visible(before, j)) continue;
      phase[k] = wrapped(TURN * (now.phase[k] - before.phase[j]));
      amplitude[k] = amplitudeAt(now, k) - amplitudeAt(before, j);
    }
  }
  return { phase, amplitude, height, width, offset: now.offset, pixel: now.pixel, seen: null, name: now.name };
}

// Half the range of a phase that hardly turns, to be drawn by itself; null where it turns more than that.
export function weakPhase(image) {
  const n = image.height * image.width, step = Math.max(1, Math.floor(n / 20000)), sizes = [];
  for (let k = 0; k < n; k += step) if (visible(image, k)) sizes.push(Math.abs(phaseAt(image, k)));
  sizes.sort((a, b) => a - b);
  const size = sizes.length ? sizes[Math.floor(0.99 * (sizes.length - 1))] : Math.PI;
  return size < WEAK ? Math.max(size, 2 * TURN) : null;
}

// Size within which all but a hundredth of the values lie.
export function spreadOf(values) {
  const step = Math.max(1, Math.floor(values.length / 20000)), sizes = [];
  for (let k = 0; k < values.length; k += step) if (!Number.isNaN(values[k])) sizes.push(Math.abs(values[k]));
  sizes.sort((a, b) => a - b);
  return sizes.length ? Math.max(1e-6, sizes[Math.floor(0.99 * (sizes.length - 1))]) : 1;
}
