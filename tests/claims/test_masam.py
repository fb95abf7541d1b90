from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vesalius.claims import claim, masam, runner
from vesalius.data.datasets import generator
from vesalius.errors import ConfigError
from vesalius.nn.sam import SAM_PRESETS
from vesalius.nn.sam_decoder import Sam

TINY = masam.StackBudget(trunk_steps=1, steps=1, batch=1, test=2)


def test_a_blanked_slice_shows_nothing_and_keeps_its_label():
    stacks = masam.draw_stacks(40, 64, generator(0, 0))
    assert stacks.image.shape == (40, 5, 1, 64, 64) and stacks.mask.shape == (40, 5, 64, 64)
    assert 0.2 < stacks.blank.float().mean() < 0.4 and not stacks.blank.all(1).any()
    image, disc = stacks.image[:, :, 0], stacks.mask == 1
    assert disc.flatten(2).any(2).all()
    blank, clear = image[stacks.blank], image[~stacks.blank]
    inside = [values[disc[where]].mean() for values, where in ((blank, stacks.blank), (clear, ~stacks.blank))]
    assert inside[0] == pytest.approx(0.4, abs=0.01) and inside[1] > 0.65
    steps = (stacks.mask[:, 1:] != stacks.mask[:, :-1]).flatten(2).float().mean(2)
    assert 0 < steps.mean() < 0.1  # neighbours are alike, and not the same


def test_arms_differ_in_what_they_say_and_share_the_rest():
    torch.manual_seed(0)
    sam = Sam(SAM_PRESETS["sam_tiny"])
    full, flat = (masam.build(sam, masam.ADAPTERS[arm], 3).encoder for arm in ("masam", "fact"))
    ours, theirs = full.state_dict(), flat.state_dict()
    assert set(theirs) < set(ours) and all("_attn.norm" in n or "_attn." in n for n in set(ours) - set(theirs))
    same = {name for name in theirs if torch.equal(ours[name], theirs[name])}
    assert set(theirs) - same <= {name for name in theirs if "fact." in name or ".attn.qkv." in name}
    image = masam.draw_stacks(1, 128, generator(0, 1)).image
    for arm in masam.ADAPTERS:
        moved = masam.mixing(masam.build(sam, masam.ADAPTERS[arm], 0).eval(), image)
        assert (moved > 1e-3) if masam.ADAPTERS[arm].width else (moved < 1e-4)


def test_scores_are_of_their_slices():
    blank = torch.tensor([[True, False]])
    mask = torch.tensor([[[[1, 1]], [[1, 0]]]])
    found = torch.tensor([[[[0, 0]], [[1, 1]]]])
    scores = masam.scores(found, masam.Stacks(torch.zeros(1, 2, 1, 1, 2), mask, blank))
    assert scores["dice"] == pytest.approx(2 / 5) and scores["dice_blank"] == 0
    assert scores["dice_clear"] == pytest.approx(2 / 3)


def test_a_claim_of_one_step_is_judged_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(masam, "ARMS", {arm: masam.ARMS[arm] for arm in ("trunk", "masam", "fact")})
    jobs = runner.plan("masam", masam, tmp_path, seeds=1, data=None, budget=TINY)
    for job in jobs:
        runner.execute(job, lambda step: None)
    results = runner.gather("masam", masam, jobs)
    runner.leave(results, tmp_path, masam)
    assert {verdict["name"] for verdict in results["verdicts"]} == {"slices", "blanked slices", "clear slices"}
    assert {verdict["verdict"] for verdict in results["verdicts"]} == {"no verdict"}
    page = (tmp_path / "report.html").read_text()
    assert "What must hold exactly" in page and "moved by other neighbours" in page
    assert json.loads((tmp_path / "results.json").read_text())["summary"]["masam"]["trained"]["mean"] > 100_000
    with np.load(tmp_path / "seed0" / "masam.npz") as pictures:
        assert pictures["found"].shape == (5, 128, 128)


def test_a_table_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="takes no table"):
        claim("masam", out=tmp_path, data="table.parquet")
