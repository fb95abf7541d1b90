// The page: opens a structure of a case, and sends what its reader makes of it.

import { fillHelp, listen } from "./keys.js";
import { Mask } from "./mask.js";
import * as panel from "./panel.js";
import { $, make, title, toast } from "./panel.js";
import { MASK_COLOUR } from "./over.js";
import { Settings } from "./settings.js";
import { centre, crop } from "./shapes.js";
import { Tools } from "./tools.js";
import * as wire from "./wire.js";

const COLOURS = ["#ff9a62", "#6ea8ff", "#d58cff", "#f2708f", "#7fd4ff", "#b4e062", "#e0b46c", "#9fa8ff"];
const AVERAGE = "#eef2f7";
const OTHER = "#ffffff";
const POLL = 20000; // ms between looks at what others saved
const IDLE = 60; // s without a sign of life after which the clock stops

const state = { project: null, items: [], filter: "todo", reader: "first", item: null, facts: null, reviews: [], version: 0, layers: [], heat: "", seconds: 0, active: 0, busy: false, wanted: null };
let view;
let tools;
let settings;

async function start() {
  history.replaceState(null, "", location.pathname + location.hash); // the token is in a cookie now
  fillHelp($("help-keys"));
  state.project = await wire.getJSON("project");
  $("project-name").textContent = state.project.name;
  $("who").value = localStorage.getItem("who") ?? state.project.who;
  state.reader = state.project.reader;
  await refresh();
  if (!state.project.viewer) return panel.loading(state.project.missing);
  panel.loading("Starting the viewer");
  const { View } = await import("./view.js");
  view = new View({ planes: $("planes"), over: $("over"), solid: $("solid") });
  await view.start();
  tools = new Tools(view, { changed: maskChanged, moved: showPosition, windowed: (...window) => settings.setWindow(window) });
  settings = new Settings(view, tools, showPosition);
  bind();
  const first = linked() ?? todo()[0] ?? state.items[0];
  if (first) await open(first);
  else panel.loading("The queue is empty. Fill it with: vesalius curate atlas step");
  setInterval(tick, 1000);
  setInterval(() => refresh().catch(() => {}), POLL);
}

/** The structure that the address names. */
function linked() {
  const [name, structure] = location.hash.slice(1).split("/").map(decodeURIComponent);
  return state.items.find((item) => item.case === name && item.structure === structure);
}

const todo = () => state.items.filter((item) => panel.FILTERS.todo[1](item, state.reader));

/** The queue anew; tells if somebody else saved what is open here. */
async function refresh() {
  state.items = await wire.getJSON("queue");
  draw();
  const here = state.items.find((item) => item.case === state.item?.case && item.structure === state.item?.structure);
  if (here && here.version > state.version && !state.busy) {
    notice(`A newer version of this structure was saved by somebody else (version ${here.version}).`, "Load it", () => open(here, { force: true }));
  }
}

function draw() {
  const { reader, filter, item: current } = state;
  $("reader-first").setAttribute("aria-checked", String(reader === "first"));
  $("reader-second").setAttribute("aria-checked", String(reader === "second"));
  panel.showFilters(state.items, state, (name) => {
    state.filter = name;
    draw();
  });
  state.shown = panel.showQueue(state.items, { reader, filter, current }, (item) => open(item));
  panel.showProgress(state.items, reader);
}

function busy(now) {
  state.busy = now;
  document.body.setAttribute("aria-busy", String(now));
}

