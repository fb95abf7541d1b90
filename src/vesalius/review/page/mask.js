// The mask under the brush: strokes that can be undone, a brush in millimetres, filling between slices.
//
// Voxels lie x fastest, as in the server's files. Nothing here knows about the screen.

/** Plane -> its two axes on the screen and the axis across it. */
export const PLANES = {
  axial: { u: 0, v: 1, w: 2 },
  coronal: { u: 0, v: 2, w: 1 },
  sagittal: { u: 1, v: 2, w: 0 },
};
const DEPTH = 60; // strokes that can be undone

export class Mask {
  constructor(dims, spacing, data) {
    this.dims = dims;
    this.spacing = spacing;
    this.steps = [1, dims[0], dims[0] * dims[1]];
    this.data = data; // of 0 and 1, and from now on the mask's own
    this.base = data.slice(); // before what `fillBetween` would carry on
    this.count = 0;
    for (let i = 0; i < data.length; i++) this.count += data[i];
    this.past = [];
    this.future = [];
    this.stroke = null;
    this.drawn = { axial: new Set(), coronal: new Set(), sagittal: new Set() };
    this.edited = false;
    this.clean();
  }

  /** Forgets which axial slices changed, [low, high]: the screen has them. */
  clean() {
    this.touched = [Infinity, -Infinity];
  }

  flip(index) {
    this.data[index] ^= 1;
    this.count += this.data[index] ? 1 : -1;
    const slice = Math.floor(index / this.steps[2]);
    if (slice < this.touched[0]) this.touched[0] = slice;
    if (slice > this.touched[1]) this.touched[1] = slice;
  }

  get ml() {
    return (this.count * this.spacing[0] * this.spacing[1] * this.spacing[2]) / 1000;
  }

  begin(plane = null) {
    this.stroke = { plane, where: [], slices: new Set() };
  }

  set(index, value) {
    if (this.data[index] === value) return;
    this.flip(index);
    this.stroke.where.push(index);
  }

  /** Ends a stroke; true if it changed something. */
  end() {
    const { plane, where, slices } = this.stroke;
    this.stroke = null;
    if (!where.length) return false;
    // A voxel changes at most once a stroke, so turning the same ones over again takes it back.
    this.past.push(Uint32Array.from(where));
    if (this.past.length > DEPTH) this.past.shift();
    this.future = [];
    this.edited = true;
    if (plane) for (const slice of slices) this.drawn[plane].add(slice);
    return true;
  }

  undo() {
    return this.turn(this.past, this.future);
  }

  redo() {
    return this.turn(this.future, this.past);
  }

  turn(from, to) {
    const where = from.pop();
    if (!where) return false;
    for (const index of where) this.flip(index);
    to.push(where);
    this.edited = this.past.length > 0;
    return true;
  }

  /** Replaces the whole mask by a cropped one (shapes.js), as one stroke: another model's proposal, a file. */
  replace(part) {
    const whole = new Uint8Array(this.data.length);
    if (part) this.rows(part, (from, to, width) => whole.set(part.values.subarray(from, from + width), to));
    this.begin();
    for (let i = 0; i < whole.length; i++) this.set(i, whole[i]);
    return this.end();
  }

  /** Dice with a cropped mask. */
  dice(part) {
    if (!part) return this.count ? 0 : 1;
    let both = 0;
    this.rows(part, (from, to, width) => {
      for (let x = 0; x < width; x++) both += part.values[from + x] & this.data[to + x];
    });
    return (2 * both) / (this.count + part.count);
  }

  /** Calls `each(from, to, width)` for every row of a cropped mask: where it starts there and here. */
  rows({ low, size }, each) {
    for (let z = 0, from = 0; z < size[2]; z++) {
      for (let y = 0; y < size[1]; y++, from += size[0]) {
        each(from, low[0] + this.steps[1] * (low[1] + y) + this.steps[2] * (low[2] + z), size[0]);
      }
    }
  }

  /**
   * A disc in `plane`, or a ball, of `radius` mm around `centre` (voxels); of it only voxels that `takes(index)`.
   * Voxels whose middle is inside are painted, and always the one in the middle.
   */
  stamp(centre, plane, radius, value, { ball = false, takes = () => true } = {}) {
    const { u, v, w } = PLANES[plane];
    const middle = centre.map((at, axis) => Math.min(Math.max(Math.round(at), 0), this.dims[axis] - 1));
    const low = [...middle];
    const high = [...middle];
    for (const axis of ball ? [0, 1, 2] : [u, v]) {
      low[axis] = Math.max(0, Math.ceil(centre[axis] - radius / this.spacing[axis]));
      high[axis] = Math.min(this.dims[axis] - 1, Math.floor(centre[axis] + radius / this.spacing[axis]));
    }
    const dot = (index) => takes(index) && this.set(index, value);
    for (let z = low[2]; z <= high[2]; z++) {
      for (let y = low[1]; y <= high[1]; y++) {
        for (let x = low[0]; x <= high[0]; x++) {
          const at = [x, y, z];
          let away = 0;
          for (const axis of [0, 1, 2]) {
            if (axis !== w || ball) away += ((at[axis] - centre[axis]) * this.spacing[axis]) ** 2;
          }
          if (away <= radius * radius) dot(x + this.steps[1] * y + this.steps[2] * z);
        }
      }
    }
    dot(middle[0] + this.steps[1] * middle[1] + this.steps[2] * middle[2]);
    this.stroke.slices.add(middle[w]);
  }

