"""One cell: what all arms share, and that caching changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from setups import SETUP

from vesalius.compare import cells
from vesalius.compare.arms import Arm, read_arms
from vesalius.compare.plan import Job
from vesalius.compare.sets import open_study, training_data
from vesalius.data.datasets import generator


@pytest.fixture
def job(table, tmp_path) -> Job:
    return Job((str(table),), None, str(tmp_path), SETUP, "random:usfm", Arm("linear", "linear"), 2, 1, (0,))


@pytest.mark.parametrize("word", ["linear", "mlp3", "ept:length=5"])
def test_cached_features_give_the_numbers_of_a_trunk_that_is_run_at_every_step(job, word, monkeypatch):
    arm = next(arm for arm in reversed(read_arms([word])) if arm.reads_frozen_features)
    job = replace(job, arm=arm)
    cached = cells.run_cell(job, 0, SETUP.lrs)
    assert cells.run_cell(job, 0, SETUP.lrs)["test"] == cached["test"]  # from the file this time
    monkeypatch.setattr(Arm, "reads_frozen_features", False)
    run = cells.run_cell(job, 0, SETUP.lrs)
    for one, other in zip(cached["trials"], run["trials"], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert one["val_loss"] == pytest.approx(other["val_loss"], abs=1e-5)
    assert cached["lr"] == run["lr"]
    assert cached["test"] == pytest.approx(run["test"], abs=1e-4)
    assert cached["memory"] < run["memory"] or word == "mlp3"


def test_all_arms_see_the_same_versions_in_the_same_order(job, monkeypatch):
    seen: dict[str, list[torch.Tensor]] = {}

    def train(task, batches, *, seed, steps, **options):
        batch = [batches(generator(seed, step)) for step in range(steps)]
        seen.setdefault(name, []).extend(one["image"] for one in batch)
        heads.setdefault(name, task.head.weight.detach().clone())
        return 0.0

    heads: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(cells, "train_short", train)
    for name in ("lora", "vpt", "full"):
        cells.run_cell(replace(job, arm=Arm(name, name)), 0, SETUP.lrs)
    assert all(torch.equal(a, b) for a, b in zip(seen["lora"], seen["full"], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen["lora"], seen["vpt"], strict=True))
    assert torch.equal(heads["lora"], heads["full"]) and torch.equal(heads["lora"], heads["vpt"])
    assert not torch.equal(seen["lora"][0], seen["lora"][1])


def test_versions_belong_to_the_image_the_draw_and_the_seed(job):
    study, trunk = open_study(job.data, None, SETUP), cells.open_trunk(job.backbone, 32)
    folder = Path(job.out)

    def read(shots: int, number: int, seed: int):
        rows = study.support(shots, number)
        data = training_data(study, rows, trunk.contract, folder, number=number, seed=seed)
        return dict(zip(rows["path"], data["image"], strict=True))

    one, three = read(1, 0, 0), read(3, 0, 0)
    assert set(one) < set(three)
    assert all(torch.equal(one[path], three[path]) for path in one)
    assert one[next(iter(one))].shape == (3, 1, 32, 32)
    again = read(1, 0, 1)
    assert not any(torch.equal(one[path], again[path]) for path in one)


def test_the_rate_that_validates_best_is_used_and_the_other_seeds_follow(job, monkeypatch):
    scores = iter([(0.5, 1.0), (0.5, 0.7), (0.4, 0.1)])
    monkeypatch.setattr(cells.ClassifierReader, "validate", lambda self, data: next(scores))
    job = replace(job, setup=replace(SETUP, lrs=(1e-3, 3e-3, 1e-2)), seeds=(0, 1))
    record = cells.run_cell(job, 0, job.setup.lrs)
    assert record["lr"] == 3e-3  # a tie in the score is decided by the loss
    scores = iter([(0.5, 1.0), (0.5, 0.7), (0.4, 0.1), (0.3, 0.3)])
    cells.run(job)
    other = cells.read_json(job.cell(1))
    assert [trial["lr"] for trial in other["trials"]] == [3e-3]


def test_a_training_that_diverges_is_not_chosen(job):
    arm = Arm("full", "full")
    record = cells.run_cell(replace(job, arm=arm, setup=replace(SETUP, lrs=(1e-3, 1e30))), 0, (1e-3, 1e30))
    assert record["lr"] == 1e-3
    assert 0 <= record["test"]["balanced_accuracy"] <= 1


def test_a_cell_says_what_it_cost(job):
    small, large = (cells.run_cell(replace(job, arm=Arm(name, name)), 0, (1e-3,)) for name in ("linear", "full"))
    assert small["trained"] == small["of_head"] == 3 * (cells.open_trunk("random:usfm", 32).encoder.width + 1)
    assert large["trained"] > 100_000 > small["trained"]
    assert large["memory"] > 12 * large["trained"] > small["memory"]  # gradient and two moments, 4 bytes each
    assert small["images"] == {"train": 6, "val": 9, "test": 12}
    assert small["trunk"] == large["trunk"] and small["support"] == large["support"]
