"""A comparison's page, its tables as Markdown, as printed: controls in sight, no winner without significance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from vesalius.compare import figures
from vesalius.compare.arms import BASELINE
from vesalius.compare.statistics import SIGNIFICANT
from vesalius.compare.tables import LABELS
from vesalius.report.html import Block, Card, Cards, Details, Figure, Heading, Page, Table, Text, Value

Results = Mapping[str, Any]
"""As results.json holds them."""
Row = Mapping[str, Any]
MINUS = "\u2212"
AT_EDGE = 0.5
"""Share of the draws whose learning rate is at an end of the grid from which the page warns."""

FEW_DRAWS = 5
"""The page warns below; Student's t of four degrees of freedom needs a difference of 2.8 standard errors as it is."""

PROTOCOL = (
    "A **draw** is a support set from the training split: so many {unit}s of each class, {images}; validation and test "
    "images are of other patients, and the same for all draws. Every training image has {views} fixed versions (a crop "
    "of 50 to 100 % of its area, mirrored or not), drawn once for each draw and seed and **the same for all arms**.\n\n"
    "All arms share the head's initial weights (except `mlp3`, whose head is another one), {steps} steps of AdamW "
    "(weight decay 1e-4, a tenth of the steps of warm-up, then half a cosine to 0) on at most {batch} images each, and "
    "the grid of learning rates {grid}. For each arm and draw the rate with the best validation score is chosen, with "
    "the first seed, and used for all seeds; only then are the test images scored, once. The network stays in "
    "evaluation mode: no dropout, no stochastic depth.\n\n"
    "**Statistics.** Seeds are averaged within a draw; mean and standard error are over draws. Differences are paired "
    "over draws, p is of a two-sided paired t-test, adjusted by Holm over all arms of the table (differences to "
    "controls: over all of these). An asterisk: adjusted p below {alpha}. Draws share their pool and the test images, "
    "so p tells whether a difference outlasts another choice of labelled images, not whether it holds for other "
    "patients.\n\n"
    "**Controls.** `-frozen`: the prompts stay as they were drawn and the head alone learns. `-collapsed`: one logit a "
    "token that starts where the sum of the prompts does. An arm that does not beat its controls owes its gain to "
    "something else than to learning what it claims to learn.\n\n"
    "**Cost.** Seconds are of the chosen training, without evaluation. Memory is what a training step needs beside "
    "weights and images: on a CPU the bytes kept for the backward pass, gradients and AdamW's moments; on a GPU the "
    "peak that was allocated, and the moments. Arms whose trunk never changes (`linear`, `mlp3`, `-frozen`) learn from "
    "features that are computed once; that is not in their seconds or memory."
)


def page(results: Results) -> Page:
    """The page of a comparison."""
    said = "\n".join(f"- {line}" for line in (*verdicts(results), *warnings(results)))
    blocks: list[Block] = [Heading("Summary"), Cards(_cards(results)), Text(said)]
    for backbone in dict.fromkeys(table["backbone"] for table in results["tables"]):
        blocks += [Heading(backbone), *_backbone_blocks(backbone, results)]
    blocks += [Heading("Who was seen before"), Text(_leakage(results))]
    blocks += [Heading("How it was done"), Text(protocol(results["setup"])), *_details(results)]
    draws = max((len(row["per_draw"]) for table in results["tables"] for row in table["rows"]), default=0)
    return Page(
        "Few-shot comparison",
        f"{len(results['arms'])} arms, up to {draws} draws of each number of shots; {label(results['metric'])}",
        blocks,
        footer=results["environment"]["code"],
    )


def _backbone_blocks(backbone: str, results: Results) -> list[Block]:
    """Figures and tables of one backbone."""
    metric = label(results["metric"])
    tables = [table for table in results["tables"] if table["backbone"] == backbone]
    blocks: list[Block] = []
    if len(tables) > 1:
        caption = "Each panel one arm (mean and standard error over draws), the baseline dashed, the others faint."
        blocks.append(Figure(figures.over_shots(tables, metric=metric), caption, wide=True))
    if any(row["over_baseline"] for table in tables for row in table["rows"]):
        caption = (
            f"**Gain over {BASELINE}**, 95 % intervals over draws (before adjustment). Filled: significant after it. "
            "Grey: controls."
        )
        blocks.append(Figure(figures.gains(tables, metric=metric), caption, wide=True))
    for table in tables:
        columns, rows = _columns(table, results["metric"])
        blocks.append(Table(columns, rows, f"**{_about(table)}**"))
        columns, rows = _control_columns(table)
        if rows:
            caption = f"**What learning the prompts adds**, {_shots(table)}: each arm beside its controls."
            blocks.append(Table(columns, rows, caption))
        blocks.append(Details(f"All scores, {_shots(table)}", [_score_table(table)]))
    if len(results["setup"]["lrs"]) > 1:
        caption = "**Learning rates**: mean validation score over draws. A line that rises to the edge wants more."
        blocks.append(Figure(figures.over_rates(tables, metric=metric), caption, wide=True))
    return blocks