  /** Stamps from one point to another, close enough to leave no gaps. */
  line(from, to, plane, radius, value, options) {
    const apart = Math.hypot(...[0, 1, 2].map((axis) => (to[axis] - from[axis]) * this.spacing[axis]));
    const step = Math.max(radius / 2, Math.min(...this.spacing) / 2);
    const count = Math.max(1, Math.ceil(apart / step));
    for (let i = 1; i <= count; i++) {
      this.stamp(from.map((at, axis) => at + ((to[axis] - at) * i) / count), plane, radius, value, options);
    }
  }

  /**
   * Carries what was drawn on two slices of `plane` on to those between them: what was added on both is added there,
   * what was erased is erased, each in the shape half-way by signed distances. Where fewer than two slices were drawn
   * on, the gaps between slices that hold something are filled. Returns how many slices changed.
   */
  fillBetween(plane) {
    const drawn = [...this.drawn[plane]].sort((a, b) => a - b);
    const { data, base } = this;
    this.begin();
    const filled = new Set();
    if (drawn.length < 2) this.between(plane, this.filled(plane), (i) => data[i], 1, filled);
    else {
      this.between(plane, drawn, (i) => data[i] & ~base[i], 1, filled);
      this.between(plane, drawn, (i) => base[i] & ~data[i], 0, filled);
    }
    this.end();
    this.drawn[plane].clear();
    this.base.set(this.data);
    return filled.size;
  }

  between(plane, slices, shape, value, filled) {
    const shapes = slices.map((at) => this.slice(plane, at, shape)); // before anything changes
    for (let k = 0; k + 1 < slices.length; k++) {
      const [low, high] = [slices[k], slices[k + 1]];
      if (high - low < 2 || !shapes[k].values.includes(1) || !shapes[k + 1].values.includes(1)) continue;
      const [near, far] = [signedDistance(shapes[k]), signedDistance(shapes[k + 1])];
      for (let at = low + 1; at < high; at++) {
        const part = (at - low) / (high - low);
        const away = (at - low) * this.steps[PLANES[plane].w];
        for (let i = 0; i < near.length; i++) {
          if ((1 - part) * near[i] + part * far[i] < 0) this.set(shapes[k].index(i) + away, value);
        }
        filled.add(at);
      }
    }
  }

  /** The slices of a plane that hold something. */
  filled(plane) {
    const { w } = PLANES[plane];
    const found = new Set();
    for (let i = 0; i < this.data.length; i++) {
      if (this.data[i]) found.add(Math.floor(i / this.steps[w]) % this.dims[w]);
    }
    return [...found].sort((a, b) => a - b);
  }

  /** A slice: values, size, spacing, and where its i-th value lies in the volume. */
  slice(plane, at, shape = (i) => this.data[i]) {
    const { u, v, w } = PLANES[plane];
    const size = [this.dims[u], this.dims[v]];
    const index = (i) => (i % size[0]) * this.steps[u] + Math.floor(i / size[0]) * this.steps[v] + at * this.steps[w];
    const values = new Uint8Array(size[0] * size[1]);
    for (let i = 0; i < values.length; i++) values[i] = shape(index(i));
    return { values, size, spacing: [this.spacing[u], this.spacing[v]], index };
  }
}

/** mm to the border of a slice's mask, negative inside. */
function signedDistance({ values, size, spacing }) {
  const outside = distance(values, 1, size, spacing);
  const inside = distance(values, 0, size, spacing);
  return outside.map((away, i) => Math.sqrt(away) - Math.sqrt(inside[i]));
}

/** Squared mm to the nearest value `to`: lower envelopes of parabolas, rows then columns (Felzenszwalb 2012). */
function distance(values, to, [width, height], [across, down]) {
  const found = Float64Array.from(values, (value) => (value === to ? 0 : 1e12));
  for (let y = 0; y < height; y++) envelope(found, y * width, 1, width, across);
  for (let x = 0; x < width; x++) envelope(found, x, width, height, down);
  return found;
}

function envelope(values, start, step, count, side) {
  const line = Float64Array.from({ length: count }, (_, i) => values[start + i * step]);
  const roots = [0];
  const edges = [-Infinity];
  const meet = (a, b) => (line[b] - line[a]) / (2 * side * side * (b - a)) + (a + b) / 2;
  for (let i = 1; i < count; i++) {
    while (roots.length > 1 && meet(roots.at(-1), i) <= edges.at(-1)) {
      roots.pop();
      edges.pop();
    }
    edges.push(meet(roots.at(-1), i));
    roots.push(i);
  }
  for (let i = 0, k = 0; i < count; i++) {
    while (k + 1 < roots.length && edges[k + 1] < i) k++;
    values[start + i * step] = line[roots[k]] + ((i - roots[k]) * side) ** 2;
  }
}
