// What goes to the server and comes back: JSON, and voxels as NIfTI.
//
// The server sends every volume with its axes right, anterior, superior, voxels from byte 352, and a header that says
// nothing else (vesalius/review/edits.py); masks go back the same way.

const VOXELS = 352;

/** An answer that is not 2xx: `status`, the server's message, and what else it said. */
export class Refusal extends Error {
  constructor(status, answer) {
    super(answer.message ?? answer.detail ?? `the server answered ${status}`);
    this.status = status;
    this.answer = answer;
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Refusal(0, { message: "the server does not answer; is vesalius review still running?" });
  }
  if (response.ok) return response;
  let answer = {};
  try {
    answer = await response.json();
  } catch {
    // a plain-text error has no more to tell
  }
  throw new Refusal(response.status, answer);
}

export const address = (...parts) => "/api/" + parts.map(encodeURIComponent).join("/");

export async function getJSON(...parts) {
  return (await ask(address(...parts))).json();
}

export async function postJSON(value, ...parts) {
  const headers = { "Content-Type": "application/json", "X-Vesalius": "1" };
  return (await ask(address(...parts), { method: "POST", headers, body: JSON.stringify(value) })).json();
}

export async function getBuffer(...parts) {
  return (await ask(address(...parts))).arrayBuffer();
}

/** A uint8 volume: its voxels, x fastest. */
export async function getVoxels(...parts) {
  return new Uint8Array(await inflate(await getBuffer(...parts)), VOXELS);
}

/** Sends another program's file; its mask comes back on the image's grid. */
export async function postFile(file, ...parts) {
  const headers = { "Content-Type": "application/octet-stream", "X-Vesalius": "1" };
  const response = await ask(address(...parts), { method: "POST", headers, body: file });
  return new Uint8Array(await inflate(await response.arrayBuffer()), VOXELS);
}

/** A mask as base64 of a compressed NIfTI whose place is that of the image's file `header` (its first 352 bytes). */
export async function packMask(data, header) {
  const file = new Uint8Array(VOXELS + data.length);
  file.set(new Uint8Array(header, 0, VOXELS));
  const view = new DataView(file.buffer);
  view.setInt16(70, 2, true); // datatype: uint8
  view.setInt16(72, 8, true); // bits
  view.setFloat32(108, VOXELS, true);
  view.setFloat32(112, 1, true); // slope and intercept
  view.setFloat32(116, 0, true);
  file.set(data, VOXELS);
  const stream = new Blob([file]).stream().pipeThrough(new CompressionStream("gzip"));
  return base64(new Uint8Array(await new Response(stream).arrayBuffer()));
}

/** What the header of the image's file says of its voxels, and these as numbers. */
export function readImage(buffer) {
  const view = new DataView(buffer);
  const dims = [1, 2, 3].map((axis) => view.getInt16(40 + 2 * axis, true));
  const kinds = { 2: Uint8Array, 4: Int16Array, 16: Float32Array };
  const values = new kinds[view.getInt16(70, true)](buffer, VOXELS, dims[0] * dims[1] * dims[2]);
  const affine = [280, 296, 312].map((start) => [0, 4, 8, 12].map((at) => view.getFloat32(start + at, true)));
  const spacing = [0, 1, 2].map((axis) => Math.hypot(...affine.map((row) => row[axis])));
  return { dims, spacing, affine, values };
}

async function inflate(buffer) {
  const stream = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function base64(bytes) {
  let text = "";
  for (let start = 0; start < bytes.length; start += 32768) {
    text += String.fromCharCode(...bytes.subarray(start, start + 32768));
  }
  return btoa(text);
}