/** Opens a structure; a changed mask is asked about first. */
async function open(item, { force = false } = {}) {
  state.wanted = item;
  if (state.busy) return; // the last one asked for comes next
  if (view.mask?.edited && !force) {
    const answer = await ask("leave", ["stay", "discard", "save"]);
    if (answer === "stay" || answer === null) return;
    if (answer === "save" && !(await judge("corrected", { stay: true }))) return;
  }
  busy(true);
  notice(null);
  try {
    const fresh = state.item?.case !== item.case;
    const detail = wire.getJSON("cases", item.case, item.structure);
    detail.catch(() => {}); // it is waited for below
    if (fresh) {
      panel.loading(`Loading ${item.case}`);
      state.facts = await wire.getJSON("cases", item.case);
      view.placed = state.facts.placed;
      await view.open(await wire.getBuffer("cases", item.case, "image", "0"));
      settings.offer(state.facts);
    }
    state.item = item;
    view.hideSolid();
    history.replaceState(null, "", `#${encodeURIComponent(item.case)}/${encodeURIComponent(item.structure)}`);
    await fill(await detail, fresh);
    panel.loading(null);
  } catch (error) {
    panel.loading(error.message);
  } finally {
    busy(false);
  }
  draw();
  if (state.wanted && state.wanted !== item) await open(state.wanted);
}

/** The structure's masks, maps and history. */
async function fill({ version, proposals, maps, reviews }, fresh) {
  const { case: name, structure } = state.item;
  Object.assign(state, { version, reviews, seconds: 0, active: Date.now() });
  const own = reviews.findLast((one) => one.reader === state.reader && one.drawn);
  const data = await wire.getVoxels("cases", name, structure, "versions", String(own?.version ?? 0));
  view.setMask(new Mask(view.image.dims, view.image.spacing, data));
  const models = await Promise.all(proposals.map((one) => wire.getVoxels("cases", name, structure, "proposals", one)));
  state.layers = proposals.map((one, number) => {
    const average = one === "average";
    const colour = average ? AVERAGE : COLOURS[(number - Number(proposals[0] === "average")) % COLOURS.length];
    return layer(one, average ? "Average" : one, colour, models[number], { dashed: average, shown: average ? null : "outline", key: number < 9 ? String(number + 1) : "" });
  });
  const other = reviews.findLast((one) => one.reader !== state.reader && one.drawn);
  if (other && !hidden(other)) await compare(other, "outline");
  await offerHeat(maps);
  const start = crop(view.mask.data, view.image.dims) ?? state.layers.find((one) => one.part)?.part;
  if (start && (fresh || !view.mask.data[flat(view.cursor)])) view.setCursor(centre(start));
  $("structure").textContent = title(structure);
  $("question").replaceChildren("Does the ", make("b", { textContent: "green mask" }), ` hold the ${structure.replaceAll("_", " ")}, all of it, and nothing else?`);
  const facts = { Case: name, "In doubt": panel.amount(state.item.mm3 / 1000), ...state.facts.tags };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([term, value]) => [make("dt", { textContent: term }), make("dd", { textContent: value })]));
  $("comment").value = "";
  panel.showHistory(reviews, hidden, (review) => compare(review, "outline").then(showMask));
  maskChanged();
  showPosition();
}

function layer(id, name, colour, data, options) {
  const part = crop(data, view.image.dims);
  const ml = ((part?.count ?? 0) * view.image.spacing.reduce((product, side) => product * side, 1)) / 1000;
  return { id, name, colour, part, ml, ...options };
}

/** A second reader judges before seeing what the first one made of it. */
const hidden = (review) => state.reader === "second" && review.reader === "first" && !state.reviews.some((one) => one.reader === "second");

/** Adds another version as a layer, and says how far it is from the mask. */
async function compare(review, shown) {
  const data = await wire.getVoxels("cases", state.item.case, state.item.structure, "versions", String(review.version));
  const id = `version-${review.version}`;
  state.layers = state.layers.filter((one) => one.id !== id);
  state.layers.push(layer(id, `${review.who}, version ${review.version}`, OTHER, data, { dashed: true, shown, key: "", review }));
}

const flat = ([x, y, z]) => x + view.image.dims[0] * (y + view.image.dims[1] * z);

