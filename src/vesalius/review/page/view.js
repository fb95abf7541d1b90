// The volume on the screen: three planes and the structure's surfaces in 3-D, both by NiiVue.

import { Niivue, NVImage, NVMesh } from "./niivue.js";
import { PLANES } from "./mask.js";
import { MASK_COLOUR, Over, rgb } from "./over.js";
import { surface } from "./shapes.js";
import { readImage } from "./wire.js";

const NUMBERS = { axial: 0, coronal: 1, sagittal: 2 }; // NiiVue's
const LAYOUTS = {
  grid: { axial: [0, 0, 0.5, 0.5], sagittal: [0.5, 0, 0.5, 0.5], coronal: [0, 0.5, 0.5, 0.5], solid: [0.5, 0.5, 0.5, 0.5] },
};
for (const [large, ...small] of [["axial", "sagittal", "coronal"], ["coronal", "axial", "sagittal"], ["sagittal", "axial", "coronal"]]) {
  LAYOUTS[large] = { [large]: [0, 0, 0.68, 1] };
  [...small, "solid"].forEach((name, row) => (LAYOUTS[large][name] = [0.68, row / 3, 0.32, 1 / 3]));
}

const QUIET = { logLevel: "error", backColor: [0.035, 0.043, 0.055, 1], dragAndDropEnabled: false, loadingText: "" };

/** NiiVue whose slices fill their tiles, also where they are zoomed. */
class Planes extends Niivue {
  tiles = {};
  drawn = () => {};

  calculateWidthHeight(kind, scale, width, height) {
    return [width, height];
  }

  screenFieldOfViewExtendedVox(kind) {
    const field = super.screenFieldOfViewExtendedVox(kind);
    const plane = Object.keys(NUMBERS)[kind];
    if (!this.tiles[plane]) return field;
    const wanted = (this.tiles[plane][2] * this.canvas.width) / (this.tiles[plane][3] * this.canvas.height);
    const [width, height] = field.fovMM;
    const more = [Math.max(width, height * wanted) - width, Math.max(height, width / wanted) - height];
    for (const axis of [0, 1]) {
      field.mnMM[axis] -= more[axis] / 2 + 0.02 * (width + more[0]);
      field.mxMM[axis] += more[axis] / 2 + 0.02 * (width + more[0]);
      field.fovMM[axis] = field.mxMM[axis] - field.mnMM[axis];
    }
    return field;
  }

  drawSceneCore() {
    const told = super.drawSceneCore();
    this.drawn();
    return told;
  }
}

export class View {
  constructor({ planes, over, solid }) {
    this.canvases = { planes, over, solid };
    this.over = new Over(this);
    this.layers = [];
    this.cursor = [0, 0, 0];
    this.plane = "axial";
    this.zoom = 1;
    this.brush = null; // { at, plane, radius, ball, colour }
    this.maskShown = "fill";
    this.waiting = new Set();
  }

  async start() {
    this.nv = new Planes({
      ...QUIET,
      interactive: false,
      isRadiologicalConvention: true,
      crosshairWidth: 0,
      isOrientationTextVisible: false,
      multiplanarShowRender: 0,
    });
    await this.nv.attachToCanvas(this.canvases.planes, false);
    this.nv.setSliceType(3);
    this.nv.drawn = () => this.over.paint();
    this.setLayout("grid");
    new ResizeObserver(() => this.draw()).observe(this.canvases.planes.parentElement);
  }

  /** The 3-D view, when it is first needed: the planes come sooner so. */
  async startSolid() {
    const solid = new Niivue({ ...QUIET, show3Dcrosshair: false });
    await solid.attachToCanvas(this.canvases.solid, true);
    this.nv3 = solid;
    solid.onAzimuthElevationChange = () => this.sayFrom();
    solid.setSliceType(4);
    solid.setRenderAzimuthElevation(160, 12); // from the front, a little from the side
    this.canvases.solid.removeAttribute("tabindex"); // its keys are the page's
  }

  /** Shows a volume (the server's NIfTI); the mask, layers and heat of the last one go. */
  async open(buffer) {
    this.image = readImage(buffer);
    this.header = buffer.slice(0, 352);
    const fresh = await NVImage.loadFromUrl({ url: "image.nii", name: "image.nii", buffer });
    this.nv.volumes = [];
    this.nv.drawBitmap = null;
    this.nv.addVolume(fresh);
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.zoom = 1;
    this.nv.createEmptyDrawing();
    this.nv.clickToSegmentGrowingBitmap = null;
    this.nv.setDrawColormap({ R: [0, 53], G: [0, 208], B: [0, 165], A: [0, 255], I: [0, 1], labels: ["", ""] });
    this.layers = [];
    this.heat = null;
  }

