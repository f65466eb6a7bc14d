// What is looked at and how: one value that every part of the page reads, and a word when it has changed.
export const state = {
  picture: null, // {header, arrays, about} as it came
  about: null, // {run, number, oldest, newest, runs} of the stream
  following: true, run: null, // run null: the newest
  object: "", layer: null, probe: "", mode: null, // layer null: the first, or all slices of a thick object; mode null: all of them side by side
  ramp: true, coverage: false, solo: "", // solo: 'amplitude' or 'phase' alone
  contrast: { amplitude: null, phase: null }, // [low, high], null: automatic
  tool: "pan", line: null, box: null, // tools 'profile' and 'roi'; [[y, x], [y, x]] on the lattice
  compare: "off", pinned: null, turn: false, // 'side', 'blink', 'difference'; turn: whether blinking shows the pinned one
  frame: null, scan: "", // frame that is looked at
  me: { role: "view", steering: false },
};

const listeners = [];
export const onChange = (listener) => listeners.push(listener);
export function change(what = {}) {
  Object.assign(state, what);
  for (const listener of listeners) listener();
}
export const $ = (id) => document.getElementById(id);

// An element with its attributes and children; text is text, never markup.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  made.append(...children);
  return made;
}
export const rows = (table, entries) => table.replaceChildren(...entries.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value))));