/** After a change of the mask: numbers, buttons, surface. */
function maskChanged() {
  const { mask } = view;
  for (const one of state.layers) one.dice = mask.dice(one.part);
  $("undo").disabled = !mask.past.length;
  $("redo").disabled = !mask.future.length;
  $("accept").disabled = mask.edited;
  $("correct").disabled = !mask.edited;
  $("accept").classList.toggle("main", !mask.edited);
  $("correct").classList.toggle("main", mask.edited);
  view.maskChanged();
  showMask();
}

/** What is shown of mask and layers. */
function showMask() {
  view.setLayers(state.layers);
  const shown = view.maskShown === "off" ? null : view.maskShown;
  const row = { id: "mask", name: "Mask", key: "M", colour: MASK_COLOUR, ml: view.mask.ml, shown };
  panel.showLayers(row, state.layers, { cycle: (one) => (one === row ? actions.mask() : cycle(one)), use });
  const other = state.layers.find((one) => one.review && one.review.reader !== state.reader);
  $("agreement").hidden = !other;
  if (other) {
    const apart = Math.abs(view.mask.ml - other.ml);
    $("agreement-text").replaceChildren("Dice ", make("b", { textContent: other.dice.toFixed(3) }), ` between this mask and ${other.review.who}'s; the volumes differ by ${panel.amount(apart)}.`);
  }
  clearTimeout(state.solid);
  state.solid = setTimeout(showSolid, 120); // not in the middle of a stroke
}

/** In 3-D the mask, and see-through the layers that are filled. */
function showSolid() {
  const filled = state.layers.filter((one) => one.shown === "fill");
  const mask = { part: crop(view.mask.data, view.image.dims), colour: MASK_COLOUR };
  view.drawSolid([{ ...mask, opacity: 1 }, ...filled.map((one) => ({ ...one, opacity: 0.4 }))]);
}

function cycle(one) {
  one.shown = { outline: "fill", fill: null, null: "outline" }[one.shown];
  showMask();
}

function use(one) {
  if (view.mask.replace(one.part)) {
    maskChanged();
    toast(`The mask is now that of ${one.name}; Z takes it back.`);
  }
}

/** Sends a judgement; true when it is on the server's disk. */
async function judge(verdict, { stay = false } = {}) {
  const who = $("who").value.trim();
  if (!who) {
    $("who").focus();
    toast("Say who you are first: name or initials.", true);
    return false;
  }
  if (state.busy || !view.mask) return false;
  state.wanted = null;
  busy(true);
  const { case: name, structure } = state.item;
  const path = ["cases", name, structure, "reviews"];
  try {
    const mask = verdict === "cannot_tell" ? null : await wire.packMask(view.mask.data, view.header);
    const judgement = { verdict, who, reader: state.reader, seconds: state.seconds, comment: $("comment").value.trim(), mask };
    let saved;
    try {
      saved = await wire.postJSON({ ...judgement, based_on: state.version }, ...path);
    } catch (error) {
      if (error.status !== 409) throw error;
      saved = await settle(error.answer.newest, (based_on) => wire.postJSON({ ...judgement, based_on }, ...path));
      if (!saved) return false;
    }
    state.version = saved.version;
    view.mask.edited = false;
    toast(`Saved as version ${saved.version}: ${title(structure)} ${panel.VERDICTS[verdict].said}.`);
  } catch (error) {
    toast(`Not saved: ${error.message}`, true);
    return false;
  } finally {
    busy(false);
  }
  const both = state.reader === "second" || state.reviews.some((one) => one.reader === "second");
  const at = todo().findIndex((item) => item.case === name && item.structure === structure);
  await refresh();
  if (!stay) {
    const next = both ? null : (todo()[Math.max(at, 0)] ?? todo()[0]); // two readings: stay and see how far apart
    const here = state.items.find((item) => item.case === name && item.structure === structure);
    await open(state.wanted ?? next ?? here, { force: true });
  }
  return true;
}

