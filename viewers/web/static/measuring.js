// Profiles along lines and figures of rectangles: plain functions of an image. Places are lattice pixels [y, x].
import { amplitudeAt, phaseAt, rawPhaseAt, visible } from "./pictures.js";

const MOST = 4096;

// Amplitude and phase along a line, a sample a pixel or finer: {distance (pixels), amplitude, phase}; NaN outside. Pixel centres lie
// on whole numbers; between them the complex values are interpolated.
export function profileOf(image, from, to, raw = false) {
  const dy = to[0] - from[0], dx = to[1] - from[1], reach = Math.hypot(dy, dx), n = Math.min(MOST, Math.max(2, Math.ceil(reach) + 1));
  const result = { distance: [], amplitude: [], phase: [] }, phase = raw ? rawPhaseAt : phaseAt;
  for (let i = 0; i < n; i++) {
    const t = i / (n - 1), y = from[0] + t * dy - image.offset[0], x = from[1] + t * dx - image.offset[1];
    const top = Math.floor(y), left = Math.floor(x);
    let real = 0, imaginary = 0, amplitude = 0, total = 0;
    for (const [j, k, weight] of [[top, left, (1 - y + top) * (1 - x + left)], [top, left + 1, (1 - y + top) * (x - left)], [top + 1, left, (y - top) * (1 - x + left)], [top + 1, left + 1, (y - top) * (x - left)]]) {
      if (weight <= 1e-9 || j < 0 || k < 0 || j >= image.height || k >= image.width) continue;
      const at = j * image.width + k;
      if (!visible(image, at)) continue;
      const a = amplitudeAt(image, at), p = phase(image, at);
      real += weight * a * Math.cos(p); imaginary += weight * a * Math.sin(p); amplitude += weight * a; total += weight;
    }
    result.distance.push(t * reach);
    result.amplitude.push(total ? amplitude / total : NaN);
    result.phase.push(total ? Math.atan2(imaginary, real) : NaN);
  }
  return result;
}

// Mean, standard deviation, least, most and median of the covered pixels whose centres lie in a rectangle; their number.
export function figuresOf(image, from, to, raw = false) {
  const bounds = (axis, limit) => {
    const low = Math.min(from[axis], to[axis]) - image.offset[axis], high = Math.max(from[axis], to[axis]) - image.offset[axis];
    return [Math.max(0, Math.ceil(low)), Math.min(limit - 1, Math.floor(high))];
  };
  const [top, bottom] = bounds(0, image.height), [left, right] = bounds(1, image.width), amplitude = [], phase = [];
  const read = raw ? rawPhaseAt : phaseAt;
  for (let y = top; y <= bottom; y++) for (let x = left; x <= right; x++) {
    const k = y * image.width + x;
    if (visible(image, k)) { amplitude.push(amplitudeAt(image, k)); phase.push(read(image, k)); }
  }
  return { pixels: amplitude.length, amplitude: summary(amplitude), phase: summary(phase) };
}

function summary(values) {
  if (!values.length) return null;
  const sorted = Float64Array.from(values).sort(), n = sorted.length, mean = values.reduce((a, b) => a + b, 0) / n;
  const median = n % 2 ? sorted[(n - 1) / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
  return { mean, std: Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / n), min: sorted[0], max: sorted[n - 1], median };
}
