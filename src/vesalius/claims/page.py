"""A claim's page: the verdicts first, then every number they rest on, then how it was done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure

from vesalius.report.figures import arms as draw_arms
from vesalius.report.figures import reconstruction_grid
from vesalius.report.html import Block, Figure, Heading, Page, Table, Text


def scores(results: Mapping[str, Any]) -> MatplotlibFigure:
    """One panel a metric, one row an arm, one point a seed; `results` as results.json holds them."""
    panels = {}
    for name, metric in results["metrics"].items():
        values = {_name(arm): s[name]["values"] for arm, s in results["summary"].items() if name in s}
        if values:
            arrow = "higher" if metric["higher"] else "lower"
            panels[f"{metric['label']} ({arrow} is better)"] = values
    return draw_arms(panels, columns=2)


def page(results: Mapping[str, Any], out: Path) -> Page:
    """The page of `results` as results.json holds them; pictures are those of the first seed in `out`."""
    budget, seeds = results["setup"]["budget"], len(results["seeds"])
    blocks: list[Block] = [Heading("Verdicts"), verdict_table(results, control=False)]
    if any(verdict["control"] for verdict in results["verdicts"]):
        blocks.append(verdict_table(results, control=True))
    blocks += [Text(results["rule"]), Heading("Scores"), Figure(scores(results), "Points are seeds.", wide=True)]
    blocks.append(score_table(results))
    pictures = _pictures(results, out)
    if pictures:
        blocks += [Heading("What the networks saw and restored"), *pictures]
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


def verdict_table(results: Mapping[str, Any], *, control: bool) -> Table:
    """The claims, or the controls that say what explains them, with the difference over seeds."""
    rows = [
        [
            verdict["name"],
            verdict["statement"],
            results["metrics"][verdict["metric"]]["label"],
            (verdict["mean"], verdict["sd"]),
            verdict["verdict"],
        ]
        for verdict in results["verdicts"]
        if verdict["control"] == control
    ]
    caption = "Controls: what else would explain it." if control else "What the paper claims, at this scale."
    return Table(["control" if control else "claim", "statement", "measured by", "gain", "verdict"], rows, caption)


def score_table(results: Mapping[str, Any]) -> Table:
    """Mean and standard deviation over seeds of every arm and metric."""
    names = [name for name in results["metrics"] if any(name in s for s in results["summary"].values())]
    labels = [results["metrics"][name]["label"] for name in names]
    rows = []
    for arm, summary in results["summary"].items():
        cells = [(summary[n]["mean"], _spread(summary[n]["sd"])) if n in summary else None for n in names]
        rows.append([results["arms"][arm], *cells])
    best = {
        label: "max" if results["metrics"][name]["higher"] else "min" for name, label in zip(names, labels, strict=True)
    }
    return Table(
        ["arm", *labels], rows, "Mean and standard deviation over seeds; the best of a column is marked.", best
    )


def _pictures(results: Mapping[str, Any], out: Path) -> list[Block]:
    folder = out / f"seed{results['seeds'][0]}"
    blocks: list[Block] = []
    for arm, label in results["arms"].items():
        path = folder / f"{arm}.npz"
        if path.exists():
            with np.load(path) as stored:
                samples = [tuple(stored[name][i] for name in ("original", "corrupted", "restored")) for i in range(2)]
            blocks.append(Figure(reconstruction_grid(samples), f"**{label}**: two test images and their spectra."))
    return blocks


def _name(arm: str) -> str:
    return arm.replace("_", " ")


def _spread(sd: float | None) -> float:
    return float("nan") if sd is None else sd
