// The hand on the picture: mouse, pen and Space draw, move, zoom and set the window.

import { MASK_COLOUR } from "./over.js";

const COLOURS = { brush: MASK_COLOUR, eraser: "#ff7a70" };

export class Tools {
  /** `changed()` after each stroke; `moved()` when crosshair or plane may have; `windowed(centre, width)` by dragging. */
  constructor(view, { changed, moved, windowed }) {
    Object.assign(this, { view, changed, moved, windowed });
    this.tool = "move";
    this.radius = 6; // mm
    this.ball = false;
    this.limits = null; // [low, high] of the values that may be painted
    this.window = [40, 400];
    this.drag = null;
    this.dabbing = null;
    const over = view.canvases.over;
    over.addEventListener("pointerdown", (event) => this.down(event));
    over.addEventListener("pointermove", (event) => this.move(event));
    over.addEventListener("pointerup", () => this.up());
    over.addEventListener("pointercancel", () => this.up());
    over.addEventListener("pointerleave", () => this.hover(null));
    over.addEventListener("contextmenu", (event) => event.preventDefault());
    over.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  get drawing() {
    return this.tool !== "move";
  }

  options() {
    if (!this.limits) return { ball: this.ball };
    const [low, high] = this.limits;
    const values = this.view.image.values;
    return { ball: this.ball, takes: (index) => values[index] >= low && values[index] <= high };
  }

  select(tool) {
    this.tool = tool;
    this.view.canvases.over.style.cursor = tool === "move" ? "crosshair" : "none";
    this.showBrush(null);
  }

  down(event) {
    if (!this.view.mask) return;
    const hit = this.view.at(event.clientX, event.clientY);
    if (!hit) return;
    event.target.setPointerCapture(event.pointerId);
    this.view.plane = hit.plane;
    const from = [event.clientX, event.clientY];
    if (event.button === 1) this.drag = { kind: "pan", plane: hit.plane, from };
    else if (event.button === 2) this.drag = { kind: "window", from, window: this.window };
    else if (this.drawing) {
      const swapped = event.ctrlKey || event.metaKey;
      const value = (this.tool === "brush") !== swapped ? 1 : 0;
      this.drag = { kind: "draw", plane: hit.plane, last: hit.voxel, value };
      this.view.mask.begin(hit.plane);
      this.view.mask.stamp(hit.voxel, hit.plane, this.radius, value, this.options());
      this.view.maskChanged();
    } else {
      this.drag = { kind: "move", plane: hit.plane };
      this.view.setCursor(hit.voxel);
    }
    this.moved();
    event.preventDefault();
    event.target.focus({ preventScroll: true, focusVisible: false });
  }

  move(event) {
    const hit = this.view.mask && this.view.at(event.clientX, event.clientY);
    this.hover(hit);
    if (!this.drag) return;
    const { kind, plane } = this.drag;
    if (kind === "draw" && hit?.plane === plane) {
      this.view.mask.line(this.drag.last, hit.voxel, plane, this.radius, this.drag.value, this.options());
      this.drag.last = hit.voxel;
      this.view.maskChanged();
    } else if (kind === "move" && hit?.plane === plane) {
      this.view.setCursor(hit.voxel);
      this.moved();
    } else if (kind === "pan") {
      this.view.pan(plane, event.clientX - this.drag.from[0], event.clientY - this.drag.from[1]);
      this.drag.from = [event.clientX, event.clientY];
    } else if (kind === "window") {
      const [centre, width] = this.drag.window;
      const scale = Math.max(width, 1) / 250;
      const right = event.clientX - this.drag.from[0];
      const down = event.clientY - this.drag.from[1];
      this.windowed(centre + down * scale, Math.max(width + right * scale, width / 100));
    }
  }

  up() {
    if (this.drag?.kind === "draw" && this.view.mask.end()) this.changed();
    this.drag = null;
  }

  wheel(event) {
    event.preventDefault();
    const hit = this.view.mask && this.view.at(event.clientX, event.clientY);
    if (!hit) return;
    if (event.ctrlKey) this.view.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15, hit.voxel);
    else {
      this.view.plane = hit.plane;
      this.view.step(hit.plane, 0, 0, event.deltaY < 0 ? 1 : -1);
    }
    this.hover(hit);
    this.moved();
  }

  hover(hit) {
    this.showBrush(this.drawing && hit?.inside ? hit : null);
  }

  showBrush(hit) {
    const brush = hit && { at: hit.voxel, plane: hit.plane, radius: this.radius, colour: COLOURS[this.tool] };
    if (!brush && !this.view.brush) return;
    this.view.brush = brush;
    this.view.over.paint();
  }

  /** Space: draws at the crosshair, and along its way until it is released. */
  dab(repeat) {
    if (repeat || !this.drawing || !this.view.mask) return;
    this.dabbing = this.view.plane;
    this.view.mask.begin(this.dabbing);
    this.dabHere();
  }

  dabHere() {
    if (!this.dabbing) return;
    const value = this.tool === "brush" ? 1 : 0;
    this.view.mask.stamp([...this.view.cursor], this.dabbing, this.radius, value, this.options());
    this.view.maskChanged();
  }

  dabEnd() {
    if (!this.dabbing) return;
    this.dabbing = null;
    if (this.view.mask.end()) this.changed();
  }
}
