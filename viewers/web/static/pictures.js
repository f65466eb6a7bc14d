// What the pixels of a picture mean: layers with their values, coverage and place, whatever picture they come from.
const TURN = (2 * Math.PI) / 256;
const VISIBLE = 26; // coverage codes below: less than a tenth of the peak, not drawn

export const namesOf = (picture, kind) => Object.keys(picture.header[kind]);

// One layer of a probe or object: {amplitude, phase, seen, height, width, offset, pixel, ramp, low, high, power, layers, name}.
export function layerOf(picture, kind, name, layer) {
  const names = namesOf(picture, kind);
  if (!names.length) return null;
  const chosen = names.includes(name) ? name : names[0], about = picture.header[kind][chosen];
  const amplitude = picture.arrays[`${kind}/${chosen}/amplitude`], phase = picture.arrays[`${kind}/${chosen}/phase`];
  const [layers, height, width] = amplitude.shape, k = Math.min(Math.max(0, layer), layers - 1), size = height * width;
  const seen = kind === "object" ? picture.arrays[`coverage/${chosen}`] : null, [low, high] = about.limits[k];
  return {
    amplitude: amplitude.data.subarray(k * size, (k + 1) * size), phase: phase.data.subarray(k * size, (k + 1) * size),
    seen: seen ? seen.data : null, height, width, offset: about.offset, pixel: about.pixel_size_m, ramp: about.ramp,
    low, high, scale: about.scale[k], power: about.power, layers, layer: k, name: chosen,
  };
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

// Size within which all but a hundredth of the values lie.
export function spreadOf(values) {
  const step = Math.max(1, Math.floor(values.length / 20000)), sizes = [];
  for (let k = 0; k < values.length; k += step) if (!Number.isNaN(values[k])) sizes.push(Math.abs(values[k]));
  sizes.sort((a, b) => a - b);
  return sizes.length ? Math.max(1e-6, sizes[Math.floor(0.99 * (sizes.length - 1))]) : 1;
}
