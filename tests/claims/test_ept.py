from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vesalius.adapt import methods
from vesalius.claims import claim, ept, runner
from vesalius.claims.ept_images import SHAPES, TISSUES, shapes, tissue
from vesalius.errors import ConfigError
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.published.card import Card
from vesalius.published.load import save_weights
from vesalius.published.networks import architecture

TINY = ept.FewShotBudget(
    trunk_images=200, trunk_steps=2, trunk_batch=8, steps=4, batch=4, draws=2, tuning=1, validation=16, test=16
)


@pytest.fixture
def samples(tmp_path):
    """A trunk of random weights, and the images of seed 0."""
    torch.manual_seed(0)
    trunk = ViT(ViTConfig(image_size=24, patch_size=4, width=64, depth=4, heads=4))
    contract = ept.InputContract(24, 3, (0.5,) * 3, (0.3,) * 3)
    save_weights(trunk, tmp_path / "trunk", Card("vit", "backbone", architecture(trunk), contract))
    return ept.Transfer(0, TINY, tmp_path / "trunk")


def trial(samples, arm):
    method, changes = ept.RECIPES.get(arm, (arm, {}))
    return ept.Trial(
        method, methods.settings(method, changes), ept.load_backbone(samples.trunk), samples, lambda step: None
    )


def test_an_image_is_a_function_of_seed_and_number():
    many, few = shapes(20, seed=3), shapes(5, seed=3)
    assert np.array_equal(many.image[:5], few.image)
    assert not np.array_equal(shapes(5, seed=4).image, few.image)
    label = np.arange(20) % 4
    assert np.array_equal(tissue(label, seed=3).image[:5], tissue(label[:5], seed=3).image)
    assert set(shapes(400, seed=0).label) == set(range(len(SHAPES)))


def test_tissue_shows_its_class_by_form_and_not_by_brightness():
    label = np.arange(1200) % 4
    image = tissue(label, seed=0).image
    assert (image[:, :1] == image).all()  # no colour
    brightness = np.stack([image.mean((1, 2, 3)), image.std((1, 2, 3))], axis=1)
    spectrum = np.abs(np.fft.rfft2(image[:, 0] - image[:, 0].mean((1, 2), keepdims=True))).reshape(1200, -1)

    def score(features: np.ndarray) -> float:
        features = (features - features[:800].mean(0)) / features[:800].std(0)
        return (
            LogisticRegression(C=0.01, max_iter=500).fit(features[:800], label[:800]).score(features[800:], label[800:])
        )

    assert score(brightness) < 0.45
    assert score(spectrum) > 0.6


def test_what_is_drawn_is_nested_balanced_and_apart(samples):
    five, ten = samples.support(0, 5), samples.support(0, 10)
    assert torch.equal(ten.image[:20], five.image)
    assert torch.bincount(ten.label).tolist() == [10] * len(TISSUES)
    seen = {image.numpy().tobytes() for image in ten.image}
    for other in (samples.support(1, 10), samples.validation, samples.test):
        assert not seen & {image.numpy().tobytes() for image in other.image}


def test_comparisons_are_between_arms_that_exist():
    assert set(ept.RECIPES) | set(methods.PARTS) - {"vpt", "ept"} | {ept.TRUNK} >= set(ept.ARMS)
    for comparison in ept.COMPARISONS:
        assert {comparison.better, comparison.worse} <= set(ept.ARMS)
        assert comparison.metric in ept.METRICS
    assert len({comparison.name for comparison in ept.COMPARISONS}) == len(ept.COMPARISONS)


@pytest.mark.parametrize("arm", [arm for arm in ept.ARMS if arm != ept.TRUNK])
def test_every_arm_starts_with_the_same_head_and_keeps_the_trunk_unless_it_trains_it(samples, arm):
    one = trial(samples, arm)
    if arm != "mlp3":
        assert torch.equal(one.fresh(7).head.weight, trial(samples, "linear").fresh(7).head.weight)
    facts = one.facts(one.fit(0, 5, 1e-2))
    assert (facts["changed"] > 0) == (arm in methods.CHANGES_TRUNK)
    assert (facts["trained"] == 0) == (arm in ("linear", "mlp3", "ept_frozen", "vpt_frozen"))
    if "kept_after" in facts:
        assert all(0 < kept < 1 for kept in facts["kept_before"] + facts["kept_after"])
        assert facts["kept_before"] != facts["kept_after"] or arm in ("ept_frozen", "ept_identity")
    if "collapse" in facts:
        assert facts["collapse"] < 1e-5


def test_features_of_a_frozen_trunk_may_be_computed_once(samples):
    cached, plain = trial(samples, "linear"), trial(samples, "linear")
    plain.cached = False
    weights = [one.fit(0, 5, 1e-2).head.weight for one in (cached, plain)]
    torch.testing.assert_close(*weights)


def test_the_claim_runs_resumes_and_leaves_a_page(tmp_path, monkeypatch):
    arms = ("trunk", "linear", "ept", "ept_frozen", "ept_collapsed")
    monkeypatch.setattr(ept, "RATES", (1e-3, 1e-2))
    monkeypatch.setattr(ept, "ARMS", {arm: ept.ARMS[arm] for arm in arms})
    jobs = runner.plan("ept", ept, tmp_path, seeds=3, data=None, budget=TINY)
    for job in jobs:
        ticks: list[int] = []
        runner.execute(job, ticks.append)
        assert ticks == list(range(1, TINY.work(job.arm) + 1))
    results = runner.run("ept", ept, tmp_path, seeds=3, data=None, workers=1, budget=TINY, progress=False)

    (verdict,) = [one for one in results["verdicts"] if one["name"] == "linear, 10-shot"]
    ours, theirs = (np.array(results["summary"][arm]["accuracy_10"]["each"]) for arm in ("ept", "linear"))
    assert ours.shape == (3, TINY.draws)
    assert verdict["mean"] == pytest.approx((ours - theirs).mean())
    assert verdict["se"] == pytest.approx((ours - theirs).std(ddof=1) / np.sqrt(ours.size))
    assert "divided by the square root" in results["rule"]
    assert "VPT, 5-shot" not in [one["name"] for one in results["verdicts"]]  # that arm was not run

    page = (tmp_path / "report.html").read_text()
    for words in ("trunk tensors changed", "What the prompts leave of the attention", "ept collapsed"):
        assert words in page
    numbers = json.loads(jobs[1].result.read_text())["metrics"]
    jobs[1].result.unlink()
    (job,) = runner.missing(jobs)
    runner.execute(job, lambda step: None)
    assert json.loads(job.result.read_text())["metrics"] == numbers


def test_a_table_is_refused_with_the_way_to_go(tmp_path):
    with pytest.raises(ConfigError, match="vesalius compare"):
        claim("ept", out=tmp_path, data="images.parquet")
