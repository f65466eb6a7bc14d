// What is asked of the server beside the stream of pictures.
import { unpack } from "./wire.js";

const token = new URLSearchParams(location.search).get("token");

// Address of a route with what is asked, and with the token of this page where it has one.
export function address(route, asked = {}) {
  const url = new URL(route, location.href);
  url.hash = "";
  url.search = new URLSearchParams({ ...Object.fromEntries(Object.entries(asked).filter(([, v]) => v !== null && v !== "")), ...(token ? { token } : {}) }).toString();
  return url;
}

// Says why something was refused as the server says it.
async function refusal(response) {
  const text = await response.text();
  try {
    const said = JSON.parse(text), fault = said.fault || said.error || said.detail || said;
    if (typeof fault === "string") return fault;
    if (fault.remedy) return [fault.path, fault.given, fault.remedy].filter(Boolean).join(": ");
  } catch { /* plain text */ }
  return text.slice(0, 300) || `${response.status} ${response.statusText}`;
}

async function asked(url, options) {
  let response;
  try { response = await fetch(url, options); } catch (error) { throw new Error(`the viewer's server does not answer: ${error.message}`); }
  if (!response.ok) throw new Error(await refusal(response));
  return response;
}

export async function me() {
  try { return await (await asked(address("api/me"))).json(); } catch { return { role: "view", steering: false }; }
}
export const ledger = async (run, scan) => unpack(await (await asked(address("api/ledger", { run, scan }))).arrayBuffer());
export const frame = async (run, scan, number) => unpack(await (await asked(address("api/frame", { run, scan, frame: number }))).arrayBuffer());
export async function steer(action, args = {}) {
  const response = await asked(address("api/steer"), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ action, arguments: args }) });
  const said = await response.json();
  if (said && said.fault) throw new Error([said.fault.path, said.fault.given, said.fault.remedy].filter(Boolean).join(": "));
  return said && typeof said === "object" && "value" in said ? said.value : said;
}
