// The bar over the picture: tool, size, range of values, window, layout.

import { $, make } from "./panel.js";

const WINDOWS = [ // name, centre, width in HU
  ["Abdomen", 40, 400], ["Liver", 80, 180], ["Soft tissue", 50, 350], ["Lung", -500, 1500], ["Bone", 400, 1800], ["Brain", 40, 80],
];
const NEXT_LAYOUT = { grid: "axial", axial: "coronal", coronal: "sagittal", sagittal: "grid" };

export class Settings {
  /** `changed()` after what shows in the line below the picture. */
  constructor(view, tools, changed) {
    Object.assign(this, { view, tools, changed });
    for (const button of $("tools").children) button.onclick = () => this.chooseTool(button.dataset.tool);
    $("radius").oninput = () => this.setRadius(Number($("radius").value));
    $("low").onchange = $("high").onchange = () => this.setThreshold(true);
    $("window").onchange = () => Number($("window").value) >= 0 && this.choosePreset(Number($("window").value));
    $("layout").onchange = () => this.setLayout($("layout").value);
    this.chooseTool("move");
    this.setRadius(6);
  }

  /** Windows that suit a case and its sequence number `channel`, and its sequences. */
  offer({ ct, windows, channels }, channel = 0) {
    this.presets = [...(ct ? WINDOWS : []), ["Of the file", ...windows[channel]]];
    const options = [...this.presets.map(([name]) => name), "By hand"];
    $("window").replaceChildren(...options.map((name, at) => make("option", { textContent: name, value: at < this.presets.length ? at : -1 })));
    this.choosePreset(0);
    $("channel").hidden = channels.length < 2;
    $("channel").replaceChildren(...channels.map((name, at) => make("option", { textContent: name, value: at })));
    $("channel").value = channel;
  }

  choosePreset(at) {
    this.setWindow(this.presets[at].slice(1));
    $("window").value = at;
  }

  nextWindow() {
    this.choosePreset((Number($("window").value) + 1) % this.presets.length);
  }

  /** [centre, width]. */
  setWindow(window) {
    this.tools.window = window;
    this.view.setWindow(...window);
    $("window").value = -1;
    this.changed();
  }

  chooseTool(tool) {
    this.tools.select(tool);
    for (const button of $("tools").children) button.setAttribute("aria-checked", String(button.dataset.tool === tool));
  }

  /** In mm. */
  setRadius(radius) {
    this.tools.radius = Math.min(Math.max(radius, 0.5), 40);
    $("radius").value = this.tools.radius;
    $("radius-text").textContent = `${this.tools.radius} mm`;
  }

  stepRadius(way) {
    this.setRadius(this.tools.radius + way * (this.tools.radius >= 5 ? 1 : 0.5));
  }

  setBall(on) {
    this.tools.ball = on;
    $("ball").setAttribute("aria-pressed", String(on));
  }

  /** Whether only values in the range are painted; it starts as the window's. */
  setThreshold(on) {
    $("threshold").setAttribute("aria-pressed", String(on));
    $("limits").hidden = !on;
    if (on && !$("low").value) {
      const [middle, width] = this.tools.window;
      [$("low").value, $("high").value] = [Math.round(middle - width / 2), Math.round(middle + width / 2)];
    }
    this.tools.limits = on ? [Number($("low").value), Number($("high").value)] : null;
  }

  setLayout(name) {
    $("layout").value = name;
    this.view.setLayout(name);
    if (name !== "grid") this.view.plane = name;
  }

  nextLayout() {
    this.setLayout(NEXT_LAYOUT[this.view.layout]);
  }
}
