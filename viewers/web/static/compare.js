// Two snapshots: one is pinned, the other is whatever is shown. Both are on one lattice, so they zoom and move together.
import { connect } from "./wire.js";
import { $, change, state } from "./state.js";

const BLINK_MS = 700, PATIENCE_MS = 20000;
let timer = 0;

export const pin = (picture = state.picture) => change({ pinned: picture, compare: picture ? (state.compare === "off" ? "side" : state.compare) : "off" });

// A picture that is kept by the server, over a connection of its own.
export function fetchPicture(run, number) {
  return new Promise((resolve, reject) => {
    let wire = null;
    const end = (done, value) => { clearTimeout(late); setTimeout(() => wire.close()); done(value); };
    const late = setTimeout(() => end(reject, new Error(`snapshot ${number} of ${run} did not come`)), PATIENCE_MS);
    wire = connect({
      about() {},
      state() {},
      error(error) { end(reject, error); },
      picture(picture) { if (picture.about.run === run && (picture.about.number === number || number < picture.about.oldest || number > picture.about.newest)) end(resolve, picture); },
    });
    wire.wish({ run, show: number });
  });
}

export function draw() {
  const { picture, pinned, compare, about } = state;
  for (const button of document.querySelectorAll("[data-compare]")) { button.setAttribute("aria-pressed", String(button.dataset.compare === compare)); button.disabled = !pinned && button.dataset.compare !== "off"; }
  $("pinned-says").textContent = pinned ? `pinned: ${pinned.header.run}, snapshot ${pinned.about.number}, iteration ${pinned.header.iteration}, ${new Date(pinned.header.created_ns / 1e6).toLocaleTimeString()}` : "nothing is pinned";
  $("unpin").disabled = !pinned;
  document.querySelector("[data-panel=compare]").classList.toggle("on", compare !== "off"); // goes on without its panel
  if (about && document.activeElement !== $("pin-run")) {
    const list = $("pin-run"), runs = about.runs;
    if ([...list.options].map((o) => o.value).join("\n") !== runs.join("\n")) { const before = list.value; list.replaceChildren(...runs.map((run) => new Option(run, run))); list.value = runs.includes(before) ? before : picture ? picture.header.run : runs[runs.length - 1]; }
  }
  const wanted = compare === "blink" && pinned;
  if (wanted && !timer) timer = setInterval(() => { if (!document.hidden) change({ turn: !state.turn }); }, matchMedia("(prefers-reduced-motion: reduce)").matches ? 4 * BLINK_MS : BLINK_MS);
  if (!wanted && timer) { clearInterval(timer); timer = 0; state.turn = false; }
}

export function listen() {
  for (const button of document.querySelectorAll("[data-compare]")) button.addEventListener("click", () => change({ compare: button.dataset.compare }));
  $("pin").addEventListener("click", () => pin());
  $("unpin").addEventListener("click", () => pin(null));
  $("pin-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    $("pin-fault").textContent = "";
    const number = Number($("pin-number").value);
    try {
      const picture = await fetchPicture($("pin-run").value, number), { about } = picture;
      pin(picture);
      if (about.number !== number) $("pin-fault").textContent = `snapshot ${number} is not kept, ${about.oldest} to ${about.newest} are: ${about.number} is pinned`;
    } catch (error) { $("pin-fault").textContent = error.message; }
  });
}

const ORDER = ["side", "blink", "difference", "off"];
// The next way of comparing; pins what is shown where nothing is pinned.
export const next = () => (state.pinned ? change({ compare: ORDER[(ORDER.indexOf(state.compare) + 1) % 4] }) : pin());
