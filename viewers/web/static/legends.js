// What colours stand for: a bar with numbers, or a wheel for phases. White on dark glass, over a picture in any mode.
const SCALE = 2, FONT = "11px system-ui, sans-serif";

function sheet(canvas, width, height) {
  canvas.width = SCALE * width; canvas.height = SCALE * height;
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(SCALE, SCALE);
  context.fillStyle = "rgba(10, 12, 16, .62)"; context.fillRect(0, 0, width, height);
  context.font = FONT; context.textBaseline = "middle";
  return context;
}

// colour(t) for t from 0, below, to 1; three labels from below.
export function bar(canvas, colour, labels, height = 150) {
  const measuring = canvas.getContext("2d");
  measuring.font = FONT;
  const context = sheet(canvas, 27 + Math.ceil(Math.max(...labels.map((label) => measuring.measureText(label).width))), height), long = height - 20;
  for (let y = 0; y < long; y++) {
    context.fillStyle = `rgb(${colour(1 - y / (long - 1)).map(Math.round).join()})`;
    context.fillRect(5, 10 + y, 11, 1.2);
  }
  context.fillStyle = "#fff";
  labels.forEach((label, i) => context.fillText(label, 20, 10 + long * (1 - i / (labels.length - 1))));
  canvas.setAttribute("aria-label", `colours from ${labels[0]} to ${labels[labels.length - 1]}`);
}

// The same lying, for a place of its own below pictures.
export function strip(canvas, colour, labels, width = 170) {
  const context = sheet(canvas, width, 32), long = width - 12;
  for (let x = 0; x < long; x++) { context.fillStyle = `rgb(${colour(x / (long - 1)).map(Math.round).join()})`; context.fillRect(6 + x, 4, 1.2, 9); }
  context.fillStyle = "#fff";
  labels.forEach((label, i) => { context.textAlign = ["left", "center", "right"][i]; context.fillText(label, 6 + (long * i) / 2, 23); });
  canvas.setAttribute("aria-label", `colours from ${labels[0]} to ${labels[labels.length - 1]}`);
}

// colour(t, radius) for phases of 2π t; with `full` brightness grows outwards.
export function wheel(canvas, colour, full = false, size = 92) {
  const middle = size / 2, outer = middle - 19, inner = full ? 0 : 0.55 * outer, context = sheet(canvas, size, size);
  const image = context.createImageData(SCALE * size, SCALE * size);
  new Uint32Array(image.data.buffer).fill(0x9e100c0a); // the glass of `sheet`
  for (let y = 0; y < SCALE * size; y++) for (let x = 0; x < SCALE * size; x++) {
    const dy = (y + 0.5) / SCALE - middle, dx = (x + 0.5) / SCALE - middle, r = Math.hypot(dy, dx);
    if (r > outer || r < inner) continue;
    const rgb = colour(Math.atan2(-dy, dx) / (2 * Math.PI), r / outer), at = 4 * (y * SCALE * size + x);
    image.data[at] = rgb[0]; image.data[at + 1] = rgb[1]; image.data[at + 2] = rgb[2]; image.data[at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  context.fillStyle = "#fff"; context.textAlign = "center";
  for (const [text, y, x] of [["0", middle, size - 8], ["π/2", 9, middle], ["±π", middle, 9], ["−π/2", size - 8, middle]]) context.fillText(text, x, y);
  canvas.setAttribute("aria-label", full ? "colour: phase, from 0 on the right counterclockwise; brightness: amplitude" : "colours of phases, 0 on the right, counterclockwise");
}

// A bar of a round length, in the corner of a box whose picture has so many points to a pixel.
export function scale(bar, box, zoom, pixel) {
  const unit = pixel ? pixel[1] : 1, target = (box.clientWidth / 4.5 / zoom) * unit, power = 10 ** Math.floor(Math.log10(target));
  const long = [5, 2, 1].map((s) => s * power).find((l) => l <= target) || power;
  bar.style.width = `${(long / unit) * zoom}px`;
  bar.textContent = pixel ? (long >= 0.999e-6 ? `${+(long * 1e6).toPrecision(2)} µm` : long >= 0.999e-9 ? `${+(long * 1e9).toPrecision(2)} nm` : `${+(long * 1e10).toPrecision(2)} Å`) : `${+long.toPrecision(2)} px`;
}
