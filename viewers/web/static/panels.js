// The panel beside the pictures: one of its sections at a time.
import * as api from "./api.js";
import { $, change, state } from "./state.js";

let opened = "", begins = {};

export function open(name) {
  if (name !== opened && opened) $(`panel-${opened}`).hidden = true;
  opened = name;
  $("side").hidden = !name;
  if (name) $(`panel-${name}`).hidden = false;
  for (const button of document.querySelectorAll("[data-panel]")) button.setAttribute("aria-expanded", String(button.dataset.panel === name));
  if (name && begins[name]) begins[name]();
  change();
}
export const toggle = (name) => open(opened === name ? "" : name);
export const close = () => open("");
export const isOpen = () => Boolean(opened);

export function listen(starts) {
  begins = starts;
  for (const button of document.querySelectorAll("[data-panel]")) button.addEventListener("click", () => toggle(button.dataset.panel));
  $("side-close").addEventListener("click", close);
  $("copy-link").addEventListener("click", copy);
}

export function draw() {
  if ($("panel-export").hidden || !state.picture) return;
  const { run, number } = state.picture.about;
  for (const [id, what, part] of [["phase", "object", "phase"], ["amplitude", "object", "amplitude"], ["probe-phase", "probe", "phase"], ["probe-amplitude", "probe", "amplitude"]]) {
    $(`export-${id}`).href = api.address("api/export.png", { run, number, what, part });
    $(`export-${id}`).download = `${run}_${number}_${what}_${part}.png`;
  }
  $("export-h5").href = api.address("api/export.h5", { run, number });
  $("export-h5").download = `${run}_${number}.h5`;
  $("copy-link").hidden = state.me.role === "operate" && !state.me.link;
}

// What a viewer may open: the link the server gives where this page's own would let others steer.
export function link() {
  const { run, number } = state.picture.about, url = new URL(state.me.link || location.href, location.href);
  url.hash = new URLSearchParams({ run, number }).toString();
  return url.toString();
}

async function copy() {
  const text = link();
  try { await navigator.clipboard.writeText(text); $("copied").textContent = "copied"; } catch { $("copied").textContent = text; }
}
