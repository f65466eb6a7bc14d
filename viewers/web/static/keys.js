// What the keys do; the help lists them from here.
import { objectsMove } from "./moving.js";
import { $, change, element, state } from "./state.js";

export function listenToKeys({ follow, step, zoom, fit, enlarge, panels, measure, compare }) {
  const alone = (part) => change({ solo: state.solo === part ? "" : part });
  const KEYS = [
    [[" "], "space", "follow the newest, or hold this one", follow],
    [["ArrowLeft"], "←", "older snapshot", () => step(-1)],
    [["ArrowRight"], "→", "newer snapshot", () => step(1)],
    [["+", "="], "+", "zoom in", () => zoom(1.25)],
    [["-", "_"], "−", "zoom out", () => zoom(0.8)],
    [["f"], "f", "fit to the window", fit],
    [["a"], "a", "amplitude alone, or both", () => alone("amplitude")],
    [["p"], "p", "phase alone, or both", () => alone("phase")],
    [["0"], "0", "all modes of the probe", () => change({ mode: null })],
    [[..."123456789"], "1 … 9", "one mode of the probe", (key) => change({ mode: Number(key) - 1 })],
    [["o"], "o", "coverage upon the pictures", () => change({ coverage: !state.coverage })],
    [["l"], "l", "line profile", () => measure.choose("profile")],
    [["r"], "r", "region", () => measure.choose("roi")],
    [["c"], "c", "pin, then: side by side, blink, difference, off", () => { if (!panels.isOpen()) panels.open("compare"); compare.next(); }],
    [["m"], "m", "large scan map; on it ← → go from frame to frame", enlarge],
    [["q"], "q", "quality", () => panels.toggle("quality")],
    [["s"], "s", "steer, for operators", () => { if (!document.querySelector("[data-panel=steer]").hidden) panels.toggle("steer"); }],
    [["e"], "e", "export", () => panels.toggle("export")],
    [["?"], "?", "this help", () => panels.toggle("help")],
    [["Escape"], "Esc", "close the panel, put the tool down, end comparing", () => { if (document.activeElement) document.activeElement.blur(); change({ tool: "pan", compare: "off" }); panels.close(); }],
  ];
  const moves = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
  $("keys").replaceChildren(...[...KEYS.map(([, name, does]) => [name, does]), ["shift and arrows", "move the pictures"]].map(([name, does]) => element("tr", {}, element("th", { scope: "row" }, element("kbd", {}, name)), element("td", {}, does))));
  document.addEventListener("keydown", (event) => {
    const { target, key } = event, typed = target.closest("input:not([type=checkbox]):not([type=range]), select, textarea");
    if (event.ctrlKey || event.altKey || event.metaKey || $("confirm").open || (typed && key !== "Escape")) return;
    if ((key === " " && target.closest("button, a, input")) || (key.startsWith("Arrow") && target.closest("input[type=range]"))) return;
    if (event.shiftKey && moves[key]) { event.preventDefault(); objectsMove(moves[key]); return; }
    const found = KEYS.find(([names]) => names.includes(key));
    if (!found) return;
    event.preventDefault();
    found[3](key);
  });
}
