"""The rules that fixtures are filled by, pinned: a change would make every kept fixture meaningless."""

from __future__ import annotations

import numpy as np
import pytest

from vesalius.errors import WeightsError
from vesalius.published.fixture import Fixture, input_rule, weight_rule

WEIGHTS = [-0.4715689, 1.2695442, 0.5761161, -0.7464021]
INPUTS = [1.0, -1.0, 0.7962478, -0.1867396, -0.3679781, 0.3718737]


def test_weights_depend_on_the_name_and_kind():
    assert weight_rule("norm.weight", ()).shape == ()
    big = {name: weight_rule(name, (200, 50)).std() for name in ("pos_embed", "patch_embed.proj.weight", "fc.weight")}
    assert big["pos_embed"] == pytest.approx(0.02, rel=0.05)
    assert big["patch_embed.proj.weight"] == pytest.approx(50**-0.5, rel=0.05)
    assert big["fc.weight"] == pytest.approx(50**-0.5, rel=0.05)
    assert weight_rule("norm.weight", (1000,)).mean() == pytest.approx(1, abs=0.02)
    assert weight_rule("norm.bias", (1000,)).mean() == pytest.approx(0, abs=0.02)
    assert not np.array_equal(weight_rule("a.bias", (4,)), weight_rule("b.bias", (4,)))


def test_rules_are_pinned():
    np.testing.assert_allclose(weight_rule("fc.weight", (2, 2)).ravel(), WEIGHTS, rtol=1e-6)
    np.testing.assert_allclose(input_rule((2, 3), seed=3, low=-1, high=1).ravel(), INPUTS, rtol=1e-6, atol=1e-7)


def test_not_a_fixture(tmp_path):
    (tmp_path / "x.json.gz").write_bytes(b"no")
    with pytest.raises(WeightsError, match="not a parity fixture"):
        Fixture.read(tmp_path / "x.json.gz")
    with pytest.raises(WeightsError, match="not a parity fixture"):
        Fixture.read(tmp_path / "absent.json.gz")


def test_error_of_another_shape_or_nan_is_infinite():
    kept = {"out": {"value": np.array([3.0, 4.0])}}
    fixture = Fixture("f", {}, 1e-4, {}, {}, "", "", {}, kept, {})
    assert fixture.error("out", np.array([3.0, 4.5])) == pytest.approx(0.1)
    assert fixture.error("out", np.zeros(3)) == float("inf")
    assert fixture.error("out", np.array([np.nan, 4.0])) == float("inf")
