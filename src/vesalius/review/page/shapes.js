// Outlines on slices and surfaces in 3-D of masks: of the models, of the other reader, of the one being drawn.

import { PLANES } from "./mask.js";

/** The part of a mask that holds something: where it starts, its size, its voxels; null where it is empty. */
export function crop(data, dims) {
  const low = [...dims];
  const high = [-1, -1, -1];
  let count = 0;
  for (let z = 0, i = 0; z < dims[2]; z++) {
    for (let y = 0; y < dims[1]; y++) {
      for (let x = 0; x < dims[0]; x++, i++) {
        if (!data[i]) continue;
        count++;
        if (x < low[0]) low[0] = x;
        if (x > high[0]) high[0] = x;
        if (y < low[1]) low[1] = y;
        if (y > high[1]) high[1] = y;
        if (z < low[2]) low[2] = z;
        if (z > high[2]) high[2] = z;
      }
    }
  }
  if (!count) return null;
  const size = high.map((at, axis) => at - low[axis] + 1);
  const values = new Uint8Array(size[0] * size[1] * size[2]);
  for (let z = 0, to = 0; z < size[2]; z++) {
    for (let y = 0; y < size[1]; y++, to += size[0]) {
      const from = low[0] + dims[0] * (low[1] + y + dims[1] * (low[2] + z));
      for (let x = 0; x < size[0]; x++) values[to + x] = data[from + x] ? 1 : 0;
    }
  }
  return { low, size, values, count };
}

/** A place to look first: on the axial slice where a mask is largest, its voxel nearest to the middle of it there. */
export function centre({ low, size, values }) {
  const area = size[0] * size[1];
  const sums = new Float64Array(size[2]);
  for (let i = 0; i < values.length; i++) sums[Math.floor(i / area)] += values[i];
  const z = sums.indexOf(Math.max(...sums));
  const members = [];
  for (let i = 0; i < area; i++) if (values[z * area + i]) members.push([i % size[0], Math.floor(i / size[0])]);
  const [x, y] = [0, 1].map((axis) => members.reduce((sum, at) => sum + at[axis], 0) / members.length);
  const away = (at) => Math.hypot(at[0] - x, at[1] - y);
  const nearest = members.reduce((best, at) => (away(at) < away(best) ? at : best));
  return [low[0] + nearest[0], low[1] + nearest[1], low[2] + z];
}

/**
 * Line segments [u0, v0, u1, v1, ...] (voxels) around a cropped mask on slice `at` of a plane: marching squares, which
 * cut the corners that pixels have.
 */
export function outline(part, plane, at) {
  const { u, v, w } = PLANES[plane];
  const steps = [1, part.size[0], part.size[0] * part.size[1]];
  const across = at - part.low[w];
  if (across < 0 || across >= part.size[w]) return [];
  const value = (i, j) =>
    i < 0 || j < 0 || i >= part.size[u] || j >= part.size[v]
      ? 0
      : part.values[i * steps[u] + j * steps[v] + across * steps[w]];
  const found = [];
  for (let j = -1; j < part.size[v]; j++) {
    for (let i = -1; i < part.size[u]; i++) {
      const kind = value(i, j) | (value(i + 1, j) << 1) | (value(i + 1, j + 1) << 2) | (value(i, j + 1) << 3);
      if (kind === 0 || kind === 15) continue;
      const [left, top] = [part.low[u] + i, part.low[v] + j];
      const middles = [[left + 0.5, top], [left + 1, top + 0.5], [left + 0.5, top + 1], [left, top + 0.5]];
      for (const [from, to] of SEGMENTS[kind]) found.push(...middles[from], ...middles[to]);
    }
  }
  return found;
}

/** Which of a square's four corners are inside -> pairs of sides (top, right, bottom, left) that a line joins. */
const SEGMENTS = [
  [], [[3, 0]], [[0, 1]], [[3, 1]], [[1, 2]], [[3, 0], [1, 2]], [[0, 2]], [[3, 2]],
  [[2, 3]], [[2, 0]], [[0, 1], [2, 3]], [[2, 1]], [[1, 3]], [[1, 0]], [[0, 3]], [],
];

const MOST = 1.5e6; // voxels of which a surface is made; larger ones are thinned out first

/**
 * The surface of a cropped mask in mm: surface nets. Each cell that the border passes holds one vertex, the mean of
 * where its edges are cut; faces join the four cells around a cut edge. Then some steps of Taubin's smoothing, which
 * takes the stairs off and keeps the volume.
 */
