// The canvas over the planes, for what should be sharp at any zoom: outlines, crosshair, brush, letters, scale.

import { PLANES } from "./mask.js";
import { outline } from "./shapes.js";

export const MASK_COLOUR = "#35d0a5";
const LETTERS = { axial: "RLAP", coronal: "RLSI", sagittal: "PASI" }; // low u, high u, high v, low v

export class Over {
  constructor(view) {
    this.view = view;
    this.context = view.canvases.over.getContext("2d");
  }

  paint() {
    const { over, planes } = this.view.canvases;
    if (over.width !== planes.width) over.width = planes.width;
    if (over.height !== planes.height) over.height = planes.height;
    const pen = this.context;
    pen.clearRect(0, 0, over.width, over.height);
    if (!this.view.image || !this.view.mask) return;
    for (const plane of Object.keys(PLANES)) {
      const map = this.view.mapping(plane);
      if (!map) continue;
      pen.save();
      pen.beginPath();
      pen.rect(map.left, map.top, map.width, map.height);
      pen.clip();
      for (const layer of this.view.layers) if (layer.shown && layer.part) this.paintLayer(plane, map, layer);
      if (this.view.maskShown !== "off") this.paintMask(plane, map);
      this.paintCross(plane, map);
      if (this.view.brush?.plane === plane) this.paintBrush(plane, map);
      this.paintLetters(plane, map);
      pen.restore();
    }
  }

  stroke(segments, map, colour, width, dash = []) {
    const pen = this.context;
    pen.beginPath();
    for (let i = 0; i < segments.length; i += 4) {
      pen.moveTo(map.a * segments[i] + map.e, map.d * segments[i + 1] + map.f);
      pen.lineTo(map.a * segments[i + 2] + map.e, map.d * segments[i + 3] + map.f);
    }
    pen.setLineDash(dash);
    pen.lineCap = "round";
    pen.lineWidth = width * this.view.density();
    pen.strokeStyle = colour;
    pen.stroke();
    pen.setLineDash([]);
  }

  paintLayer(plane, map, { part, colour, shown, dashed }) {
    const at = this.view.cursor[PLANES[plane].w];
    if (shown === "fill") this.paintFill(plane, map, part, colour, at);
    this.stroke(outline(part, plane, at), map, colour, 1.6, dashed ? [5, 4].map((n) => n * this.view.density()) : []);
  }

  paintFill(plane, map, part, colour, at) {
    const { u, v, w } = PLANES[plane];
    const across = at - part.low[w];
    if (across < 0 || across >= part.size[w]) return;
    const steps = [1, part.size[0], part.size[0] * part.size[1]];
    const picture = new ImageData(part.size[u], part.size[v]);
    const [red, green, blue] = rgb(colour);
    for (let j = 0, to = 0; j < part.size[v]; j++) {
      for (let i = 0; i < part.size[u]; i++, to += 4) {
        if (part.values[i * steps[u] + j * steps[v] + across * steps[w]]) picture.data.set([red, green, blue, 90], to);
      }
    }
    const small = new OffscreenCanvas(part.size[u], part.size[v]);
    small.getContext("2d").putImageData(picture, 0, 0);
    const pen = this.context;
    pen.save();
    pen.imageSmoothingEnabled = false;
    pen.setTransform(map.a, 0, 0, map.d, map.e, map.f);
    pen.drawImage(small, part.low[u] - 0.5, part.low[v] - 0.5);
    pen.restore();
  }

  paintMask(plane, map) {
    const { w } = PLANES[plane];
    const { values, size } = this.view.mask.slice(plane, this.view.cursor[w]);
    const { u, v } = PLANES[plane];
    const part = { low: [0, 0, 0], size: [1, 1, 1], values };
    [part.size[u], part.size[v], part.low[w]] = [...size, this.view.cursor[w]];
    this.stroke(outline(part, plane, this.view.cursor[w]), map, MASK_COLOUR, 2);
  }

  paintCross(plane, map) {
    const { u, v } = PLANES[plane];
    const pen = this.context;
    const dense = this.view.density();
    const x = map.a * this.view.cursor[u] + map.e;
    const y = map.d * this.view.cursor[v] + map.f;
    const gap = 12 * dense;
    pen.lineWidth = dense;
    pen.strokeStyle = plane === this.view.plane ? "rgba(255, 214, 102, 0.55)" : "rgba(255, 214, 102, 0.28)";
    pen.beginPath();
    for (const [x0, y0, x1, y1] of [
      [map.left, y, x - gap, y], [x + gap, y, map.left + map.width, y],
      [x, map.top, x, y - gap], [x, y + gap, x, map.top + map.height],
    ]) {
      pen.moveTo(x0, y0);
      pen.lineTo(x1, y1);
    }
    pen.stroke();
  }

  paintBrush(plane, map) {
    const { u, v } = PLANES[plane];
    const { at, radius, colour } = this.view.brush;
    const pen = this.context;
    pen.beginPath();
    pen.ellipse(
      map.a * at[u] + map.e, map.d * at[v] + map.f,
      Math.abs((map.a * radius) / this.view.image.spacing[u]), Math.abs((map.d * radius) / this.view.image.spacing[v]),
      0, 0, 2 * Math.PI,
    );
    pen.lineWidth = 1.5 * this.view.density();
    pen.strokeStyle = colour;
    pen.stroke();
  }

  paintLetters(plane, map) {
    const pen = this.context;
    const dense = this.view.density();
    const { u, w } = PLANES[plane];
    const size = 12 * dense;
    const [right, down] = [map.left + map.width, map.top + map.height];
    const say = (text, x, y, align, colour = "#8d99a8") => {
      pen.font = `600 ${size}px system-ui, sans-serif`;
      pen.textAlign = align;
      pen.lineWidth = 3 * dense;
      pen.strokeStyle = "rgba(9, 11, 14, 0.85)";
      pen.strokeText(text, x, y);
      pen.fillStyle = colour;
      pen.fillText(text, x, y);
    };
    const pad = 8 * dense;
    if (this.view.placed) {
      const [low, high, top, bottom] = LETTERS[plane];
      const flipped = u === 0; // x is shown from right to left
      say(flipped ? "R" : low, map.left + pad, map.top + map.height / 2 - pad, "left");
      say(flipped ? "L" : high, right - pad, map.top + map.height / 2 - pad, "right");
      say(top, map.left + map.width / 2 + pad, map.top + size + 2 * dense, "left");
      say(bottom, map.left + map.width / 2 + pad, down - pad, "left");
    }
    const active = plane === this.view.plane;
    say(
      `${plane[0].toUpperCase()}${plane.slice(1)}  ${this.view.cursor[w] + 1}/${this.view.image.dims[w]}`,
      map.left + pad, map.top + size + 2 * dense, "left", active ? "#ffd666" : "#8d99a8",
    );
    const unit = [100, 50, 20, 10, 5].find((mm) => (mm / this.view.image.spacing[u]) * Math.abs(map.a) < map.width / 3) ?? 5;
    const long = (unit / this.view.image.spacing[u]) * Math.abs(map.a);
    pen.fillStyle = "#8d99a8";
    pen.fillRect(right - pad - long, down - pad, long, 2 * dense);
    say(`${unit} mm`, right - pad, down - pad - 4 * dense, "right");
    pen.lineWidth = dense;
    pen.strokeStyle = active ? "rgba(255, 214, 102, 0.5)" : "#1d242d";
    pen.strokeRect(map.left + dense / 2, map.top + dense / 2, map.width - dense, map.height - dense);
  }
}

/** "#rrggbb" as numbers. */
export function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}
