"""Bootstrap intervals: cover the truth about as often as they say, and respect patients."""

from __future__ import annotations

import numpy as np
import pytest

from vesalius.errors import VesaliusError
from vesalius.evaluation.metrics import bootstrap


def test_interval_of_a_mean_has_the_width_that_theory_says():
    values = np.random.default_rng(0).standard_normal(400)
    interval = bootstrap(lambda rows: float(values[rows].mean()), 400, draws=2000)
    assert interval["high"] - interval["low"] == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert interval == bootstrap(lambda rows: float(values[rows].mean()), 400, draws=2000)  # seeded


def test_images_of_a_patient_are_drawn_together():
    patients = np.repeat(np.arange(10), 20)
    values = np.random.default_rng(0).standard_normal(10)[patients]  # no news within a patient

    def width(**options):
        interval = bootstrap(lambda rows: float(values[rows].mean()), 200, draws=500, **options)
        return interval["high"] - interval["low"]

    assert width(groups=patients) > 3 * width()


def test_undefined_draws_are_left_out_and_counted():
    values = np.array([1.0, np.nan, np.nan])
    interval = bootstrap(lambda rows: float(values[rows][0]), 3, draws=300)
    assert interval["low"] == 1 and 60 < interval["draws"] < 140


def test_groups_of_another_length_are_refused():
    with pytest.raises(VesaliusError, match="2 groups for 3 images"):
        bootstrap(lambda rows: 0.0, 3, groups=["a", "b"])
