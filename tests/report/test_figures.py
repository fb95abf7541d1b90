"""Figures show the numbers they are given."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

from vesalius.report import figures


def test_learning_curves_skip_what_was_not_measured():
    history = {"step": [0, 1, 2, 3], "loss": [4.0, np.nan, 2.0, 1.0]}
    figure = figures.learning_curves({"run": history}, ["loss", "absent"])
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [0, 2, 3]
    assert not figure.axes[1].lines


def test_running_mean_keeps_a_straight_line():
    values = np.linspace(0, 1, 101)
    assert np.allclose(figures._running_mean(values, 10), values)


def test_arms_show_each_seed_the_mean_and_the_sample_deviation():
    figure = figures.arms({"Dice": {"a": [0.5, 0.7], "b": [0.9]}}, chance={"Dice": 0.5})
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0.600 ± 0.141", "0.900"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_reconstruction_shows_spectra_on_the_originals_scale():
    rng = np.random.default_rng(0)
    original = rng.random((1, 16, 16))
    figure = figures.reconstruction_grid([(original, original * 0, original)])
    assert len(figure.axes) == 6
    first, empty, last = (axis.images[0] for axis in figure.axes[3:])
    assert first.get_clim() == empty.get_clim() == last.get_clim()
    assert np.array_equal(first.get_array(), last.get_array())
    assert empty.get_array().max() == pytest.approx(-4)


def test_overlays_outline_truth_and_prediction():
    mask = np.zeros((16, 16), dtype=int)
    mask[4:9, 4:9] = 1
    figure = figures.mask_overlays([np.zeros((16, 16))] * 2, [mask, mask], [mask, mask * 0], columns=2)
    assert [len(axis.collections) for axis in figure.axes] == [2, 1]


def test_organ_counts_are_sorted_and_in_per_cent():
    figure = figures.organ_counts({"liver": 1, "breast": 3}, {"balanced": {"liver": 0.5, "breast": 0.5}})
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert labels == ["breast (3)", "liver (1)"]
    assert widths == [75, 25, 50, 50]


def test_style_does_not_leak():
    before = dict(mpl.rcParams)
    figures.label_efficiency({"a": {20: [0.5, 0.6], 80: [0.7]}})
    assert dict(mpl.rcParams) == before
