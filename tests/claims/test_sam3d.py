"""3DSAM-adapter's claim: its volumes, that arms differ in what they should, and that the whole runs and is judged."""

from __future__ import annotations

import pytest
import torch

from vesalius.adapt.sam_shapes import pretrain_shapes
from vesalius.claims import claim, runner, sam3d
from vesalius.claims.sam3d_volumes import lesions
from vesalius.errors import ConfigError

TINY = sam3d.ClickBudget(trunk_steps=2, steps=2, click_steps=2, batch=1, test=2)


def test_a_volume_is_a_function_of_seed_and_number():
    many, few = lesions(3, seed=1, count=2), lesions(2, seed=1, count=2)
    assert torch.equal(many.image[:2], few.image)
    assert not torch.equal(lesions(2, seed=2, count=2).image, few.image)


def test_two_look_alike_and_lie_apart():
    drawn = lesions(8, seed=0, count=2)
    inside = [[image[0][mask].mean() for mask in masks] for image, masks in zip(drawn.image, drawn.mask, strict=True)]
    assert all(abs(a - b) < 0.05 for a, b in inside)
    assert not drawn.mask.all(1).any()
    sizes = drawn.mask.flatten(2).sum(2).float()
    assert (sizes[:, 0] / sizes[:, 1]).sub(1).abs().max() < 0.1


def test_the_claim_runs_whole_and_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_work", lambda jobs, **_: [runner.execute(job, lambda step: None) for job in jobs])
    trained = []
    monkeypatch.setattr(
        sam3d, "pretrain_shapes", lambda sam, **options: trained.append(options) or pretrain_shapes(sam, **options)
    )
    results = runner.run("sam3d", sam3d, tmp_path, seeds=1, data=None, workers=1, budget=TINY, progress=False)
    assert set(results["summary"]) == set(sam3d.ARMS)
    assert [verdict["name"] for verdict in results["verdicts"]] == [one.name for one in sam3d.COMPARISONS]
    assert [options["steps"] for options in trained] == [2]
    assert (tmp_path / "report.html").exists()


def test_it_takes_no_table(tmp_path):
    with pytest.raises(ConfigError, match="takes no table"):
        claim("sam3d", out=tmp_path, data="a.parquet")
