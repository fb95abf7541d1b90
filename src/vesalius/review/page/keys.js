// The keyboard: one table says what each key does, and is what the overlay shows.

/** [title, [[keys as shown, what it does, keys as pressed, action, argument]]] */
const TABLE = [
  ["Judge", [
    ["A", "accept as it is", ["a"], "accept"],
    ["S", "save the correction", ["s"], "correct"],
    ["X", "cannot tell", ["x"], "cannot"],
    ["C", "write a comment", ["c"], "comment"],
    ["J K", "next, previous in the queue", ["j"], "next", 1],
    [null, null, ["k"], "next", -1],
    ["N", "next to do", ["n"], "todo"],
  ]],
  ["Draw", [
    ["B E R", "brush, eraser, move", ["b"], "tool", "brush"],
    [null, null, ["e"], "tool", "eraser"],
    [null, null, ["r"], "tool", "move"],
    ["+ −", "size of the brush", ["+", "="], "radius", 1],
    [null, null, ["-"], "radius", -1],
    ["O", "ball instead of disc", ["o"], "ball"],
    ["T", "only values in a range", ["t"], "threshold"],
    ["F", "fill between the slices drawn on", ["f"], "between"],
    ["Space", "draw at the crosshair; hold it and move", [" "], "dab"],
    ["Z Y", "undo, redo", ["z", "Ctrl+z"], "undo"],
    [null, null, ["y", "Ctrl+y", "Shift+Ctrl+z"], "redo"],
  ]],
  ["Move", [
    ["← → ↑ ↓", "crosshair in the plane", ["ArrowLeft"], "step", [-1, 0, 0]],
    [null, null, ["ArrowRight"], "step", [1, 0, 0]],
    [null, null, ["ArrowUp"], "step", [0, 1, 0]],
    [null, null, ["ArrowDown"], "step", [0, -1, 0]],
    [", .", "slice down, up", [","], "step", [0, 0, -1]],
    [null, null, ["."], "step", [0, 0, 1]],
    ["PgDn PgUp", "ten slices down, up", ["PageDown"], "step", [0, 0, -10]],
    [null, null, ["PageUp"], "step", [0, 0, 10]],
    ["P", "next plane", ["p"], "plane"],
    ["G", "go to where the models disagree most", ["g"], "worst"],
    ["[ ]", "zoom out, in", ["["], "zoom", 1 / 1.25],
    [null, null, ["]"], "zoom", 1.25],
    ["Home", "whole picture", ["Home"], "zoom", 0],
    ["Shift ← →", "turn the 3-D view", ["Shift+ArrowLeft"], "turn", [-15, 0]],
    [null, null, ["Shift+ArrowRight"], "turn", [15, 0]],
    [null, null, ["Shift+ArrowUp"], "turn", [0, 15]],
    [null, null, ["Shift+ArrowDown"], "turn", [0, -15]],
  ]],
  ["Look", [
    ["1 … 9", "outline, fill, hide a proposal", [..."123456789"], "layer"],
    ["M", "mask: fill, outline, hidden", ["m"], "mask"],
    ["H", "heat: where models disagree", ["h"], "heat"],
    ["W", "next window", ["w"], "window"],
    ["V", "next layout", ["v"], "layout"],
    ["I", "take a mask from a file", ["i"], "file"],
    ["?", "this list", ["?"], "help"],
  ]],
];
const MOUSE = [
  ["Left", "use the tool; Ctrl: the other of brush and eraser"],
  ["Wheel", "slices; Ctrl: zoom"],
  ["Right", "drag: window width and centre"],
  ["Middle", "drag: move the picture"],
];

/** Calls `actions[action](argument, key, repeated)` when a key goes down, and `actions.released(key)` when it comes up. */
export function listen(actions) {
  const bound = new Map();
  for (const [, rows] of TABLE) {
    for (const [, , keys, action, argument] of rows) for (const key of keys) bound.set(key, [action, argument]);
  }
  document.addEventListener("keydown", (event) => {
    if (event.altKey || document.querySelector("dialog[open]")) return;
    const target = event.target;
    if (target.matches("textarea, select, input:not([type=range], [type=file])")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
    if (target.matches("button, [tabindex='0']:not(canvas)") && (event.key === " " || event.key === "Enter")) return;
    const [action, argument] = bound.get(name(event)) ?? [];
    if (!action) return;
    event.preventDefault();
    actions[action](argument, event.key, event.repeat);
  });
  document.addEventListener("keyup", (event) => actions.released(event.key));
}

function name({ key, ctrlKey, metaKey, shiftKey }) {
  const letter = key.length === 1 ? key.toLowerCase() : key;
  const control = ctrlKey || metaKey ? "Ctrl+" : "";
  return (shiftKey && (control || key.startsWith("Arrow")) ? "Shift+" : "") + control + letter;
}

/** The overlay's content. */
export function fillHelp(place) {
  const sections = TABLE.map(([title, rows]) => [title, rows.filter(([shown]) => shown)]);
  for (const [title, rows] of [...sections, ["Mouse", MOUSE]]) {
    const section = document.createElement("section");
    const heading = document.createElement("h3");
    heading.textContent = title;
    section.append(heading);
    for (const [shown, does] of rows) {
      const row = document.createElement("div");
      const keys = document.createElement("span");
      for (const word of shown.split(" ")) {
        const key = document.createElement("kbd");
        key.textContent = word;
        keys.append(key);
      }
      const text = document.createElement("span");
      text.textContent = does;
      row.append(keys, text);
      section.append(row);
    }
    place.append(section);
  }
}