/** Somebody saved first: theirs or ours on top. Returns the saved review, or null where theirs was loaded. */
async function settle(newest, save) {
  for (;;) {
    const said = panel.VERDICTS[newest.verdict].said;
    $("conflict-text").textContent = `${newest.who} ${said} this structure as version ${newest.version} at ${new Date(newest.when).toLocaleTimeString()}, after you opened version ${state.version}.` + (newest.comment ? ` “${newest.comment}”` : "");
    $("conflict-show").disabled = !newest.drawn;
    const answer = await ask("conflict", ["show", "theirs", "mine"]);
    if (answer === "mine") {
      try {
        return await save(newest.version);
      } catch (error) {
        if (error.status !== 409) throw error;
        newest = error.answer.newest;
        continue;
      }
    }
    if (newest.drawn) await compare(newest, "outline");
    if (answer === "theirs") {
      state.version = newest.version;
      if (newest.drawn) view.mask.replace(state.layers.at(-1).part);
      toast(`This is ${newest.who}'s version ${newest.version}; Z brings your mask back.`);
    }
    maskChanged();
    return null;
  }
}

/** A dialog's answer: which of its buttons ID-NAME, null for Escape. */
function ask(id, names) {
  return new Promise((resolve) => {
    const dialog = $(id);
    const close = (answer) => {
      dialog.onclose = null;
      dialog.close();
      resolve(answer);
    };
    for (const name of names) $(`${id}-${name}`).onclick = () => close(name);
    dialog.onclose = () => resolve(null);
    dialog.showModal();
  });
}

function notice(text, label, action) {
  $("notice").hidden = text === null;
  if (text !== null) $("notice").replaceChildren(text, make("button", { textContent: label, onclick: action }));
}

async function offerHeat(maps) {
  const chosen = maps.includes(state.heat) ? state.heat : "";
  $("heat").replaceChildren(make("option", { textContent: "Off", value: "" }), ...maps.map((kind) => make("option", { textContent: title(kind), value: kind })));
  state.maps = maps;
  await setHeat(chosen);
}

async function setHeat(kind) {
  state.heat = kind;
  $("heat").value = kind;
  const buffer = kind ? await wire.getBuffer("cases", state.item.case, state.item.structure, "maps", kind) : null;
  await view.setHeat(buffer, Number($("heat-opacity").value));
}

function showPosition() {
  const [x, y, z] = view.cursor;
  const value = view.image.values[flat(view.cursor)];
  const shown = Number.isInteger(value) ? value : value.toPrecision(4);
  const [middle, width] = tools.window.map((number) => (Math.abs(number) >= 10 ? Math.round(number) : number.toPrecision(3)));
  $("position").textContent = `${x + 1}, ${y + 1}, ${z + 1} · ${shown}${state.facts.ct ? " HU" : ""} · W ${width} L ${middle}`;
  tools.dabHere();
  view.draw();
}

function tick() {
  if (!view.mask) return;
  if (document.visibilityState === "visible" && Date.now() - state.active < IDLE * 1000) state.seconds++;
  $("clock").textContent = `${panel.clock(state.seconds)} on this structure · expected ${panel.clock(60 * state.item.minutes)}`;
}

async function worst() {
  const kind = ["attention", "inconsistency", ...state.maps].find((one) => state.maps.includes(one));
  if (!kind) return toast("No map of this structure was made.");
  const values = await wire.getVoxels("cases", state.item.case, state.item.structure, "maps", kind);
  const most = values.reduce((high, value) => Math.max(high, value), 0);
  const part = crop(values.map((value) => Number(value >= 0.8 * most && most > 0)), view.image.dims);
  if (!part) return toast("The models agree on this structure.");
  view.setCursor(centre(part));
  showPosition();
  toast("Here the models disagree most.");
}

