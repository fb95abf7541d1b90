"""What the best checkpoint follows: the same whatever the batches, and whichever process saw them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import average_precision_score

from vesalius.tasks.validation import ValidationScores


def task(name: str, *classes: str, multilabel: bool = False) -> SimpleNamespace:
    return SimpleNamespace(TASK=name, classes=classes, multilabel=multilabel)


def test_average_precision_is_of_the_whole_set_and_not_a_mean_of_batches():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(24, 2, generator=generator), (torch.rand(24, 2, generator=generator) < 0.4).float()
    scores = ValidationScores(task("classification", "a", "b", multilabel=True))
    for start, end in ((0, 5), (5, 6), (6, 24)):
        scores.update(logits[start:end], {"label": labels[start:end]})
    assert scores.monitor == "val/mAP"
    assert float(scores.compute()["mAP"]) == pytest.approx(average_precision_score(labels, logits))
    scores.reset()
    known = torch.ones(24, 2, dtype=torch.bool)
    known[:, 1] = False
    scores.update(logits, {"label": labels, "annotated": known})
    alone = average_precision_score(labels[:, 0], logits[:, 0])
    assert float(scores.compute()["mAP"]) == pytest.approx(alone)
    assert not scores.state_dict()


def test_a_validation_set_without_positives_scores_zero():
    scores = ValidationScores(task("classification", "a", multilabel=True))
    scores.update(torch.zeros(3, 1), {"label": torch.zeros(3, 1)})
    assert scores.compute()["mAP"] == 0


def test_balanced_accuracy_and_dice_are_of_the_sums_over_batches():
    scores = ValidationScores(task("classification", "a", "b", "c"))
    for guess, truth in (([0, 0], [0, 0]), ([1, 0], [1, 1])):
        scores.update(torch.eye(3)[guess], {"label": torch.tensor(truth)})
    assert scores.counts.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert scores.compute()["balanced_accuracy"] == 0.75
    scores = ValidationScores(task("segmentation", "x", "y"))
    guess = torch.tensor([[[0, 1], [1, 2]]])
    truth = torch.tensor([[[0, 1], [255, 1]]], dtype=torch.uint8)
    logits = torch.nn.functional.one_hot(guess, 3).permute(0, 3, 1, 2).float()
    scores.update({"logits": logits}, {"mask": truth})
    assert scores.counts.tolist() == [[1, 1, 0], [2, 3, 1]]
    assert float(scores.compute()["dice"]) == pytest.approx((2 / 3 + 0) / 2)


def test_enhancement_is_followed_by_its_loss():
    scores = ValidationScores(SimpleNamespace(TASK="enhancement"))
    scores.update(torch.zeros(1), {})
    assert scores.compute() == {} and scores.monitor == "val/loss"


def _process(rank: int, store: str, results: list) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scores = ValidationScores(task("classification", "a", multilabel=True))
    logits, labels = torch.tensor([[3.0], [2.0], [1.0], [0.0]]), torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    mine = slice(0, 3) if rank == 0 else slice(3, 4)
    scores.update(logits[mine], {"label": labels[mine]})
    results[rank] = float(scores.compute()["mAP"])
    empty = ValidationScores(task("classification", "a", multilabel=True))
    if rank == 0:  # a set smaller than the number of processes
        empty.update(logits, {"label": labels})
    results[2 + rank] = float(empty.compute()["mAP"])
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")
def test_processes_with_unequal_and_empty_shares_agree(tmp_path):
    with torch.multiprocessing.Manager() as manager:
        results = manager.list([0.0] * 4)
        arguments = (str(tmp_path / "store"), results)
        torch.multiprocessing.start_processes(_process, args=arguments, nprocs=2, start_method="fork")
        assert list(results) == [0.5] * 4
