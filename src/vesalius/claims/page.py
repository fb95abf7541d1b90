"""A claim's page: the verdicts first, then every number they rest on, then how it was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable

from vesalius.report.figures import arms as draw_arms
from vesalius.report.figures import reconstruction_grid
from vesalius.report.html import Block, Figure, Heading, Page, Table, Text


def groups(results: Mapping[str, Any]) -> list[tuple[list[str], list[str]]]:
    """(arms, metrics) that belong together: metrics that the same arms have."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in results["metrics"]:
        arms = tuple(arm for arm, summary in results["summary"].items() if name in summary)
        if arms:
            found.setdefault(arms, []).append(name)
    return [(list(arms), names) for arms, names in found.items()]


def scores(results: Mapping[str, Any], arms: Sequence[str], metrics: Sequence[str]) -> MatplotlibFigure:
    """One panel a metric, one row an arm, one point a seed; `results` as results.json holds them."""
    panels = {}
    for name in metrics:
        arrow = "higher" if results["metrics"][name]["higher"] else "lower"
        label = f"{results['metrics'][name]['label']} ({arrow} is better)"
        panels[label] = {short(arm): results["summary"][arm][name]["values"] for arm in arms}
    return draw_arms(panels, columns=3 if len(metrics) > 1 else 1)


def page(results: Mapping[str, Any], details: Sequence[Block] = ()) -> Page:
    """The page of `results` as results.json holds them; `details` are what one claim alone has to show."""
    budget, seeds = results["setup"]["budget"], len(results["seeds"])
    blocks: list[Block] = [Heading("Verdicts"), verdict_table(results, control=False)]
    if any(verdict["control"] for verdict in results["verdicts"]):
        blocks.append(verdict_table(results, control=True))
    blocks += [Text(results["rule"]), Heading("Scores")]
    blocks.append(Text("\n".join(f"- **{short(arm)}**: {text}" for arm, text in results["arms"].items())))
    for arms, metrics in groups(results):
        if len(arms) > 1:
            caption = "Small points are seeds; the large one is their mean, with the standard deviation."
            blocks.append(Figure(scores(results, arms, metrics), caption, wide=True))
        blocks.append(score_table(results, arms, metrics))
    blocks += details
    environment = results["environment"]
    blocks += [
        Heading("How it was done"),
        Text(results["method"]),
        Table(["what every arm got", "value"], [[name.replace("_", " "), value] for name, value in budget.items()]),
        Table(
            ["machine", ""],
            [[name, str(environment[name])] for name in ("cpu", "cores", "platform", "python", "code")],
        ),
    ]
    minutes = sum(sum(values) for values in results["seconds"].values()) / 60 / seeds
    return Page(
        results["title"],
        f"{seeds} seed{'s' if seeds > 1 else ''} on {results['setup']['data']}, equal budgets; "
        f"{minutes:.0f} minutes of worker time a seed",
        blocks,
        footer=environment["code"],
    )


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print the scores and the verdicts."""
    for arms, metrics in groups(results):
        table = RichTable("", *(results["metrics"][name]["label"] for name in metrics), box=SIMPLE)
        for arm in arms:
            cells = (results["summary"][arm][name] for name in metrics)
            table.add_row(short(arm), *(_plus_minus(cell["mean"], cell["sd"]) for cell in cells))
        console.print(table)
    table = RichTable("", "statement", "measured by", "gain", "verdict", box=SIMPLE)
    for verdict in results["verdicts"]:
        label = results["metrics"][verdict["metric"]]["label"]
        gain = _plus_minus(verdict["mean"], _uncertainty(verdict))
        table.add_row(verdict["name"], verdict["statement"], label, gain, verdict["verdict"])
    console.print(table)


def verdict_table(results: Mapping[str, Any], *, control: bool) -> Table:
    """The claims, or the controls that say what explains them, with the difference over seeds."""
    rows = [
        [
            verdict["name"],
            verdict["statement"],
            results["metrics"][verdict["metric"]]["label"],
            (verdict["mean"], _uncertainty(verdict)),
            verdict["verdict"],
        ]
        for verdict in results["verdicts"]
        if verdict["control"] == control
    ]
    caption = "Controls: what else would explain it." if control else "What the paper claims, at this scale."
    return Table(["control" if control else "claim", "statement", "measured by", "gain", "verdict"], rows, caption)


def score_table(results: Mapping[str, Any], arms: Sequence[str], metrics: Sequence[str]) -> Table:
    """Mean and standard deviation over seeds."""
    labels = [results["metrics"][name]["label"] for name in metrics]
    rows = []
    for arm in arms:
        cells = [results["summary"][arm][name] for name in metrics]
        rows.append([short(arm), *((cell["mean"], _spread(cell["sd"])) for cell in cells)])
    best = {
        label: "max" if results["metrics"][name]["higher"] else "min"
        for name, label in zip(metrics, labels, strict=True)
    }
    return Table(
        ["arm", *labels], rows, "Mean and standard deviation over seeds; the best of a column is marked.", best
    )


def restorations(results: Mapping[str, Any], out: Path) -> list[Block]:
    """What the networks of the first seed in `out` saw and restored."""
    folder = out / f"seed{results['seeds'][0]}"
    blocks: list[Block] = []
    for arm, label in results["arms"].items():
        path = folder / f"{arm}.npz"
        if path.exists():
            with np.load(path) as stored:
                samples = [tuple(stored[name][i] for name in ("original", "corrupted", "restored")) for i in range(2)]
            blocks.append(Figure(reconstruction_grid(samples), f"**{label}**: two test images and their spectra."))
    return [Heading("What the networks saw and restored"), *blocks] if blocks else []


def short(arm: str) -> str:
    """An arm's name as it is shown."""
    return arm.replace("_", " ")


def _plus_minus(mean: float, sd: float | None) -> str:
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def _uncertainty(verdict: Mapping[str, Any]) -> float:
    """Standard error over draws and seeds, or standard deviation over seeds where there are no draws."""
    return verdict["sd"] if verdict["se"] is None else verdict["se"]


def _spread(sd: float | None) -> float:
    return float("nan") if sd is None else sd
