// Numbers with their units, as a person reads them.
const PREFIXES = [[1e-3, "mm"], [1e-6, "µm"], [1e-9, "nm"], [1e-10, "Å"], [1e-12, "pm"]];

export function length(metres, digits = 3) {
  const size = Math.abs(metres);
  if (!size) return "0 nm";
  const [unit, name] = PREFIXES.find(([u]) => size >= 0.9995 * u) || PREFIXES[PREFIXES.length - 1];
  return `${+(metres / unit).toPrecision(digits)} ${name}`;
}
// A length in object pixels: metres where the pixel is known.
export const distance = (pixels, pixel, digits = 3) => (pixel ? length(pixels * pixel, digits) : `${+pixels.toPrecision(digits)} px`);
export function area(pixels, pixel) {
  if (!pixel) return `${pixels} px²`;
  const square = pixels * pixel[0] * pixel[1];
  return square >= 0.995e-14 ? `${+(square * 1e12).toPrecision(3)} µm²` : `${+(square * 1e18).toPrecision(3)} nm²`;
}
// What places on the sample are told in: always the same for one pixel, so that the digits do not jump. [metres, name]
export const unitOf = (pixel) => (Math.min(...pixel) < 5e-10 ? [1e-10, "Å"] : [1e-6, "µm"]);
const steady = (value, digits) => { const text = value.toFixed(digits); return Number(text) ? text : text.replace("-", ""); };
export const place = (y, x, pixel) => (pixel ? [["y", y, 0], ["x", x, 1]].map(([axis, v, k]) => `${axis} ${steady((v * pixel[k]) / unitOf(pixel)[0], 3)} ${unitOf(pixel)[1]}`).join(", ") : `y ${y.toFixed(1)} px, x ${x.toFixed(1)} px`);
export const seconds = (s) => (s < 10 ? `${s.toFixed(1)} s` : s < 600 ? `${s.toFixed(0)} s` : s < 36000 ? `${(s / 60).toFixed(0)} min` : `${(s / 3600).toFixed(0)} h`);
export const short = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(4)));
export const clock = (ns) => new Date(ns / 1e6).toLocaleTimeString();
export const ago = (ns) => `${seconds(Math.max(0, Date.now() / 1000 - ns / 1e9))} ago`;
