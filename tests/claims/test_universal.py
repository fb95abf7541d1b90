"""The Universal Model's claim: its volumes, what each arm is told, and that the whole runs and is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vesalius.claims import claim, runner, universal
from vesalius.claims.universal_volumes import ORGANS, organs
from vesalius.errors import ConfigError

TINY = universal.PartialBudget(volumes=3, test=1, steps=3, batch=2, more_steps=1)


def test_a_volume_is_a_function_of_seed_and_number():
    many, few = organs(3, seed=1), organs(2, seed=1)
    assert torch.equal(many.image[:2], few.image)
    assert not torch.equal(organs(2, seed=2).image, few.image)
    assert len(many.mask.unique()) == len(ORGANS) + 1


def test_an_annotator_draws_only_what_the_set_knows():
    volume = organs(1, seed=0)
    drawn = volume.knowing((2, 3))
    assert drawn.unique().tolist() == [0, 3, 4]
    assert universal.renumbered(drawn, (3, 2)).unique().tolist() == [0, 1, 2]
    assert torch.equal(universal.renumbered(drawn, (3, 2)) == 1, volume.mask == 4)


def test_background_is_what_the_other_arm_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(universal, "train_short", lambda task, batches, **_: told.append(batches(torch.Generator())))
    samples = universal.Sets(0, TINY, None)
    for arm in ("masked", "background"):
        universal.run_arm(arm, 0, samples, TINY, lambda step: None)
    masked, background = told
    assert torch.equal(masked["mask"], background["mask"])
    assert masked["labelled"].sum(1).tolist() == [2, 2]
    assert background["labelled"].all()


def test_the_claim_runs_whole_and_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_work", lambda jobs, **_: [runner.execute(job, lambda step: None) for job in jobs])
    results = runner.run("universal", universal, tmp_path, seeds=1, data=None, workers=1, budget=TINY, progress=False)
    assert set(results["summary"]) == set(universal.ARMS)
    assert {verdict["verdict"] for verdict in results["verdicts"]} == {"no verdict"}
    assert len(results["verdicts"]) == len(universal.COMPARISONS)
    changed = {arm: results["summary"][arm]["changed"]["mean"] for arm in universal.EXTENSIONS}
    assert changed["new_heads"] == 0
    assert min(changed["pseudo_labels"], changed["plain"]) > 0
    assert results["summary"]["new_heads"]["old_dice"] == results["summary"]["base"]["old_dice"]
    assert (tmp_path / "report.html").exists()


def test_it_takes_no_table(tmp_path):
    with pytest.raises(ConfigError, match="takes no table"):
        claim("universal", out=tmp_path, data="a.parquet")
    assert replace(TINY, steps=10).with_steps(20).more_steps == 10
