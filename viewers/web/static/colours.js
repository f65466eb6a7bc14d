// Colours of phases, amplitudes, differences and of what became of frames; all of them for the colour-blind too.

// Cyclic map: two hues that meet in the dark and in the light, so that -π and π look the same.
export const CYCLIC = new Uint8Array(256 * 3);
for (let i = 0; i < 256; i++) {
  const t = (2 * Math.PI * i) / 256, light = 0.5 - 0.46 * Math.cos(t), s = Math.sin(t);
  CYCLIC[3 * i] = 255 * Math.min(1, Math.max(0, light * (1 + 0.12 * s) + 0.2 * Math.max(0, s) * (1 - light)));
  CYCLIC[3 * i + 1] = 255 * Math.min(1, Math.max(0, light * 0.93 - 0.06 * Math.abs(s)));
  CYCLIC[3 * i + 2] = 255 * Math.min(1, Math.max(0, light * (1 - 0.12 * s) + 0.28 * Math.max(0, -s) * (1 - 0.4 * light)));
}

export const cyclic = (t) => { const i = 3 * (Math.floor(256 * (t - Math.floor(t))) % 256); return [CYCLIC[i], CYCLIC[i + 1], CYCLIC[i + 2]]; };
export const grey = (t) => { const v = 255 * Math.min(1, Math.max(0, t)); return [v, v, v]; };

function between(stops, t) {
  const at = Math.min(1, Math.max(0, t)) * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(at)), f = at - k;
  return stops[k].map((v, i) => v + f * (stops[k + 1][i] - v));
}
// Blue below, white at zero, orange above.
export const diverging = (t) => between([[0, 40, 105], [64, 134, 196], [242, 242, 242], [222, 132, 30], [110, 45, 0]], t);
// For counts: dark to light through blue and green (viridis).
export const rising = (t) => between([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], t);

export function hue(h, v) {
  const i = Math.floor(h * 6), f = h * 6 - i, s = 0.85, p = v * (1 - s), q = v * (1 - f * s), t = v * (1 - (1 - f) * s);
  return [[v, t, p], [q, v, p], [p, v, t], [p, q, v], [t, p, v], [v, p, q]][i % 6].map((c) => 255 * c);
}

// 256 colours as the words of an image.
export function palette(colour) {
  const words = new Uint32Array(256);
  for (let k = 0; k < 256; k++) { const [r, g, b] = colour(k / 256); words[k] = (255 << 24) | (Math.floor(b) << 16) | (Math.floor(g) << 8) | Math.floor(r); }
  return words;
}

// What became of frames: Okabe and Ito's colours, and a shape for each kind, so that no colour has to be told from another.
export const KINDS = {
  used: { colour: "#009e73", shape: "dot", says: "used" },
  interpolated: { colour: "#56b4e9", shape: "dot", says: "interpolated" },
  waiting: { colour: "#e69f00", shape: "ring", says: "waiting" },
  awaited: { colour: "#8a8f98", shape: "ring", says: "awaited" },
  excluded: { colour: "#d55e00", shape: "cross", says: "excluded" },
  missing: { colour: "#cc79a7", shape: "plus", says: "lost" },
};
export const kindOf = (state) => ({ received: "waiting", paired: "waiting" })[state] || (state in KINDS ? state : "excluded");
