// Curves on a canvas that fills its place, sharp on any screen and in the page's colours.
export function colourOf(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

export function surface(canvas) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale); context.font = "11px system-ui, sans-serif"; context.textBaseline = "alphabetic";
  return [context, width, height];
}

export function say(canvas, text) {
  const [context] = surface(canvas);
  context.fillStyle = colourOf("--dim"); context.fillText(text, 12, 22);
  canvas.setAttribute("aria-label", text);
}

function marks(low, high, log) {
  if (log) {
    const all = [], steps = high - low > 2.5 ? [1] : high - low > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], skip = Math.ceil((high - low) / 6);
    for (let e = Math.floor(low); e <= Math.ceil(high); e++) if (!(((e % skip) + skip) % skip)) for (const m of steps) {
      const at = Math.log10(m) + e;
      if (at >= low && at <= high) all.push([at, e >= 4 || e < -3 ? `${m}e${e}` : String(+(m * 10 ** e).toPrecision(2))]);
    }
    return all;
  }
  const span = high - low || 1, power = 10 ** Math.floor(Math.log10(span / 4)), step = [1, 2, 5, 10].map((m) => m * power).find((s) => span / s <= 5), all = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * span; k++) all.push([k * step, String(+(k * step).toPrecision(6))]);
  return all;
}

// series: {name, colour, x, y, right (its own axis on the right), dash, dots}; options: log, xLog, xLabel, low, high, labels (name: text of the axis).
// Returns, for tests and read-outs, the span of the axes.
export function curves(canvas, series, { log = false, xLabel = "", yLabel = "", rightLabel = "", low = null, high = null, vertical = null } = {}) {
  const [context, width, height] = surface(canvas), shown = series.filter((s) => s.y.some((v) => Number.isFinite(v) && (!log || v > 0)));
  if (!shown.length) { say(canvas, "not measured yet"); return null; }
  const right = shown.some((s) => s.right), left = 48, edge = right ? 46 : 10, bottom = 34, top = 8;
  const span = (chosen) => {
    let least = Infinity, most = -Infinity;
    for (const s of chosen) for (const v of s.y) if (Number.isFinite(v) && (!log || v > 0)) { const t = log ? Math.log10(v) : v; if (t < least) least = t; if (t > most) most = t; }
    const pad = most > least ? 0.05 * (most - least) : log ? 0.1 : Math.abs(most) * 0.05 || 0.5;
    return [low === null ? least - pad : low, high === null ? most + pad : high];
  };
  const axes = [shown.filter((s) => !s.right), shown.filter((s) => s.right)].map((chosen) => (chosen.length ? span(chosen) : null));
  let first = Infinity, last = -Infinity;
  for (const s of shown) { first = Math.min(first, s.x[0]); last = Math.max(last, s.x[s.x.length - 1]); }
  if (last <= first) last = first + 1;
  const px = (x) => left + ((width - left - edge) * (x - first)) / (last - first);
  const py = (v, [l, h]) => top + (height - top - bottom) * (1 - ((log ? Math.log10(v) : v) - l) / (h - l));
  context.strokeStyle = colourOf("--line"); context.lineWidth = 1; context.fillStyle = colourOf("--dim");
  axes.forEach((axis, side) => {
    if (!axis) return;
    for (const [at, text] of marks(...axis, log)) {
      const y = py(log ? 10 ** at : at, axis);
      if (!side || !axes[0]) { context.beginPath(); context.moveTo(left, y); context.lineTo(width - edge, y); context.stroke(); }
      context.textAlign = side ? "left" : "right";
      context.fillText(text, side ? width - edge + 4 : left - 5, y + 4);
    }
  });
  context.textAlign = "center";
  const across = marks(first, last, false).filter(([at]) => xLabel !== "iteration" || Number.isInteger(at)).filter((_, k, all) => all.length < 2 || (width - left - edge) / all.length > 34 || k % 2 === 0);
  for (const [at, text] of across) context.fillText(text, Math.min(px(at), width - context.measureText(text).width / 2 - 1), height - bottom + 13);
  if (vertical !== null && vertical >= first && vertical <= last) {
    context.strokeStyle = colourOf("--dim"); context.setLineDash([2, 3]); context.beginPath(); context.moveTo(px(vertical), top); context.lineTo(px(vertical), height - bottom); context.stroke(); context.setLineDash([]);
  }
  for (const s of shown) {
    const axis = axes[s.right ? 1 : 0];
    context.save(); context.beginPath(); context.rect(left, top - 2, width - left - edge, height - top - bottom + 4); context.clip();
    context.strokeStyle = s.colour; context.lineWidth = 1.8; context.setLineDash(s.dash || []); context.beginPath();
    let drawn = false;
    for (let k = 0; k < s.y.length; k++) {
      const v = s.y[k];
      if (!Number.isFinite(v) || (log && v <= 0)) { drawn = false; continue; }
      if (drawn) context.lineTo(px(s.x[k]), py(v, axis)); else { context.moveTo(px(s.x[k]), py(v, axis)); context.lineTo(px(s.x[k]) + 0.1, py(v, axis)); }
      drawn = true;
    }
    context.stroke(); context.restore();
  }
  context.setLineDash([]); context.textAlign = "left";
  const words = shown.map((s) => (s.right && rightLabel ? `${s.name} (${rightLabel})` : !s.right && yLabel ? `${s.name} (${yLabel})` : s.name));
  if (8 + words.reduce((sum, word) => sum + context.measureText(word).width + 30, 0) > width) context.font = "9px system-ui, sans-serif";
  const tight = context.font.startsWith("9"), long = tight ? 8 : 14;
  let at = tight ? 3 : 8;
  shown.forEach((s, k) => {
    context.strokeStyle = s.colour; context.lineWidth = 2.5; context.setLineDash(s.dash || []);
    context.beginPath(); context.moveTo(at, height - 9); context.lineTo(at + long, height - 9); context.stroke(); context.setLineDash([]);
    context.fillStyle = colourOf("--text"); context.fillText(words[k], at + long + 4, height - 5); at += context.measureText(words[k]).width + long + (tight ? 9 : 16);
  });
  if (xLabel) {
    const wide = context.measureText(xLabel).width;
    if (at + wide < width - 6) { context.fillStyle = colourOf("--dim"); context.fillText(xLabel, width - wide - 8, height - 5); }
  }
  const ends = shown.map((s) => `${s.name} ${[...s.y].reverse().find(Number.isFinite)}`).join(", ");
  canvas.setAttribute("aria-label", `${ends}${xLabel ? `, along ${xLabel}` : ""}`);
  return { first, last, axes };
}