def _details(results: Results) -> list[Block]:
    """Settings, set-up and machine, folded away."""
    settings = [
        [name, arm["method"], ", ".join(f"{key} = {value}" for key, value in arm["config"].items())]
        for name, arm in results["arms"].items()
    ]
    setup = [[name.replace("_", " "), _text(value)] for name, value in results["setup"].items()]
    machine = [[name, str(results["environment"][name])] for name in ("cpu", "cores", "platform", "python", "code")]
    return [
        Details("Settings of the arms", [Table(["arm", "method", "settings"], settings)]),
        Details("Set-up", [Table(["", "value"], setup)]),
        Details("Machine", [Table(["", "value"], machine)]),
    ]


def verdicts(results: Results) -> list[str]:
    """One sentence a table: what is significantly better than the baseline, and than its own controls."""
    found = []
    for table in results["tables"]:
        gains = {row["arm"]: row["over_baseline"] for row in table["rows"] if row["over_baseline"]}
        said = [f"**{table['backbone']}, {_shots(table)}**: {_sentence(gains, BASELINE)}"]
        controlled = {
            f"{row['arm']} {MINUS} {control}": gain
            for row in table["rows"]
            for control, gain in row["over_controls"].items()
        }
        if controlled:
            said.append(_sentence(controlled, "its control"))
        found.append("; ".join(said) + ".")
    return found


def _sentence(gains: Mapping[str, Mapping[str, Any]], what: str) -> str:
    """Which differences are significant; where none is, the largest."""
    marked = {f"{name} ({_difference(gain)})": gain["mean"] for name, gain in gains.items() if gain["significant"]}
    better, worse = ([name for name, mean in marked.items() if (mean > 0) == up] for up in (True, False))
    if not gains:
        return f"nothing to compare with {what}"
    if not better:
        most = max(gains, key=lambda name: gains[name]["mean"])
        said = f"no arm is significantly above {what} (most: {most}, {_difference(gains[most])})"
    else:
        said = f"above {what}: {', '.join(better)}"
    return said + (f"; below {what}: {', '.join(worse)}" if worse else "")


def warnings(results: Results) -> list[str]:
    """What to know before believing the tables."""
    found = list(results["notes"])
    rows = [row for table in results["tables"] for row in table["rows"]]
    if len(results["setup"]["lrs"]) > 2:
        edge, choices = Counter[str](), Counter[str]()
        for row in rows:
            edge[row["arm"]] += row["at_edge"]
            choices[row["arm"]] += row["choices"]
        often = [f"{arm} ({edge[arm]} of {n})" for arm, n in choices.items() if n and edge[arm] >= AT_EDGE * n]
        if often:
            found.append(
                "The chosen learning rate is often at an end of the grid, where a wider one may do better: "
                f"{', '.join(often)}."
            )
    draws = {len(row["per_draw"]) for row in rows}
    if draws and min(draws) < FEW_DRAWS:
        found.append(f"With fewer than {FEW_DRAWS} draws hardly any difference can be significant.")
    if len(draws) > 1:
        found.append("Not all arms have the same draws yet; differences are over the draws that both have.")
    return found


def markdown(results: Results) -> str:
    """All tables as Markdown, for a documentation page."""
    lines = []
    for table in results["tables"]:
        lines += [f"### {table['backbone']}, {_about(table)}", ""]
        for columns, rows in (_columns(table, results["metric"]), _control_columns(table)):
            if rows:
                lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
                lines += ["| " + " | ".join(row).replace("*", "\\*") + " |" for row in rows]
                lines.append("")
    lines += [f"- {line}" for line in warnings(results)]
    lines += ["", _legend(results).replace("*", "\\*")]
    return "\n".join(lines) + "\n"


def show(results: Results, console: Console) -> None:
    """Print the tables and what to know before believing them."""
    for table in results["tables"]:
        title = f"{table['backbone']}, {_about(table)}"
        for columns, rows in (_columns(table, results["metric"]), _control_columns(table)):
            if rows:
                printed = RichTable(box=SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1), pad_edge=False)
                for number, column in enumerate(columns):
                    printed.add_column(column.replace(" ", "\n") if number == 1 else column, no_wrap=number > 0)
                for row in rows:
                    printed.add_row(*row)
                console.print(printed)
            title = ""
    for line in (_legend(results), *warnings(results)):
        console.print(line, highlight=False, soft_wrap=True)


def label(metric: str) -> str:
    """What a score is called."""
    return LABELS.get(metric, metric.replace("_", " "))


def protocol(setup: Mapping[str, Any]) -> str:
    """How a comparison of this set-up is done."""
    text = PROTOCOL.format(
        unit=setup["unit"],
        images="one image of each" if setup["images"] == "one" else "all their images of that class",
        views=setup["views"],
        steps=setup["steps"],
        batch=setup["batch_size"],
        grid=", ".join(f"{lr:g}" for lr in setup["lrs"]),
        alpha=SIGNIFICANT,
    )
    if setup["published"]:
        how = "as they are, **leaks included**" if setup["as_published"] else "with the leaks taken out"
        text = f"Support sets and validation images are those of **published lists**, {how}.\n\n{text}"
    return text


