// What stands around the picture: queue, progress, layers, history. Text goes in as text, never as markup.

export const $ = (id) => document.getElementById(id);

/** An element: `make("li", { className: "line" }, "text", child)`. */
export function make(tag, { attributes = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const title = (structure) => {
  const words = structure.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
};
export const amount = (ml) => (ml >= 100 ? `${Math.round(ml)} ml` : ml >= 1 ? `${ml.toFixed(1)} ml` : `${ml.toFixed(2)} ml`);
export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const minutes = (count) => (count >= 90 ? `${(count / 60).toFixed(1)} h` : `${Math.max(count, 0).toFixed(count < 10 ? 1 : 0)} min`);
const when = (iso) =>
  new Date(iso).toLocaleString([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const VERDICTS = {
  accept: { mark: "✓", said: "accepted" },
  corrected: { mark: "✎", said: "corrected" },
  cannot_tell: { mark: "?", said: "could not tell" },
};
const AGREE = 0.9; // Dice of two readers below which a structure is listed as disputed

/** Filter -> name and what it takes, for a reader. */
export const FILTERS = {
  todo: ["To do", (item, reader) => !item.verdicts[reader] && (reader === "first" || Boolean(item.verdicts.first))],
  done: ["Done", (item, reader) => Boolean(item.verdicts[reader])],
  differ: ["Differ", (item) => disputed(item)],
  all: ["All", () => true],
};

function disputed({ verdicts, agreement }) {
  const given = Object.values(verdicts).map(({ verdict }) => verdict);
  return (agreement !== null && agreement < AGREE) || (given.length === 2 && given.includes("cannot_tell"));
}

/** The filters with how many each holds; `choose(name)` on a click. */
export function showFilters(items, { reader, filter }, choose) {
  $("filters").replaceChildren(
    ...Object.entries(FILTERS).map(([name, [label, takes]]) =>
      make("button", {
        textContent: `${label} ${items.filter((item) => takes(item, reader)).length}`,
        onclick: () => choose(name),
        attributes: { role: "radio", "aria-checked": String(name === filter) },
      }),
    ),
  );
}

/** The queue's lines; `open(item)` on a click or Enter. */
export function showQueue(items, { reader, filter, current }, open) {
  const most = Math.max(...items.map((item) => item.score), 1e-9);
  const isOpen = (item) => item.case === current?.case && item.structure === current?.structure;
  const shown = items.filter((item) => FILTERS[filter][1](item, reader) || isOpen(item));
  const lines = shown.map((item) => {
    const verdict = item.verdicts[reader];
    const marks = [];
    if (item.agreement !== null) {
      const kind = disputed(item) ? "differ" : "";
      marks.push(make("span", { className: `mark ${kind}`, textContent: `2 × ${item.agreement.toFixed(2)}`, title: "Dice of the two readers" }));
    } else if (reader === "first" && item.verdicts.second) {
      marks.push(make("span", { className: "mark", textContent: "2nd", title: "read twice" }));
    }
    if (verdict) {
      const { mark, said } = VERDICTS[verdict.verdict];
      marks.push(make("span", { className: `mark ${verdict.verdict}`, textContent: mark, title: `${said} by ${verdict.who}` }));
    }
    const meter = make("i");
    meter.style.width = `${Math.max(100 * Math.sqrt(item.score / most), 2)}%`;
    return make(
      "li",
      {
        className: verdict ? "done" : "",
        tabIndex: 0,
        onclick: () => open(item),
        onkeydown: (event) => event.key === "Enter" && open(item),
        attributes: { "aria-current": String(isOpen(item)) },
      },
      make("div", { className: "line" }, make("span", { className: "name", textContent: title(item.structure) }), ...marks),
      make(
        "div",
        { className: "line" },
        make("span", { className: "case", textContent: item.case }),
        make("span", { className: "need", textContent: `${amount(item.mm3 / 1000)} · ${minutes(item.minutes)}`, title: "volume in doubt, expected time" }),
      ),
      make("div", { className: "meter" }, meter),
    );
  });
  const empty = items.length ? "Nothing here." : "The queue is empty. Fill it with: vesalius curate atlas step";
  $("queue").replaceChildren(...(lines.length ? lines : [make("li", { className: "empty", textContent: empty })]));
  $("queue").querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest" });
  return shown;
}

export function showProgress(items, reader) {
  const mine = items.filter((item) => reader === "first" || item.verdicts.first);
  const done = mine.filter((item) => item.verdicts[reader]);
  const spent = items.reduce((sum, item) => sum + item.seconds, 0) / 60;
  const left = mine.filter((item) => !item.verdicts[reader]).reduce((sum, item) => sum + item.minutes, 0);
  const part = mine.length ? (100 * done.length) / mine.length : 0;
  $("bar").firstElementChild.style.width = `${part}%`;
  $("bar").setAttribute("aria-valuenow", part.toFixed(0));
  const each = done.length ? ` (${minutes(spent / done.length)} each)` : "";
  $("progress-text").textContent =
    `${done.length} of ${mine.length} structures · ${minutes(spent)} spent${each} · about ${minutes(left)} left`;
}

const NEXT = { outline: "Outline", fill: "Fill", null: "Hidden" };

/** The list of what can be shown; `cycle(layer)` and `use(layer)` on clicks. */
export function showLayers(mask, layers, { cycle, use }) {
  const rows = [mask, ...layers].map((layer, number) => {
    const swatch = make("i", { className: `swatch ${layer.dashed ? "dashed" : ""} ${layer.shown ? "" : "off"}` });
    swatch.style.borderColor = layer.colour;
    if (layer.shown === "fill") swatch.style.background = `${layer.colour}70`;
    const name = make("span", { className: "name", textContent: layer.name, title: layer.name });
    if (layer.key) name.append(make("kbd", { textContent: layer.key }));
    const told = layer.dice === undefined ? amount(layer.ml) : `${amount(layer.ml)} · Dice ${layer.dice.toFixed(2)}`;
    return make(
      "li",
      { attributes: { "data-layer": layer.id, "data-ml": layer.ml } },
      swatch,
      make("span", { className: "about" }, name, make("span", { className: "amount", textContent: told, title: "volume, and Dice with the mask" })),
      make("button", { className: "shown", textContent: NEXT[layer.shown], title: "outline, fill, hide", onclick: () => cycle(layer) }),
      number === 0 || !layer.part
        ? make("span")
        : make("button", { textContent: "Use", title: "take it as the mask", onclick: () => use(layer) }),
    );
  });
  $("layers").replaceChildren(...rows);
}

/** Who judged what, newest first; `compare(review)` shows a version's outline. */
export function showHistory(reviews, hidden, compare) {
  const rows = [...reviews].reverse().map((review) => {
    const { said } = VERDICTS[review.verdict];
    const covered = hidden(review);
    return make(
      "li",
      {},
      make("span", { textContent: String(review.version) }),
      make(
        "span",
        {},
        make("span", { className: "what", textContent: `${review.who} ` }),
        covered ? "has judged" : said,
        `, ${review.reader} reader, ${when(review.when)}, ${clock(review.seconds)}`,
      ),
      review.drawn && !covered ? make("button", { textContent: "Show", onclick: () => compare(review) }) : make("span"),
      covered || !review.comment ? null : make("span", { className: "said", textContent: `“${review.comment}”` }),
    );
  });
  $("history").replaceChildren(...(rows.length ? rows : [make("li", {}, make("span"), make("span", { textContent: "Not judged yet" }))]));
}

let fading;
/** A line that goes by itself; alarms stay longer. */
export function toast(text, alarm = false) {
  clearTimeout(fading);
  $("toast").textContent = text;
  $("toast").classList.toggle("alarm", alarm);
  fading = setTimeout(() => ($("toast").textContent = ""), alarm ? 15000 : 5000);
}

/** Why there is no picture; null where there is. */
export function loading(text) {
  $("loading").hidden = text === null;
  if (text !== null) $("loading").firstElementChild.textContent = text;
}
