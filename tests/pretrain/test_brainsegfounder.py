"""BrainSegFounder's corruption and losses: shares, seeds, and that each task alone trains the encoder."""

from __future__ import annotations

import math

import pytest
import torch

from vesalius.errors import ConfigError
from vesalius.pretrain.brainsegfounder import (
    PRESETS,
    BrainSegFounderConfig,
    build,
    corrupt,
    draw_boxes,
    learning_rate,
    nt_xent,
    ssl_loss,
    turn,
    views,
)

TINY = PRESETS["tiny"]


@pytest.fixture
def crops():
    return torch.rand(3, 2, *TINY.crop, generator=torch.Generator().manual_seed(0))


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_one_pass_replaces_the_published_share():
    """.140 on 96^3 (section 2.3 of our notes), .05-.95 quantiles .021 and .244."""
    shares = []
    for seed in range(200):
        mask = torch.zeros(48, 48, 48, dtype=torch.bool)
        for d0, d1, h0, h1, w0, w1 in draw_boxes(
            (48, 48, 48), share=0.3, low=0.05, high=0.25, generator=_seeded(seed)
        ).tolist():
            mask[d0:d1, h0:h1, w0:w1] = True
        shares.append(float(mask.float().mean()))
    assert abs(sum(shares) / len(shares) - 0.14) < 0.015
    assert max(shares) < 0.3


def test_views_are_turned_and_corrupted_by_the_seed_alone(crops):
    batch, again = views(crops, TINY, generator=_seeded(1)), views(crops, TINY, generator=_seeded(1))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["target"].shape == (6, 2, *TINY.crop)
    assert torch.equal(turn(batch["target"], -batch["turns"]), torch.cat([crops, crops]))
    changed = (batch["corrupted"] != batch["target"]).float().mean((1, 2, 3, 4))
    assert changed.min() > 0
    assert changed.max() < 0.6
    assert batch["corrupted"].min() >= 0
    assert batch["corrupted"].max() <= 1


def test_a_box_is_pasted_from_another_crop():
    """Constant crops tell where a voxel comes from; noise almost never is such a number."""
    crops = torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1, 1, 1).expand(3, 1, 64, 32, 32).contiguous()
    found = set()
    for seed in range(6):
        for index, crop in enumerate(corrupt(crops, TINY, generator=_seeded(seed))):
            found |= {(index, other) for other in range(3) if (crop == crops[other]).float().mean() > 1e-3}
    assert {(0, 1), (1, 0), (2, 1)} & found
    assert {(0, 0), (1, 1), (2, 2)} <= found


def test_each_task_alone_reaches_the_encoder(crops):
    torch.manual_seed(0)
    network = build(TINY)
    batch = views(crops[:2], TINY, generator=_seeded(0))
    terms = ssl_loss(network(batch["corrupted"]), batch)
    for task in ("rotation", "contrastive", "reconstruction"):
        (gradient,) = torch.autograd.grad(terms[task], network.encoder.swin.patch_embed.proj.weight, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_contrastive_loss_at_collapse_and_at_its_best():
    same = torch.ones(4, 8)
    assert float(nt_xent(same, same)) == pytest.approx(math.log(7), abs=1e-5)
    apart = torch.eye(4, 8)
    assert float(nt_xent(apart, apart)) < math.log(7) - 0.5


def test_configuration_is_checked():
    with pytest.raises(ConfigError, match="cannot be turned"):
        BrainSegFounderConfig(crop=(96, 96, 64))
    with pytest.raises(ConfigError, match="multiples of 32"):
        BrainSegFounderConfig(crop=(32, 32, 32))
    assert learning_rate(TINY.steps + 50, TINY) == 0
    assert learning_rate(TINY.warmup, TINY) == TINY.lr