export function surface(part, affine, { rounds = 8 } = {}) {
  const every = Math.max(1, Math.ceil(Math.cbrt(part.values.length / MOST)));
  const { values, size } = padded(part, every);
  const steps = [1, size[0], size[0] * size[1]];
  const corners = CORNERS.map((corner) => corner.reduce((sum, at, axis) => sum + at * steps[axis], 0));
  const vertex = new Int32Array(values.length).fill(-1); // of the cell that starts at a voxel
  const points = [];
  const faces = [];
  const quad = (a, b, c, d, flip) => faces.push(...(flip ? [a, c, b, a, d, c] : [a, b, c, a, c, d]));
  for (let z = 0; z + 1 < size[2]; z++) {
    for (let y = 0; y + 1 < size[1]; y++) {
      for (let x = 0; x + 1 < size[0]; x++) {
        const here = x + steps[1] * y + steps[2] * z;
        let inside = 0;
        for (let k = 0; k < 8; k++) inside += values[here + corners[k]];
        if (inside === 0 || inside === 8) continue;
        const mean = [0, 0, 0];
        let cuts = 0;
        for (const [a, b] of EDGES) {
          if (values[here + corners[a]] === values[here + corners[b]]) continue;
          for (let axis = 0; axis < 3; axis++) mean[axis] += (CORNERS[a][axis] + CORNERS[b][axis]) / 2;
          cuts++;
        }
        vertex[here] = points.length / 3;
        for (const [axis, base] of [x, y, z].entries()) {
          points.push(part.low[axis] + every * (base - 1 + mean[axis] / cuts));
        }
        // The three edges that end in this voxel; the four cells around each are known by now.
        const one = values[here];
        const at = (dx, dy, dz) => vertex[here - dx - dy * steps[1] - dz * steps[2]];
        if (one !== values[here + 1]) quad(at(0, 1, 1), at(0, 0, 1), at(0, 0, 0), at(0, 1, 0), !one);
        if (one !== values[here + steps[1]]) quad(at(1, 0, 1), at(1, 0, 0), at(0, 0, 0), at(0, 0, 1), !one);
        if (one !== values[here + steps[2]]) quad(at(1, 1, 0), at(0, 1, 0), at(0, 0, 0), at(1, 0, 0), !one);
      }
    }
  }
  smooth(points, faces, rounds);
  const placed = new Float32Array(points.length);
  for (let i = 0; i < points.length; i += 3) {
    for (const row of [0, 1, 2]) {
      const [a, b, c, d] = affine[row];
      placed[i + row] = a * points[i] + b * points[i + 1] + c * points[i + 2] + d;
    }
  }
  return { points: placed, faces: new Uint32Array(faces) };
}

/** Every n-th voxel, within a border of zeros. */
function padded(part, every) {
  const inner = part.size.map((count) => Math.ceil(count / every));
  const size = inner.map((count) => count + 2);
  const values = new Uint8Array(size[0] * size[1] * size[2]);
  for (let z = 0; z < inner[2]; z++) {
    for (let y = 0; y < inner[1]; y++) {
      const from = part.size[0] * every * (y + part.size[1] * z);
      const to = 1 + size[0] * (y + 1 + size[1] * (z + 1));
      for (let x = 0; x < inner[0]; x++) values[to + x] = part.values[from + every * x];
    }
  }
  return { values, size };
}

const CORNERS = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]];
const EDGES = [[0, 1], [2, 3], [4, 5], [6, 7], [0, 2], [1, 3], [4, 6], [5, 7], [0, 4], [1, 5], [2, 6], [3, 7]];

function smooth(points, faces, rounds) {
  const count = points.length / 3;
  for (let round = 0; round < 2 * rounds; round++) {
    const factor = round % 2 ? -0.53 : 0.5; // in, then out again (Taubin 1995)
    const sums = new Float64Array(points.length);
    const shares = new Uint16Array(count);
    for (let f = 0; f < faces.length; f += 3) {
      for (let k = 0; k < 3; k++) {
        const [from, to] = [faces[f + k], faces[f + ((k + 1) % 3)]];
        for (let axis = 0; axis < 3; axis++) sums[3 * from + axis] += points[3 * to + axis];
        shares[from]++;
      }
    }
    for (let i = 0; i < count; i++) {
      if (!shares[i]) continue;
      for (let axis = 0; axis < 3; axis++) {
        const at = 3 * i + axis;
        points[at] += factor * (sums[at] / shares[i] - points[at]);
      }
    }
  }
}
