from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from vesalius.claims import claim, deblurring, runner, usfm
from vesalius.claims.samples import Budget, phantoms, real_images
from vesalius.data.phantoms.toy import toy_ultrasound
from vesalius.data.table import make_table, save_table
from vesalius.errors import ConfigError, VesaliusError

BUDGET = Budget(steps=2, organ_steps=2, batch=4, unlabelled=30, labelled=40, few=8, test=12, finetune_steps=2)


@pytest.mark.parametrize("module", [usfm, deblurring])
def test_claims_compare_arms_and_metrics_that_exist(module):
    for comparison in module.COMPARISONS:
        assert {comparison.better, comparison.worse} <= set(module.ARMS)
        assert {comparison.metric, comparison.worse_metric or comparison.metric} <= set(module.METRICS)
    assert len({comparison.name for comparison in module.COMPARISONS}) == len(module.COMPARISONS)


def test_a_claim_runs_resumes_and_leaves_a_page(tmp_path):
    first = runner.run("usfm", usfm, tmp_path, seeds=1, data=None, workers=1, budget=BUDGET, progress=False)
    assert set(first["summary"]) == set(usfm.ARMS)
    assert first["summary"]["dual"]["few_dice"]["values"][0] >= 0
    assert {verdict["verdict"] for verdict in first["verdicts"]} == {"no verdict"}
    page = (tmp_path / "report.html").read_text()
    assert "USFM: both" in page
    assert (tmp_path / "scores_1.png").stat().st_size > 1000

    jobs = runner.plan("usfm", usfm, tmp_path, seeds=1, data=None, budget=BUDGET)
    assert runner.missing(jobs) == []
    lost = tmp_path / "seed0" / "spatial.json"
    numbers = json.loads(lost.read_text())["metrics"]
    lost.unlink()
    (job,) = runner.missing(jobs)
    runner.execute(job, lambda step: None)
    assert json.loads(lost.read_text())["metrics"] == pytest.approx(numbers, rel=1e-4)
    assert runner.missing(jobs) == []

    with pytest.raises(VesaliusError, match="another budget"):
        claim("usfm", out=tmp_path, seeds=1, steps=3)


def test_deblurring_arms_differ_in_what_they_see():
    samples = phantoms(0, BUDGET)
    ticks = []
    sharp, pictures = deblurring.run_arm("mae_sharp", 0, samples, BUDGET, ticks.append)
    assert ticks == [1, 2]
    ours, blurred = deblurring.run_arm("deblurring", 0, samples, BUDGET, ticks.append)
    assert set(ours) - set(sharp) == {"forgotten_ridge_dice"}
    assert (pictures["original"] == blurred["original"]).all()
    seen = pictures["corrupted"] != 0
    assert pictures["corrupted"][seen].std() > 1.2 * blurred["corrupted"][seen].std()
    random, none = deblurring.run_arm("random_blurred", 0, samples, BUDGET, ticks.append)
    assert none == {}
    assert random["ridge_dice"] > 0


def test_organ_sampling_is_tested_on_all_organs_alike():
    samples = phantoms(0, Budget(unlabelled=200, test=90))
    train, test = samples.organs
    assert np.bincount(train.label)[0] > 150
    assert np.bincount(test.label).min() > 15


@pytest.fixture
def table(tmp_path):
    """A table of 40 phantoms written as 64-pixel PNGs, with masks and two organs."""
    batch = toy_ultrasound(40, seed=5, size=64)
    rows = []
    for i in range(40):
        pixels = np.clip(128 + 40 * batch.image[i, 0], 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        Image.fromarray(batch.nodule[i].astype(np.uint8) * 255).save(tmp_path / f"{i}_mask.png")
        rows.append(
            {
                "path": str(tmp_path / f"{i}.png"),
                "frames": 1,
                "size": [64, 64],
                "organ": ("liver", "thyroid")[i % 2],
                "split": "train" if i < 16 else "test",
                "labels": [("fine", "coarse")[batch.texture[i]]],
                "mask": str(tmp_path / f"{i}_mask.png"),
                "mask_classes": ["nodule"],
                "annotated": ["nodule", "fine", "coarse"],
                "sha256": str(i),
            }
        )
    return save_table(make_table(rows), tmp_path / "table.parquet")


def test_real_images_give_the_readouts_that_they_have(table):
    budget = Budget(unlabelled=12, labelled=10, test=9, size=64, patch=8)
    samples = real_images(str(table), 0, budget)
    assert samples.unlabelled.image.shape == (12, 1, 64, 64)
    assert samples.test.mask.shape == (9, 64, 64)
    assert set(samples.labelled.label) <= {"fine", "coarse"}
    assert set(samples.organs[1].label) == {"liver", "thyroid"}
    np.testing.assert_allclose(samples.test.image.mean((1, 2, 3)), 0, atol=1e-5)
    other = real_images(str(table), 1, budget)
    assert not np.array_equal(samples.labelled.image, other.labelled.image)


def test_a_table_without_truth_is_refused(table, tmp_path):
    plain = pl.read_parquet(table).with_columns(
        mask=pl.lit(None, pl.String), labels=pl.lit([], pl.List(pl.String)), annotated=pl.lit([], pl.List(pl.String))
    )
    path = save_table(plain, tmp_path / "plain.parquet")
    with pytest.raises(VesaliusError, match="neither masks nor labels"):
        real_images(str(path), 0, BUDGET)


def test_unknown_claims_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'usfm'"):
        claim("usfmm", out=tmp_path)
