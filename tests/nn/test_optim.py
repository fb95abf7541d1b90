"""Learning rates and weight decay against the published rules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vesalius.nn.optim import adamw, layer_id, parameter_groups, warmup_cosine, warmup_step


class Trunk(nn.Module):
    """A trunk's parameter names at width 2."""

    def __init__(self, depth: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 2))
        self.patch_embed = nn.Conv2d(3, 2, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
        self.rel_pos_bias = nn.Parameter(torch.zeros(7, 2))
        self.head = nn.Linear(2, 2)


def test_layer_decay_follows_the_published_rule():
    trunk = Trunk(depth=3)
    groups = parameter_groups(trunk, lr=1.0, weight_decay=0.05, layer_decay=0.5, depth=3)
    found = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert len(found) == len(list(trunk.parameters()))
    assert found["cls_token"] == found["pos_embed"] == found["patch_embed.bias"] == (0.5**4, 0.0)
    assert found["patch_embed.weight"] == (0.5**4, 0.05)
    assert found["blocks.0.weight"] == (0.5**3, 0.05)
    assert found["blocks.2.bias"] == (0.5, 0.0)
    assert found["head.weight"] == found["rel_pos_bias"] == (1.0, 0.05)


def test_frozen_parameters_are_left_out_and_a_missing_depth_is_refused():
    trunk = Trunk(depth=1)
    trunk.blocks.requires_grad_(False)
    names = {name for group in parameter_groups(trunk, lr=1.0, weight_decay=0.0) for name in group["names"]}
    assert not any(name.startswith("blocks") for name in names)
    with pytest.raises(ValueError, match="depth"):
        parameter_groups(trunk, lr=1.0, weight_decay=0.0, layer_decay=0.5)


def test_layers_of_the_hierarchical_encoder():
    assert [layer_id(n, 11) for n in ("patch_embed3.proj.bias", "blocks1.0.conv1.bias", "blocks3.4.mlp.fc1.bias")] == [
        0,
        0,
        5,
    ]


def test_schedules_are_continuous_at_the_end_of_the_warm_up():
    for schedule in (warmup_cosine, warmup_step):
        before, after = (schedule(s, total=100, warmup=10, lr=2.0, warmup_lr=0.5) for s in (10 - 1e-9, 10))
        assert math.isclose(before, after, abs_tol=1e-6) and after == 2.0
        assert schedule(0, total=100, warmup=10, lr=2.0, warmup_lr=0.5) == 0.5
    assert warmup_cosine(100, total=100, warmup=10, lr=2.0, min_lr=0.1) == pytest.approx(0.1)
    assert warmup_cosine(500, total=100, warmup=0, lr=2.0) == 0


def test_adamw_steps_the_schedule_in_every_group():
    made = adamw(
        Trunk(depth=1), lr=1.0, layer_decay=0.5, depth=1, schedule=lambda s: warmup_cosine(s, total=4, warmup=2, lr=1.0)
    )
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    optimizer.step()
    scheduler.step()
    assert {group["lr"] / group["lr_scale"] for group in optimizer.param_groups} == {0.5}
