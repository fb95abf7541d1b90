"""AbdomenAtlas's claim: its volumes, how minutes are spent, and that the whole runs and is judged."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vesalius.claims import atlas, claim, runner
from vesalius.claims.atlas_volumes import SPACING, TABLE, volumes
from vesalius.curate.proposals import Masks
from vesalius.curate.ranking import Ranked
from vesalius.errors import ConfigError

TINY = atlas.AtlasBudget(labelled=2, pool=9, unseen=1, steps=2, batch=1, more_steps=1)
NAMES = TABLE.names


def test_a_volume_is_a_function_of_seed_and_number_and_strange_ones_differ():
    many, few = volumes([False, False, True], seed=1), volumes([False, False], seed=1)
    assert torch.equal(many.image[:2], few.image) and torch.equal(many.mask[:2], few.mask)
    assert not torch.equal(volumes([True, False], seed=1).image[0], few.image[0])
    assert many.mask.sum(1).max() == 1  # organs do not overlap
    assert len((few + many)[[0, 4]]) == 2


def cases(*wrong):
    """Cases of one organ of 100 voxels each, of which so many are not found."""
    made = []
    for missed in wrong:
        truth = np.zeros((len(NAMES), 200, 1, 1), bool)
        truth[:, :100] = True
        masks = Masks(truth.shape[1:])
        for name in NAMES:
            masks[name] = truth[0].copy()
        found = truth[0].copy()
        found[:missed] = False
        masks[NAMES[0]] = found
        made.append(atlas.Case(truth, masks, {}))
    return SimpleNamespace(cases=made)


def test_minutes_are_spent_in_order_until_they_are_gone(monkeypatch):
    voxel = float(np.prod(SPACING)) / 1000
    monkeypatch.setattr(atlas, "READER", atlas.Minutes(each=0.0, per_ml=1 / voxel))  # a minute a voxel
    monkeypatch.setattr(atlas, "PERCENT", (50,))
    pool = cases(60, 20, 20)
    items = [Ranked(str(case), NAMES[0], 0.0, 0.0, 0.0, 0.0) for case in (0, 1, 2)]
    assert atlas.reviewed(pool, items)["dice_50"] == atlas.reviewed(pool, [])["dice_50"]  # 60 of 50 minutes
    last = atlas.reviewed(pool, items[::-1])
    start = np.mean([case.dice() for case in pool.cases])
    gain = 2 * (1 - 2 * 80 / 180) / (len(NAMES) * 3)
    assert last["dice_50"] == pytest.approx(start + gain)
    assert last["share"] == 1.0


def test_the_claim_runs_whole_and_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(atlas, "NETWORKS", ((2, 3, 1), (2, 3, 2), (3, 1, 1)))
    monkeypatch.setattr(runner, "_work", lambda jobs, **_: [runner.execute(job, lambda step: None) for job in jobs])
    results = runner.run("atlas", atlas, tmp_path, seeds=1, data=None, workers=1, budget=TINY, progress=False)
    assert set(results["summary"]) == set(atlas.ARMS)
    assert len(results["verdicts"]) == len(atlas.COMPARISONS)
    for comparison in atlas.COMPARISONS:
        assert {comparison.metric, comparison.worse_metric or comparison.metric} <= set(atlas.METRICS)
    start = results["summary"]["proposals"]["dice"]["mean"]
    assert all(results["summary"][arm]["dice"]["mean"] >= start for arm in atlas.ORDERS)
    assert "Dice over minutes" in (tmp_path / "report.html").read_text()


def test_another_round_does_not_change_the_first_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(atlas, "NETWORKS", ((2, 3, 1),))
    pool = atlas.Pool(0, TINY, tmp_path)
    atlas.run_arm("proposals", 0, pool, TINY, lambda step: None)
    before = atlas.queue(pool, "random")
    atlas.run_arm("round_random", 0, pool, TINY, lambda step: None)
    assert atlas.queue(atlas.Pool(0, TINY, tmp_path), "random") == before


def test_it_takes_no_table(tmp_path):
    with pytest.raises(ConfigError, match="takes no table"):
        claim("atlas", out=tmp_path, data="a.parquet")
    assert replace(TINY, steps=10).with_steps(20).more_steps == 10
