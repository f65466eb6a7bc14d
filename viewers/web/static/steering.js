// For operators: what a session may be asked to do, and its parameters that may change. Faults stand as the session gives them.
import * as api from "./api.js";
import { $, element, state } from "./state.js";

const ACTIONS = [
  ["pause", "Pause", "Iterate no further; what arrives is recorded all the same", ""],
  ["resume", "Resume", "Go on with what has come meanwhile", ""],
  ["save", "Save now", "Write the result as it is", ""],
  ["restart", "Restart probe", "Take the starting probe again; the object stays", "Take the starting probe again?"],
  ["end", "End scan", "No further frames: its remaining iterations, its result, then the next scan", "End the scan of the present run?"],
  ["stop", "Stop session", "End the session; what is there is saved", "Stop the whole session?"],
];

export function makeButtons() {
  $("steer-actions").replaceChildren(...ACTIONS.map(([action, label, title, question]) => {
    const button = element("button", { type: "button", title, "data-action": action, class: question ? "grave" : null }, label);
    button.addEventListener("click", () => (question ? confirm(question, label, () => act(action)) : act(action)));
    return button;
  }));
  $("steer-reload").addEventListener("click", load);
}

async function act(action) {
  const says = $("steer-says");
  says.className = ""; says.textContent = `${action} …`;
  try {
    const answer = await api.steer(action);
    says.textContent = `${action}: done${answer ? `: ${answer}` : ""}`;
  } catch (error) { says.className = "fault"; says.textContent = error.message; }
}

function confirm(question, label, then) {
  const dialog = $("confirm");
  $("confirm-question").textContent = question;
  $("confirm-yes").textContent = label;
  dialog.returnValue = "";
  dialog.onclose = () => { if (dialog.returnValue === "yes") then(); };
  dialog.showModal();
}

// Every parameter that may change, with its value and what it may be.
export async function load() {
  if (state.me.role !== "operate") return;
  const says = $("steer-says"), list = $("parameters");
  try {
    const found = await api.steer("steerable", { described: true });
    list.replaceChildren(...found.map(field));
    says.className = ""; says.textContent = "";
  } catch (error) { says.className = "fault"; says.textContent = error.message; }
}

const told = (value) => (value === null ? "None" : typeof value === "object" ? JSON.stringify(value) : String(value));

function field(entry) {
  const id = `p-${entry.path}`, types = entry.types.filter((t) => t !== "NoneType"), optional = entry.types.includes("NoneType"), limits = [entry.lower === null ? "" : `≥ ${entry.lower}`, entry.upper === null ? "" : `≤ ${entry.upper}`].filter(Boolean).join(", ");
  const says = `${types.join(" or ")}${optional ? " or None" : ""}${limits ? `, ${limits}` : ""}`, about = element("small", {}, entry.doc.split(/\n\s*\n/)[0].replace(/\s+/g, " ").trim(), element("i", {}, ` ${says}`)), fault = element("output", { class: "fault", for: id });
  const words = entry.choices || (types.length === 1 && types[0] === "bool" ? [true, false] : null);
  const choices = words && types.length === 1 ? words : null, proposed = words && !choices ? `${id}-words` : null; // words among others are proposed, not all there is
  let input;
  if (choices) {
    const all = optional ? [...choices, null] : choices;
    input = element("select", { id }, ...all.map((value, k) => new Option(told(value), String(k))));
    input.value = String(all.indexOf(entry.value));
    input.read = () => all[Number(input.value)];
    input.put = (value) => { input.value = String(all.indexOf(value)); };
  } else {
    input = element("input", { id, type: "text", autocomplete: "off", spellcheck: "false", list: proposed, inputmode: types.every((t) => t === "int" || t === "float") ? "decimal" : null });
    input.put = (value) => { input.value = told(value); };
    input.put(entry.value);
    input.read = () => {
      const text = input.value.trim();
      if (optional && (text === "" || text === "None")) return null;
      if (types.every((t) => t === "str")) return text;
      if (types.includes("Schedule") || types.includes("str")) { try { return JSON.parse(text); } catch { return text; } }
      try { return JSON.parse(text); } catch { return text; }
    };
  }
  const button = element("button", { type: "submit" }, "Set"), form = element("form", { class: "parameter", "data-path": entry.path }, element("label", { for: id }, entry.path), element("span", { class: "pair" }, input, button), about, fault, ...(proposed ? [element("datalist", { id: proposed }, ...words.map((word) => new Option(word, word)))] : []));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    fault.className = "fault"; fault.textContent = "";
    try {
      const done = await api.steer("set", { path: entry.path, value: input.read() });
      input.put(done.value);
      fault.className = "done"; fault.textContent = `was ${told(done.before)}, is ${told(done.value)}`;
    } catch (error) { fault.textContent = error.message; }
  });
  return form;
}
