"""The figures of reports and claims, in one style; each function returns a matplotlib Figure and keeps no state.

Colours are Okabe and Ito's, told apart with any kind of colour vision. Three greys stand for text, ticks and rules:
`vesalius.report.html` replaces them by the page's own, so that figures follow a light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

INK, MUTED, GRID = "#24292f", "#6e7781", "#d8dee4"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
TRUTH, PREDICTION = "#56b4e9", "#e69f00"

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "image.interpolation": "nearest",
}
SVG_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "vesalius", "svg.image_inline": True}
"""Text stays text (in the page's font) and the same figure gives the same bytes."""


@matplotlib.rc_context(STYLE)
def learning_curves(
    histories: Mapping[str, Mapping[str, ArrayLike]],
    metrics: Sequence[str],
    *,
    titles: Mapping[str, str] | None = None,
    columns: int = 3,
) -> Figure:
    """One panel per metric, one line per run; long noisy curves also as a running mean.

    Args:
        histories: run name -> column name -> values, one of the columns being ``step``; NaN where a metric was not
            measured at that step.
        metrics: the columns to show.
        titles: what to call a column.
        columns: panels in a row.
    """
    rows = ceil(len(metrics) / columns)
    figure, axes = _panels(rows, min(columns, len(metrics)), width=10.0, height=2.9)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for colour, history in zip(_colours(len(histories)), histories.values(), strict=True):
            if metric not in history:
                continue
            step, value = np.asarray(history["step"], float), np.asarray(history[metric], float)
            known = np.isfinite(value)
            step, value = step[known], value[known]
            if len(value) > 60:
                axis.plot(step, value, color=colour, linewidth=0.7, alpha=0.3)
                value = _running_mean(value, len(value) // 20)
            axis.plot(step, value, color=colour, marker="o" if len(value) < 12 else "", markersize=4)
        axis.set_title((titles or {}).get(metric, metric))
        axis.set_xlabel("step")
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    if len(histories) > 1:
        _legend(figure, list(histories))
    return figure


@matplotlib.rc_context(STYLE)
def reconstruction_grid(
    samples: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    titles: Sequence[str] = ("original", "corrupted", "restored"),
) -> Figure:
    """Each row a sample: the three pictures, then their spectra as log magnitude, all three on the original's scale.

    Args:
        samples: (original, corrupted, restored), each ``[H, W]`` or ``[C, H, W]``, on one intensity scale.
        titles: headings of the three.
    """
    figure, axes = _panels(len(samples), 6, width=10.0, height=1.72, grid=False)
    for row, sample in zip(axes, samples, strict=True):
        pictures = [_grey(picture) for picture in sample]
        low, high = np.percentile(pictures[0], (0.2, 99.8))
        spectra = [_spectrum(picture) for picture in pictures]
        floor, ceiling = np.percentile(spectra[0], (2, 99.9))
        for axis, picture in zip(row[:3], pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=low, vmax=high)
        for axis, spectrum in zip(row[3:], spectra, strict=True):
            axis.imshow(spectrum, cmap="magma", vmin=floor, vmax=ceiling)
    for axis, title in zip(axes[0], (*titles, *(f"{title}, spectrum" for title in titles)), strict=True):
        axis.set_title(title, fontsize=9)
    return figure


@matplotlib.rc_context(STYLE)
def mask_overlays(
    images: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    predictions: Sequence[ArrayLike],
    *,
    captions: Sequence[str] | None = None,
    columns: int = 5,
) -> Figure:
    """Pictures with the outline of the true mask (solid) and of the predicted one (dashed).

    Args:
        images: ``[H, W]`` or ``[C, H, W]`` each.
        truths: ``[H, W]`` each, nonzero inside.
        predictions: ``[H, W]`` each, nonzero inside.
        captions: a line above each picture.
        columns: pictures in a row.
    """
    rows = ceil(len(images) / columns)
    figure, axes = _panels(rows, columns, width=10.0, height=2.15, grid=False)
    for i, (axis, image, truth, prediction) in enumerate(zip(axes.flat, images, truths, predictions, strict=False)):
        axis.imshow(_grey(image), cmap="gray")
        for mask, colour, style in ((truth, TRUTH, "solid"), (prediction, PREDICTION, "dashed")):
            inside = np.asarray(mask) > 0
            if inside.any() and not inside.all():
                axis.contour(inside.astype(float), [0.5], colors=[colour], linewidths=1.6, linestyles=style)
        if captions is not None:
            axis.set_title(captions[i], fontsize=9)
    for axis in axes.flat[len(images) :]:
        axis.set_visible(False)
    _legend(figure, ["truth", "prediction"], colours=(TRUTH, PREDICTION), styles=("solid", "dashed"))
    return figure


@matplotlib.rc_context(STYLE)
def arms(
    results: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    chance: Mapping[str, float] | None = None,
    digits: int = 3,
    columns: int = 3,
) -> Figure:
    """One panel per metric, one row per arm: each seed a point, the mean and standard deviation beside them.

    Args:
        results: metric -> arm -> one value per seed.
        chance: metric -> value to be expected without learning, a dotted line.
        digits: decimals of the printed mean.
        columns: panels in a row.
    """
    names = list(dict.fromkeys(arm for per_arm in results.values() for arm in per_arm))
    rows = ceil(len(results) / columns)
    figure, axes = _panels(rows, min(columns, len(results)), width=10.0, height=0.7 + 0.42 * len(names), sharey=True)
    for axis, (metric, per_arm) in zip(axes.flat, results.items(), strict=False):
        for place, (name, colour) in enumerate(zip(names, _colours(len(names)), strict=True)):
            values = np.asarray(per_arm.get(name, ()), float)
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            axis.plot(values, np.full(len(values), place + 0.24), "o", color=colour, alpha=0.55, markersize=4)
            axis.errorbar(values.mean(), place, xerr=spread, fmt="o", color=colour, markersize=7, capsize=0)
            text = f"{values.mean():.{digits}f}" + (f" ± {spread:.{digits}f}" if len(values) > 1 else "")
            axis.annotate(
                text, (values.mean(), place), (0, 8), textcoords="offset points", ha="center", color=MUTED, fontsize=8.5
            )
        if chance is not None and metric in chance:
            axis.axvline(chance[metric], color=MUTED, linewidth=1, linestyle=":")
        axis.set_title(metric)
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(axis="y", labelcolor=INK)
        axis.set_ylim(len(names) - 0.4, -0.75)
        axis.margins(x=0.2)
        axis.grid(visible=False, axis="y")
        axis.spines["left"].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def organ_counts(counts: Mapping[str, int], sampling: Mapping[str, Mapping[str, float]] | None = None) -> Figure:
    """How many images there are of each organ, and how often each organ is drawn.

    Args:
        counts: organ -> number of images.
        sampling: name of a sampling scheme -> organ -> probability.
    """
    organs = sorted(counts, key=lambda organ: -counts[organ])
    shares = {
        "share of the images": {organ: counts[organ] / sum(counts.values()) for organ in organs},
        **(sampling or {}),
    }
    figure, axes = _panels(1, 1, width=7.0, height=0.8 + 0.3 * len(organs) * len(shares))
    axis, thickness = axes.flat[0], 0.78 / len(shares)
    for k, ((name, share), colour) in enumerate(zip(shares.items(), _colours(len(shares)), strict=True)):
        places = np.arange(len(organs)) + (k - (len(shares) - 1) / 2) * thickness
        values = [100 * share.get(organ, 0.0) for organ in organs]
        bars = axis.barh(places, values, height=thickness * 0.86, color=colour, label=name)
        axis.bar_label(bars, [f"{value:.0f} %" for value in values], padding=4, color=MUTED, fontsize=8.5)
    axis.set_yticks(range(len(organs)), [f"{organ} ({counts[organ]})" for organ in organs])
    axis.tick_params(axis="y", labelcolor=INK)
    axis.invert_yaxis()
    axis.set_xlabel("per cent")
    axis.margins(x=0.1)
    axis.grid(visible=False, axis="y")
    if len(shares) > 1:
        _legend(figure, list(shares))
    return figure


@matplotlib.rc_context(STYLE)
def label_efficiency(
    results: Mapping[str, Mapping[int, Sequence[float]]], *, metric: str = "Dice", labels: str = "labelled images"
) -> Figure:
    """A metric over the number of labels: the mean of each arm, a band of one standard deviation.

    Args:
        results: arm -> number of labels -> one value per seed.
        metric: name of the vertical axis.
        labels: name of the horizontal axis.
    """
    figure, axes = _panels(1, 1, width=6.4, height=3.4)
    axis = axes.flat[0]
    for colour, points in zip(_colours(len(results)), results.values(), strict=True):
        counts = sorted(points)
        mean = np.array([np.mean(points[count]) for count in counts])
        spread = np.array([np.std(points[count], ddof=1) if len(points[count]) > 1 else 0.0 for count in counts])
        axis.plot(counts, mean, color=colour, marker="o", markersize=5)
        axis.fill_between(counts, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
    every = sorted({count for points in results.values() for count in points})
    axis.set_xscale("log")
    axis.set_xticks(every, [str(count) for count in every])
    axis.minorticks_off()
    axis.set(xlabel=labels, ylabel=metric)
    _legend(figure, list(results))
    return figure


def _panels(
    rows: int, columns: int, *, width: float, height: float, grid: bool = True, sharey: bool = False
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes ``[rows, columns]``; without grid they are for pictures."""
    gap = 0.05 if grid else 0.0
    layout = ConstrainedLayoutEngine(wspace=gap, hspace=gap)
    figure = Figure(figsize=(width, height * rows + 0.35), layout=layout)
    axes: np.ndarray = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    if not grid:
        for axis in axes.flat:
            axis.set_axis_off()
    return figure, axes


def _legend(
    figure: Figure, names: Sequence[str], *, colours: Sequence[str] | None = None, styles: Sequence[Any] | None = None
) -> None:
    """One legend above all panels."""
    lines = [
        Line2D([], [], color=colour, linestyle=style, linewidth=2.4)
        for colour, style in zip(colours or _colours(len(names)), styles or ["solid"] * len(names), strict=True)
    ]
    figure.legend(lines, names, loc="outside upper left", ncols=min(len(names), 5), handlelength=1.6)


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _grey(picture: ArrayLike) -> np.ndarray:
    """``[H, W]`` of ``[H, W]`` or ``[C, H, W]``."""
    array = np.asarray(picture, float)
    return array.mean(0) if array.ndim == 3 else array


def _spectrum(picture: np.ndarray) -> np.ndarray:
    """Log magnitude of the centred spectrum."""
    return np.log10(np.abs(np.fft.fftshift(np.fft.fft2(picture - picture.mean(), norm="ortho"))) + 1e-4)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over a window of about `width`, which narrows towards the ends so that they stay where they are."""
    place = np.arange(len(values))
    half = np.minimum(max(width // 2, 1), np.minimum(place, place[::-1]))
    total = np.cumsum(np.concatenate([[0.0], values]))
    return (total[place + half + 1] - total[place - half]) / (2 * half + 1)
