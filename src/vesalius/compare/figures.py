"""The figures of a comparison: scores over shots, gains over the baseline, and how much the learning rate matters.

Small panels, one an arm, rather than a dozen lines in one: the arm in colour, the baseline dashed, all others faint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vesalius.compare.arms import BASELINE
from vesalius.report.figures import COLOURS, GRID, INK, MUTED, STYLE

ACROSS = 5
"""Panels in a row."""
Tables = Sequence[Mapping[str, Any]]
"""Those of one backbone, by shots."""


@matplotlib.rc_context(STYLE)
def over_shots(tables: Tables, *, metric: str) -> Figure:
    """The score over the number of shots, with one standard error over draws."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for table in tables:
        for row in table["rows"]:
            points.setdefault(row["arm"], []).append((table["shots"], row["mean"], row["se"] or 0.0))
    arms = [arm for arm in points if arm != BASELINE] or list(points)
    figure, axes = _panels(len(arms), height=1.75)
    for axis, arm in zip(axes, arms, strict=False):
        for other, values in points.items():
            shots, mean, _ = np.array(values).T
            if other == BASELINE:
                axis.plot(shots, mean, color=INK, linestyle="--", linewidth=1.2, zorder=3)
            else:
                axis.plot(shots, mean, color=GRID, linewidth=1.0)
        shots, mean, error = np.array(points[arm]).T
        axis.errorbar(shots, mean, error, color=COLOURS[0], marker="o", markersize=4)
        axis.set_xscale("log")
        axis.set_xticks(shots, [f"{shot:.0f}" for shot in shots])
        axis.minorticks_off()
        axis.set_title(arm, fontsize=8.5)
        axis.margins(x=0.15)
    figure.supylabel(metric, fontsize=9)
    figure.supxlabel("shots (dashed: linear)", fontsize=9)
    return figure


@matplotlib.rc_context(STYLE)
def gains(tables: Tables, *, metric: str) -> Figure:
    """Each arm's difference to the baseline with its 95 % interval over draws; filled where significant."""
    arms = list(dict.fromkeys(row["arm"] for table in tables for row in table["rows"] if row["over_baseline"]))
    figure = Figure(figsize=(10.0, 0.8 + 0.26 * len(arms)), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for axis, table in zip(axes, tables, strict=True):
        for row in table["rows"]:
            gain = row["over_baseline"]
            if gain is None:
                continue
            place, colour = arms.index(row["arm"]), MUTED if row["controls"] else COLOURS[0]
            if gain["low"] is not None:
                axis.plot([gain["low"], gain["high"]], [place, place], color=colour, linewidth=1.6)
            filled = colour if gain["significant"] else "white"
            axis.plot(gain["mean"], place, "o", color=colour, markerfacecolor=filled, markersize=6)
        axis.axvline(0, color=INK, linewidth=1, linestyle="--")
        axis.set_title(f"{table['shots']} shot{'s' if table['shots'] > 1 else ''}")
        axis.set_yticks(range(len(arms)), arms)
        axis.tick_params(axis="y", labelcolor=INK)
        axis.set_ylim(len(arms) - 0.4, -0.6)
        axis.grid(visible=False, axis="y")
        axis.spines["left"].set_visible(False)
        axis.set_xlabel(f"{metric} minus that of {BASELINE}")
    return figure


@matplotlib.rc_context(STYLE)
def over_rates(tables: Tables, *, metric: str) -> Figure:
    """The mean validation score of every learning rate, one line a number of shots."""
    arms = list(dict.fromkeys(row["arm"] for table in tables for row in table["rows"]))
    figure, axes = _panels(len(arms), height=1.75)
    for number, table in enumerate(tables):
        for row in table["rows"]:
            known = [(float(lr), value) for lr, value in row["sensitivity"].items() if value is not None]
            if known:
                axis = axes[arms.index(row["arm"])]
                lrs, values = zip(*known, strict=True)
                label = f"{table['shots']} shot{'s' if table['shots'] > 1 else ''}"
                axis.plot(lrs, values, color=COLOURS[number % len(COLOURS)], marker="o", markersize=3.5, label=label)
    for axis, arm in zip(axes, arms, strict=False):
        axis.set_xscale("log")
        axis.set_title(arm, fontsize=8.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=5)
    figure.supylabel(f"validation {metric}", fontsize=9)
    figure.supxlabel("learning rate", fontsize=9)
    return figure


def _panels(count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels on common axes."""
    across = min(count, ACROSS)
    rows = ceil(count / across)
    figure = Figure(figsize=(10.0, height * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, across, squeeze=False, sharey=True, sharex=True).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes[max(count - across, 0) : count]:  # the lowest that is seen of its column
        axis.tick_params(axis="x", labelbottom=True)
    return figure, axes[:count]
