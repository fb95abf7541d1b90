from __future__ import annotations

import math

import pytest

from vesalius.compare.statistics import differences, holm, mean_and_error, over_draws


def test_seeds_are_averaged_before_draws():
    scores = {(0, 0): 0.2, (0, 1): 0.4, (0, 2): math.nan, (1, 0): 0.7}
    draws = over_draws(scores)
    assert draws == {0: pytest.approx(0.3), 1: 0.7}
    mean, error = mean_and_error(list(draws.values()))
    assert mean == pytest.approx(0.5)  # not (0.2 + 0.4 + 0.7) / 3
    assert error == pytest.approx(0.2)  # standard deviation 0.2828 over the root of 2


def test_a_paired_difference_has_the_t_test_of_the_textbook():
    # Differences 1, 2, 3, 4: mean 2.5, sd 1.29099, se 0.64550, t = 3.87298 with 3 degrees of freedom, p = 0.03047.
    arm, other = {0: 11.0, 1: 22.0, 2: 33.0, 3: 44.0, 9: 0.0}, {0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0, 5: 7.0}
    one = differences({"arm": (arm, other)})["arm"]
    assert (one.mean, one.se, one.draws) == (2.5, pytest.approx(0.645497), 4)
    assert one.p == pytest.approx(0.030466, abs=1e-6)
    assert one.low == pytest.approx(2.5 - 3.182446 * 0.645497, abs=1e-5)
    assert one.adjusted == one.p and one.significant


def test_p_values_of_one_table_are_adjusted_together():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.02})
    assert adjusted == {k: pytest.approx(v) for k, v in {"b": 0.04, "d": 0.06, "c": 0.06, "a": 0.06}.items()}
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    arm, other = {0: 11.0, 1: 22.0, 2: 33.0, 3: 44.0}, {0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0}
    both = differences({"arm": (arm, other), "same": (arm, arm), "again": (arm, other)})
    assert both["arm"].adjusted == pytest.approx(2 * 0.030466, abs=1e-5)
    assert not both["arm"].significant
    assert both["same"].p is None and both["same"].se == 0.0 and not both["same"].significant


def test_one_draw_has_no_error_and_no_test():
    one = differences({"arm": ({0: 0.75}, {0: 0.5}), "none": ({0: 1.0}, {1: 1.0})})
    assert set(one) == {"arm"}
    assert (one["arm"].mean, one["arm"].se, one["arm"].p, one["arm"].significant) == (0.25, None, None, False)
