from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vesalius.claims import brainsegfounder as bsf
from vesalius.claims import claim, runner
from vesalius.claims.brains import SIZE, brains, person
from vesalius.claims.volume_readouts import averages, ridge_dice, volume_dice
from vesalius.errors import ConfigError
from vesalius.pretrain.brainsegfounder import BrainSegFounder

TINY = bsf.BrainBudget(steps=3, batch=2, healthy=2, ill=2, test=2, finetune_steps=1, finetune_batch=1, longer=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("seed0")


@pytest.fixture(scope="module")
def samples(folder):
    return bsf.load_samples(0, TINY, data=None, folder=folder)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return BrainSegFounder(bsf.config(TINY))


def test_brains_are_a_function_of_the_seed_and_apart(samples, folder, monkeypatch):
    image, mask = person(0, 4, "ill")
    assert torch.equal(samples.ill[1], torch.from_numpy(image.astype(np.float32)))
    assert torch.equal(samples.ill_mask[1], torch.from_numpy(mask))
    everyone = torch.cat([samples.healthy, samples.ill, samples.test])
    assert everyone.shape == (6, 2, *SIZE)
    assert 0 <= everyone.min() and everyone.max() <= 1
    assert len({volume.numpy().tobytes() for volume in everyone}) == 6
    assert samples.ill_mask.flatten(1).any(1).all() and samples.test_mask.flatten(1).any(1).all()
    assert not np.array_equal(person(1, 4, "ill")[0], image)
    brains.cache_clear()
    monkeypatch.setattr("vesalius.claims.brains.person", None)  # they are not made again
    kept = bsf.load_samples(0, TINY, data=None, folder=folder)
    assert kept is not samples and torch.equal(kept.ill, samples.ill) and torch.equal(kept.test_mask, samples.test_mask)


def test_ridge_finds_what_a_map_holds_and_nothing_in_noise():
    generator = torch.Generator().manual_seed(0)
    blobs = torch.zeros(5, 1, 16, 16, 16)
    for number, corner in enumerate(torch.randint(0, 5, (5, 3), generator=generator).tolist()):
        d, h, w = (2 * place for place in corner)
        blobs[number, :, d : d + 6, h : h + 6, w : w + 6] = 1
    mask = blobs[:, 0] > 0
    told = [3 - 0.1 * level for level in averages(blobs, levels=2)]  # any scale, any offset
    noise = [torch.randn(level.shape, generator=generator) for level in told]
    halves = slice(0, 3), slice(3, 5)

    def score(maps):
        train, test = ([level[half] for level in maps] for half in halves)
        return ridge_dice(train, mask[halves[0]], test, mask[halves[1]])

    assert score(told) > 0.85
    assert score([torch.cat(pair, dim=1) for pair in zip(told, noise, strict=True)]) > 0.8
    assert score(noise) < 0.3
    assert volume_dice(mask, mask) == 1


def test_stages_share_the_steps_and_see_their_own_brains(samples, module, monkeypatch):
    seen = []

    def record(module, corrupt, *, n, steps, batch, seed, tick):
        seen.append((steps, module.config.lr, seed))
        target = corrupt(torch.tensor([0, 1]), torch.Generator().manual_seed(0))["target"]
        groups = {name: getattr(samples, name)[0].sum().item() for name in ("healthy", "ill")}
        seen[-1] += (min(groups, key=lambda name: abs(groups[name] - target[0].sum().item())),)
        tick(steps)

    monkeypatch.setattr(bsf, "pretrain", record)
    ticks: list[int] = []
    for arm, stages in bsf.STAGES.items():
        seen.clear()
        done = bsf.train_stages(module, stages, 0, samples, bsf.replace(TINY, steps=7), ticks.append)
        assert done == sum(steps for steps, *_ in seen) == (7 if stages else 0)
        assert [group for *_, group in seen] == list(stages)
        if arm == "both":
            assert [lr for _, lr, *_ in seen] == [bsf.LR, bsf.SECOND_LR]
            assert len({seed for *_, seed, _ in seen}) == 2


def test_what_must_hold_exactly_holds(samples, module, monkeypatch):
    share = bsf.replaced_share(0, crops=150)
    assert share == pytest.approx(0.14, abs=0.015)
    monkeypatch.setattr(bsf, "replaced_share", lambda seed: share)
    found = bsf.exact(module, samples.ill, 0)
    for name, value in found.items():
        assert name == "replaced" or bsf.EXACT[name][1](value), (name, value)


def test_a_term_that_does_not_reach_the_encoder_is_told(samples, module, monkeypatch):
    module.network.rotation.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    monkeypatch.setattr(bsf, "replaced_share", lambda seed: 0.14)
    found = bsf.exact(module, samples.ill, 0)
    assert found["reached_rotation"] == 0 and not bsf.EXACT["reached_rotation"][1](0)
    assert found["reached_reconstruction"] == 1


def test_comparisons_are_between_arms_that_exist():
    known = set(bsf.STAGES) | {bsf.CHECKS, bsf.AVERAGES, bsf.LONGER}
    assert known == set(bsf.ARMS)
    for comparison in bsf.COMPARISONS:
        assert {comparison.better, comparison.worse} <= known
        assert {comparison.metric, comparison.worse_metric or comparison.metric} <= set(bsf.METRICS)
    assert len({comparison.name for comparison in bsf.COMPARISONS}) == len(bsf.COMPARISONS)


@pytest.mark.parametrize("arm", [bsf.AVERAGES, bsf.LONGER])
def test_controls_give_what_they_are_compared_by(samples, arm):
    ticks: list[int] = []
    metrics, _ = bsf.run_arm(arm, 0, samples, TINY, ticks.append)
    assert set(metrics) >= {one.metric for one in bsf.COMPARISONS if one.worse == arm}
    assert ticks in ([], list(range(1, TINY.work(arm) + 1)))


def test_the_claim_runs_resumes_and_leaves_a_page(tmp_path, monkeypatch, samples):
    monkeypatch.setattr(bsf, "load_samples", lambda seed, budget, *, data, folder: samples)
    monkeypatch.setattr(bsf, "replaced_share", lambda seed: 0.14)
    monkeypatch.setattr(bsf, "PERCENT", (5,))
    monkeypatch.setattr(bsf, "ARMS", {arm: bsf.ARMS[arm] for arm in (bsf.CHECKS, "scratch", "both")})
    jobs = runner.plan("brainsegfounder", bsf, tmp_path, seeds=1, data=None, budget=TINY)
    for job in jobs:
        ticks: list[int] = []
        runner.execute(job, ticks.append)
        assert job.arm == bsf.CHECKS or ticks == list(range(1, TINY.work(job.arm) + 1))
    results = runner.run("brainsegfounder", bsf, tmp_path, seeds=1, data=None, workers=1, budget=TINY, progress=False)

    verdicts = {verdict["name"]: verdict["verdict"] for verdict in results["verdicts"]}
    assert verdicts == dict.fromkeys(("pre-training, 5 %, fine-tuned", "pre-training, 5 %, frozen"), "no verdict")
    (loss,) = results["summary"]["scratch"]["contrastive"]["values"]
    assert loss == pytest.approx(np.log(3), abs=0.7)  # two pairs, nothing learned
    page = (tmp_path / "report.html").read_text()
    for words in ("What must hold exactly", "The brains", "both: turns recognised", "half the steps on healthy"):
        assert words in page

    (job,) = [job for job in jobs if job.arm == "both"]
    numbers = json.loads(job.result.read_text())["metrics"]
    job.result.unlink()
    assert runner.missing(jobs) == [job]
    runner.execute(job, lambda step: None)
    assert json.loads(job.result.read_text())["metrics"] == numbers


def test_a_table_is_refused_with_the_way_to_go(tmp_path):
    with pytest.raises(ConfigError, match="vesalius pretrain brainsegfounder"):
        claim("brainsegfounder", out=tmp_path, data="volumes.parquet")
