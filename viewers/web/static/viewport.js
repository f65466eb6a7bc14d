// Which part of a lattice is seen, and how large; what shares one moves together. Pixel k reaches from k - 1/2 to k + 1/2.
export class Viewport {
  constructor(changed) { Object.assign(this, { y: 0, x: 0, zoom: 1, fitted: true, changed }); }

  // [top, bottom, left, right) of pixels into a box of so many points, as long as nobody has moved it.
  fit([top, bottom, left, right], box) {
    if (!this.fitted || !box.clientWidth) return;
    this.y = (top + bottom - 1) / 2; this.x = (left + right - 1) / 2;
    this.zoom = 0.95 * Math.min(box.clientWidth / (right - left), box.clientHeight / (bottom - top));
  }
  reset() { this.fitted = true; this.changed(); }
  move(dy, dx) { this.fitted = false; this.y -= dy / this.zoom; this.x -= dx / this.zoom; this.changed(); }
  // Zoom so that what lies under a point of the box stays there.
  scale(factor, box, point = null) {
    const [py, px] = point || [box.clientHeight / 2, box.clientWidth / 2], [y, x] = this.at(box, py, px);
    this.fitted = false;
    this.zoom = Math.min(200, Math.max(1e-3, this.zoom * factor));
    this.y = y - (py - box.clientHeight / 2) / this.zoom; this.x = x - (px - box.clientWidth / 2) / this.zoom;
    this.changed();
  }
  // Lattice coordinates of a point of the box, and back.
  at(box, py, px) { return [this.y + (py - box.clientHeight / 2) / this.zoom, this.x + (px - box.clientWidth / 2) / this.zoom]; }
  to(box, y, x) { return [box.clientHeight / 2 + (y - this.y) * this.zoom, box.clientWidth / 2 + (x - this.x) * this.zoom]; }
}

// Mouse, pen and fingers on a box: wheel and pinch zoom, dragging moves, unless `drag(stage, from, to)` takes it; `tap` and `hover`.
export function gestures(box, viewport, { drag = () => false, tap = () => {}, hover = () => {} } = {}) {
  const fingers = new Map();
  let from = null, taken = false, moved = 0;
  const point = (event) => { const at = box.getBoundingClientRect(); return [event.clientY - at.top, event.clientX - at.left]; };
  box.addEventListener("wheel", (event) => { event.preventDefault(); viewport.scale(Math.exp(-event.deltaY / 400), box, point(event)); }, { passive: false });
  box.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    box.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, point(event));
    if (fingers.size === 1) { from = viewport.at(box, ...point(event)); moved = 0; taken = drag("begin", from, from); }
    else if (taken) { drag("cancel", from, from); taken = false; }
  });
  box.addEventListener("pointermove", (event) => {
    const now = point(event), before = fingers.get(event.pointerId);
    hover(viewport.at(box, ...now));
    if (!before) return;
    const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    fingers.set(event.pointerId, now);
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (others.length) {
      const apart = (p) => Math.max(1, Math.hypot(p[0] - others[0][0], p[1] - others[0][1]));
      viewport.move((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
      viewport.scale(apart(now) / apart(before), box, [(now[0] + others[0][0]) / 2, (now[1] + others[0][1]) / 2]);
    } else if (taken) drag("move", from, viewport.at(box, ...now));
    else if (event.pointerType !== "touch" || !viewport.fitted) viewport.move(now[0] - before[0], now[1] - before[1]); // else the page scrolls
  });
  const up = (event) => {
    if (!fingers.delete(event.pointerId) || fingers.size) return;
    if (event.type === "pointercancel") { if (taken) drag("cancel", from, from); }
    else if (moved < 4) { if (taken) drag("cancel", from, from); tap(viewport.at(box, ...point(event))); }
    else if (taken) drag("end", from, viewport.at(box, ...point(event)));
    taken = false;
  };
  box.addEventListener("pointerup", up);
  box.addEventListener("pointercancel", up);
  box.addEventListener("pointerleave", () => hover(null));
}
