"""The queue: units, orders, costs, and the authors' two scores."""

from __future__ import annotations

import pytest

from vesalius.curate.ranking import (
    Minutes,
    published_attention_size,
    published_case_order,
    published_structure_order,
    rank,
    revised_share,
)
from vesalius.errors import VesaliusError


def one(voxels, size=1.0, *, uncertainty=0, heat=None):
    heat = 255 * voxels if heat is None else heat
    return {
        "voxels": voxels, "mm3": voxels * size, "voxel_mm3": size, "uncertainty": uncertainty, "heat": heat
    }  # fmt: skip


FINE = {"liver": one(8000, 0.5, uncertainty=100), "spleen": one(10, 0.5)}
COARSE = {"liver": one(1000, 8.0, uncertainty=0), "aorta": one(0, 8.0)}
CASES = {"fine": FINE, "coarse": COARSE}


def test_millimetres_decide_and_voxels_as_published():
    assert [(item.case, item.structure) for item in rank(CASES)] == [
        ("coarse", "liver"), ("fine", "liver"), ("fine", "spleen")
    ]  # fmt: skip
    assert rank(CASES, as_published=True)[0].case == "fine"
    assert published_case_order(CASES) == ["fine", "coarse"]
    assert rank(CASES, order="uncertainty")[0].case == "fine"


def test_random_order_depends_on_the_seed_alone_and_keeps_the_same_structures():
    many = {f"case{n}": FINE for n in range(20)}
    first, again, other = (rank(many, order="random", seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(item.case for item in first) == sorted(item.case for item in rank(many))
    assert [item.case for item in first][::2] == [item.case for item in first][1::2]  # a case stays together


def test_gain_and_minutes():
    (item,) = rank({"coarse": COARSE}, minutes=Minutes(each=1.0, per_ml=0.5), precision=0.25)
    assert (item.mm3, item.gain, item.minutes) == (8000.0, 2000.0, 5.0)
    assert revised_share([(1e6, 4e6)]) == pytest.approx(1.0, abs=0.01)
    assert Minutes().fit([(0.0, 30.0)]) == Minutes()
    assert Minutes().fit([(1000.0 * n, 600.0 - 60.0 * n) for n in range(8)]).per_ml == 0.0  # never negative


def test_without_a_spacing_only_the_published_order_stands():
    unknown = {"a": {"liver": one(5, float("nan"))}}
    with pytest.raises(VesaliusError, match="as_published"):
        rank(unknown)
    assert rank(unknown, as_published=True)[0].score == 5


def test_the_authors_two_scores_can_order_cases_differently():
    structures = {"liver": one(100, heat=50), "spleen": one(10, heat=70), "aorta": one(0)}
    assert published_structure_order(structures) == ["spleen", "liver"]
    assert published_attention_size(structures, 10) == pytest.approx(120 / 255 / 10)
