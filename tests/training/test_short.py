from __future__ import annotations

import gc
import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vesalius.nn.vit import ViT, ViTConfig
from vesalius.tasks.classification import Classifier
from vesalius.training.short import step_memory, train_short


class Products(nn.Module):
    """Two layers without a bias, of which the first is frozen or not."""

    def __init__(self, frozen: bool):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False)
        self.first.requires_grad_(not frozen)

    def forward(self, image):
        return self.second(self.first(image))

    def loss(self, output, batch):
        return output.sum()


def test_the_memory_of_a_step_is_what_backward_keeps_and_what_the_optimiser_adds():
    batch = {"image": torch.ones(7, 3)}
    hidden = 7 * 5 * 4  # kept for the second layer's gradient; the batch and the weights are not counted
    assert step_memory(Products(frozen=True), batch) == hidden + 3 * 10 * 4  # a gradient and two moments of 10 weights
    assert step_memory(Products(frozen=False), batch) == hidden + 3 * 25 * 4
    task = Products(frozen=False)
    step_memory(task, batch)
    assert task.first.weight.grad is None


def task_and_batches():
    torch.manual_seed(0)
    config = ViTConfig(image_size=16, patch_size=8, width=16, depth=2, heads=2, drop_path=0.5)
    task = Classifier(ViT(config).freeze(), ("a", "b"), pool="encoder", head_std=0.01)
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 2

    def batches(chance):
        index = torch.randperm(6, generator=chance)[:4]
        return {"image": images[index], "label": labels[index]}

    return task, batches


def test_a_training_is_a_function_of_its_seed_and_leaves_the_trunk_alone():
    ends, steps = [], []
    for seed in (0, 0, 1):
        task, batches = task_and_batches()
        trunk = {name: value.clone() for name, value in task.encoder.state_dict().items()}
        loss = train_short(task, batches, lr=1e-2, steps=8, seed=seed, tick=steps.append)
        ends.append((loss, task.head.weight.detach().clone()))
        assert all(torch.equal(value, trunk[name]) for name, value in task.encoder.state_dict().items())
        assert not task.training
    assert steps[:8] == list(range(1, 9))
    assert ends[0][0] == ends[1][0] and torch.equal(ends[0][1], ends[1][1])
    assert not torch.equal(ends[0][1], ends[2][1])


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_every_step_moves_the_weights_however_few_there_are(steps):
    task, batches = task_and_batches()
    sizes, last = [], task.head.weight.detach().clone()

    def tick(step):
        nonlocal last
        sizes.append(float((task.head.weight.detach() - last).abs().max()))
        last = task.head.weight.detach().clone()

    train_short(task, batches, lr=1e-2, steps=steps, seed=0, tick=tick)
    assert min(sizes) > 0 and max(sizes) <= 1.2e-2
    assert steps < 20 or sizes[-1] < 0.1 * max(sizes)  # half a cosine, to 0


def test_a_loss_that_is_not_finite_ends_the_training():
    task, batches = task_and_batches()
    steps = []
    task.head.weight.data.fill_(math.nan)
    assert math.isnan(train_short(task, batches, lr=1e-3, steps=20, seed=0, tick=steps.append))
    assert steps == []


def test_counting_the_memory_of_a_step_keeps_none():
    network = nn.Sequential(nn.Linear(4, 8), nn.Softmax(-1))  # softmax keeps its own output for the backward pass
    outputs = []

    def output(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        value = network(batch["image"])
        outputs.append(weakref.ref(value))
        return value

    task = SimpleNamespace(
        parameters=network.parameters, buffers=network.buffers, zero_grad=network.zero_grad, loss=lambda o, b: o.sum()
    )
    assert step_memory(task, {"image": torch.ones(2, 4)}, output=output) > 0
    gc.collect()
    assert outputs[0]() is None