def _cards(results: Results) -> list[Card]:
    setup, cells = results["setup"], results["cells"]
    seconds = sum(trial["seconds"] for cell in cells for trial in cell["trials"])
    trainings = sum(len(cell["trials"]) for cell in cells)
    test = cells[0]["images"]["test"] if cells else 0
    return [
        Card(
            "Arms", str(len(results["arms"])), f"{sum(bool(a['controls']) for a in results['arms'].values())} controls"
        ),
        Card("Trainings", str(trainings), f"{seconds / 60:.1f} minutes, one thread each"),
        Card("Classes", str(len(setup["classes"])), _kind(setup)),
        Card("Test images", str(test), "the same for all"),
    ]


def _columns(table: Mapping[str, Any], metric: str) -> tuple[list[str], list[list[str]]]:
    """A table's headings, and its rows as text."""
    columns = ["arm", label(metric), f"{MINUS} {BASELINE}", "p", "trained", "s", "MB"]
    rows = []
    for row in table["rows"]:
        gain = row["over_baseline"]
        rows.append(
            [
                f"↳ {row['arm']}" if row["controls"] else row["arm"],
                f"{row['mean']:.3f}" + (f" ± {row['se']:.3f}" if row["se"] is not None else ""),
                _difference(gain) if gain else "",
                _p(gain) if gain else "",
                f"{row['trained']:,}".replace(",", " "),
                f"{row['seconds']:.2f}",
                f"{row['memory'] / 1e6:.1f}",
            ]
        )
    if len({len(row["per_draw"]) for row in table["rows"]}) > 1:
        columns.append("draws")
        rows = [[*row, str(len(of["per_draw"]))] for row, of in zip(rows, table["rows"], strict=True)]
    return columns, rows


def _control_columns(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same of an arm's differences to its controls."""
    rows = [
        [row["arm"], control, _difference(gain), _p(gain)]
        for row in table["rows"]
        for control, gain in row["over_controls"].items()
    ]
    return ["arm", "control", f"arm {MINUS} control", "p"], rows


def _score_table(table: Mapping[str, Any]) -> Table:
    names = list(dict.fromkeys(name for row in table["rows"] for name in row["scores"]))
    shown = [name for name in LABELS if name in names] + [name for name in names if name.endswith("_as_published")]
    rows: list[list[Value]] = [
        [row["arm"], *(_spread(row["scores"].get(name)) for name in shown)] for row in table["rows"]
    ]
    caption = "Test images; mean and standard error over draws. Scatter: within classes, as a share of the whole."
    return Table(["arm", *map(label, shown)], rows, caption)


def _leakage(results: Results) -> str:
    lines = []
    for backbone, counts in results["leakage"].items():
        if backbone.startswith("random:"):
            lines.append(f"- **{backbone}**: nobody; its weights are random.")
        elif not counts:
            lines.append(f"- **{backbone}**: not known; it is no run of ours that says whom it has seen.")
        else:
            seen = ", ".join(f"{count} of the {name} patients" for name, count in counts.items())
            lines.append(f"- **{backbone}**: pre-trained, without these labels, on {seen}.")
    return "\n".join(lines)


def _kind(setup: Mapping[str, Any]) -> str:
    if setup["task"] != "classification" or setup["multilabel"]:
        return "several labels an image" if setup["multilabel"] else str(setup["task"])
    return f"chance: {1 / len(setup['classes']):.3f}"


def _difference(gain: Mapping[str, Any]) -> str:
    text = f"{gain['mean']:+.3f}".replace("-", MINUS)
    text += f" ± {gain['se']:.3f}" if gain["se"] is not None else ""
    return text + (" *" if gain["significant"] else "")


def _p(gain: Mapping[str, Any]) -> str:
    value = gain["adjusted"]
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _legend(results: Results) -> str:
    return (
        f"{_capital(label(results['metric']))} ± standard error over draws; differences are paired over draws. "
        f"p after Holm's correction, * below {SIGNIFICANT}. ↳ a control. Trained: parameters, with the head's. "
        "MB: memory of a training step beside weights and images."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _about(table: Mapping[str, Any]) -> str:
    draws = max((len(row["per_draw"]) for row in table["rows"]), default=0)
    images = max((row["images"] for row in table["rows"]), default=0)
    return f"{_shots(table)}, {images:.0f} image{'s' if images > 1 else ''}, {draws} draw{'s' if draws > 1 else ''}"


def _shots(table: Mapping[str, Any]) -> str:
    return f"{table['shots']} shot{'s' if table['shots'] > 1 else ''}"


def _spread(score: Mapping[str, Any] | None) -> Value:
    if score is None:
        return None
    return score["mean"] if score["se"] is None else (score["mean"], score["se"])


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