  setMask(mask) {
    this.mask = mask;
    this.nv.drawBitmap = mask.data;
    this.nv.refreshDrawing(false);
    this.showMask(this.maskShown);
  }

  /** After strokes: of the mask only the axial slices that changed go to the graphics card. */
  maskChanged() {
    const [low, high] = this.mask.touched;
    this.mask.clean();
    if (high < low) return this.draw();
    const gl = this.nv.gl;
    const [width, height] = this.image.dims;
    const slices = this.mask.data.subarray(low * width * height, (high + 1) * width * height);
    gl.activeTexture(gl.TEXTURE7); // NiiVue's place for what is drawn
    gl.bindTexture(gl.TEXTURE_3D, this.nv.drawTexture);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, low, width, height, high - low + 1, gl.RED, gl.UNSIGNED_BYTE, slices);
    this.draw();
  }

  showMask(how) {
    this.maskShown = how;
    this.nv.drawOpacity = how === "fill" ? (this.heat ? 0.08 : 0.3) : 0; // heat should not drown
    this.draw();
  }

  /** [{ colour, part, shown: "outline" | "fill" | null, dashed, solid }]: part is a cropped mask. */
  setLayers(layers) {
    this.layers = layers;
    this.draw();
  }

  async setHeat(buffer, opacity = 0.6) {
    if (this.heat) this.nv.removeVolume(this.heat);
    this.heat = null;
    if (buffer) {
      this.heat = await NVImage.loadFromUrl({
        url: "heat.nii", name: "heat.nii.gz", buffer, colormap: "inferno", opacity, cal_min: 25, cal_max: 255,
      });
      this.nv.addVolume(this.heat);
    }
    this.showMask(this.maskShown);
  }

  setHeatOpacity(opacity) {
    if (!this.heat) return;
    this.nv.setOpacity(this.nv.volumes.indexOf(this.heat), opacity);
    this.draw();
  }

  setWindow(centre, width) {
    const volume = this.nv.volumes[0];
    [volume.cal_min, volume.cal_max] = [centre - width / 2, centre + width / 2];
    this.nv.updateGLVolume();
    this.draw();
  }

  setLayout(name) {
    this.layout = name;
    const { solid, ...tiles } = LAYOUTS[name];
    this.nv.tiles = tiles;
    this.nv.setCustomLayout(Object.entries(tiles).map(([plane, position]) => ({ sliceType: NUMBERS[plane], position })));
    const [left, top, width, height] = solid.map((part) => `${100 * part}%`);
    Object.assign(this.canvases.solid.parentElement.style, { left, top, width, height });
    this.draw();
  }

  setCursor(at) {
    this.cursor = at.map((value, axis) => Math.min(Math.max(Math.round(value), 0), this.image.dims[axis] - 1));
    this.draw();
  }

  /** Moves the crosshair by voxels along the screen of a plane, or across it. */
  step(plane, right, up, across) {
    const { u, v, w } = PLANES[plane];
    const at = [...this.cursor];
    at[u] += u === 0 ? -right : right; // the patient's left is on the right
    at[v] += up;
    at[w] += across;
    this.setCursor(at);
  }

  /** Zooms in or out around a point (voxels). */
  zoomBy(factor, around = this.cursor) {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), 20);
    const pan = [...this.nv.scene.pan2Dxyzmm];
    for (const axis of [0, 1, 2]) {
      const point = this.millimetre(axis, around[axis]);
      pan[axis] = zoom === 1 ? 0 : point * this.zoom + pan[axis] - point * zoom;
    }
    this.zoom = zoom;
    this.nv.scene.pan2Dxyzmm = [...pan.slice(0, 3), zoom];
    this.draw();
  }

  /** Moves the picture of a plane by pixels of the page. */
  pan(plane, dx, dy) {
    const map = this.mapping(plane);
    const { u, v } = PLANES[plane];
    const dense = this.density();
    const pan = [...this.nv.scene.pan2Dxyzmm];
    pan[u] += ((dx * dense) / map.a) * this.image.spacing[u] * this.zoom;
    pan[v] += ((dy * dense) / map.d) * this.image.spacing[v] * this.zoom;
    this.nv.scene.pan2Dxyzmm = pan;
    this.draw();
  }

  /** Where the 3-D view is looked at from. */
  sayFrom() {
    const { renderAzimuth: azimuth, renderElevation: elevation } = this.nv3.scene;
    const side = ["behind", "the left", "the front", "the right"][Math.round((((azimuth % 360) + 360) % 360) / 90) % 4];
    const from = Math.abs(elevation) > 50 ? (elevation > 0 ? "above" : "below") : side;
    this.canvases.solid.nextElementSibling.textContent = `3-D from ${from}`;
  }

  turn(azimuth, elevation) {
    this.nv3?.setRenderAzimuthElevation(
      this.nv3.scene.renderAzimuth + azimuth, this.nv3.scene.renderElevation + elevation,
    );
  }

  /** Coalesced: several changes make one picture. */
  draw() {
    this.later("planes", () => {
      if (!this.nv.volumes.length) return;
      this.nv.scene.crosshairPos = this.cursor.map((at, axis) => (at + 0.5) / this.image.dims[axis]);
      this.nv.drawScene();
    });
  }

  /** No surface rather than that of another structure. */
  hideSolid() {
    this.canvases.solid.style.visibility = "hidden";
  }

  /** The surfaces anew: of the mask, and of layers that ask for one; the last ones asked for are drawn. */
  drawSolid(asked) {
    this.solids = asked;
    this.later("solid", async () => {
      await (this.solidStarted ??= this.startSolid());
      const parts = this.solids;
      for (const mesh of [...this.nv3.meshes]) this.nv3.removeMesh(mesh);
      for (const { part, colour, opacity } of parts) {
        if (!part) continue;
        const { points, faces } = surface(part, this.image.affine);
        const rgba = new Uint8Array([...rgb(colour), 255]);
        const mesh = new NVMesh(points, faces, "", rgba, opacity, true, this.nv3.gl);
        this.nv3.addMesh(mesh);
        this.nv3.setMeshShader(mesh.id, "Matte");
      }
      this.nv3.drawScene();
      this.canvases.solid.style.visibility = "";
    });
  }

  later(what, action) {
    if (this.waiting.has(what)) return;
    this.waiting.add(what);
    requestAnimationFrame(() => {
      this.waiting.delete(what);
      action();
    });
  }

  // Where things are. Pixels are the canvas's, `density` of them to one of the page's.

  density() {
    return this.canvases.planes.width / Math.max(this.canvases.planes.clientWidth, 1);
  }

  millimetre(axis, voxel) {
    const { extentsMinOrtho: low, extentsMaxOrtho: high } = this.nv.volumes[0];
    return low[axis] + ((voxel + 0.5) / this.image.dims[axis]) * (high[axis] - low[axis]);
  }

  /** Voxels (u, v) of a plane to pixels: x = a u + e, y = d v + f; and its tile. */
  mapping(plane) {
    const tile = this.nv.screenSlices.find((one) => one.axCorSag === NUMBERS[plane]);
    if (!tile) return null;
    const { u, v } = PLANES[plane];
    const [left, top, width, height] = tile.leftTopWidthHeight;
    const x = (voxel) => left + ((this.millimetre(u, voxel) - tile.leftTopMM[0]) / tile.fovMM[0]) * width;
    const y = (voxel) => top + (1 - (this.millimetre(v, voxel) - tile.leftTopMM[1]) / tile.fovMM[1]) * height;
    return { a: x(1) - x(0), d: y(1) - y(0), e: x(0), f: y(0), left, top, width, height };
  }

  /** The plane and voxels (not whole numbers) under a point of the page; null outside. */
  at(clientX, clientY) {
    const frame = this.canvases.over.getBoundingClientRect();
    const x = (clientX - frame.left) * this.density();
    const y = (clientY - frame.top) * this.density();
    for (const plane of Object.keys(PLANES)) {
      const map = this.mapping(plane);
      if (!map || x < map.left || y < map.top || x >= map.left + map.width || y >= map.top + map.height) continue;
      const { u, v, w } = PLANES[plane];
      const voxel = [0, 0, 0];
      voxel[u] = (x - map.e) / map.a;
      voxel[v] = (y - map.f) / map.d;
      voxel[w] = this.cursor[w];
      const inside = [u, v].every((axis) => voxel[axis] > -0.5 && voxel[axis] < this.image.dims[axis] - 0.5);
      return { plane, voxel, inside };
    }
    return null;
  }
}