const actions = {
  accept: () => $("accept").disabled || judge("accept"),
  correct: () => $("correct").disabled || judge("corrected"),
  cannot: () => judge("cannot_tell"),
  comment: () => $("comment").focus(),
  next: (way) => {
    const list = state.shown;
    const at = list.findIndex((item) => item.case === state.item.case && item.structure === state.item.structure);
    const item = list[Math.min(Math.max(at + way, 0), list.length - 1)];
    if (item && item !== list[at]) open(item);
  },
  todo: () => {
    const item = todo().find((one) => one.case !== state.item.case || one.structure !== state.item.structure);
    if (item) open(item);
    else toast("Nothing is left to do.");
  },
  tool: (tool) => settings.chooseTool(tool),
  radius: (way) => settings.stepRadius(way),
  ball: () => settings.setBall(!tools.ball),
  threshold: () => settings.setThreshold(tools.limits === null),
  between: () => {
    const count = view.mask.fillBetween(view.plane);
    if (count) maskChanged();
    toast(count ? `${count} ${view.plane} slices were filled; Z takes it back.` : `Draw on two ${view.plane} slices first.`);
  },
  dab: (argument, key, repeat) => tools.dab(repeat),
  undo: () => view.mask.undo() && maskChanged(),
  redo: () => view.mask.redo() && maskChanged(),
  step: ([right, up, across]) => {
    view.step(view.plane, right, up, across);
    showPosition();
  },
  plane: () => {
    view.plane = { axial: "coronal", coronal: "sagittal", sagittal: "axial" }[view.plane];
    showPosition();
  },
  worst,
  zoom: (factor) => view.zoomBy(factor),
  turn: ([azimuth, elevation]) => view.turn(azimuth, elevation),
  layer: (argument, key) => {
    const one = state.layers.find((candidate) => candidate.key === key);
    if (one) cycle(one);
  },
  mask: () => {
    view.showMask({ fill: "outline", outline: "off", off: "fill" }[view.maskShown]);
    showMask();
  },
  heat: () => {
    const kinds = ["", ...state.maps];
    return setHeat(state.heat ? "" : (kinds.find((kind) => kind === "attention") ?? kinds.at(-1)));
  },
  window: () => settings.nextWindow(),
  layout: () => settings.nextLayout(),
  file: () => $("file").click(),
  help: () => $("help").showModal(),
  released: (key) => key === " " && tools.dabEnd(),
};

async function takeFile() {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file) return;
  try {
    const data = await wire.postFile(file, "cases", state.item.case, state.item.structure, "import");
    const changed = view.mask.replace(crop(data, view.image.dims));
    maskChanged();
    toast(changed ? "The mask is now the file's; look at it, then save. Z takes it back." : "The file holds the same mask.");
  } catch (error) {
    toast(`Not taken: ${error.message}`, true);
  }
}

function bind() {
  listen(actions);
  for (const id of ["accept", "correct", "cannot", "between", "undo", "redo", "ball", "threshold"]) {
    $(id).onclick = () => actions[id]();
  }
  for (const reader of ["first", "second"]) {
    $(`reader-${reader}`).onclick = async () => {
      state.reader = reader;
      draw();
      if (state.item) await open(state.item);
    };
  }
  $("help-button").onclick = actions.help;
  $("heat").onchange = () => setHeat($("heat").value);
  $("heat-opacity").oninput = () => view.setHeatOpacity(Number($("heat-opacity").value));
  $("file").onchange = takeFile;
  $("who").onchange = () => localStorage.setItem("who", $("who").value.trim());
  $("channel").onchange = async () => {
    const { mask, cursor } = view;
    const channel = Number($("channel").value);
    await view.open(await wire.getBuffer("cases", state.item.case, "image", String(channel)));
    view.setMask(mask);
    view.setCursor(cursor);
    settings.offer(state.facts, channel);
    await setHeat(state.heat);
    showMask();
  };
  for (const sign of ["pointermove", "keydown", "wheel"]) document.addEventListener(sign, () => (state.active = Date.now()), { passive: true });
  addEventListener("hashchange", () => linked() && open(linked()));
  addEventListener("beforeunload", (event) => view.mask?.edited && event.preventDefault());
}

start().catch((error) => panel.loading(error.message));
