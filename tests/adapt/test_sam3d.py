"""Training 3DSAM-adapter: what trains, where clicks fall, and that a few steps improve a validation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vesalius.adapt.sam3d import PRESETS, Sam3DAdaptation, freeze, measured, prompted_contract, training_clicks
from vesalius.nn.sam import SAM_PRESETS, SamViT
from vesalius.nn.sam3d import Sam3D
from vesalius.nn.sam3d_heads import ABSENT
from vesalius.tasks.prompted_volumes import PromptedVolumeSegmentation
from vesalius.training.loop import TrainConfig, fit

SAM = replace(SAM_PRESETS["sam_tiny"], width=24, heads=2)
CONFIG = replace(PRESETS["tiny"], crop=(16, 16, 16), shift=0.0, lr=5e-3)


def module(**changes) -> Sam3DAdaptation:
    torch.manual_seed(0)
    config = replace(CONFIG, **changes)
    task = PromptedVolumeSegmentation(Sam3D.on(SamViT(SAM), config.network), ("tumour",))
    return Sam3DAdaptation(task, prompted_contract(["CT"], config), config)


def cases(count: int) -> list[dict]:
    """Bright balls in dark boxes, as `VolumeDataset` gives them."""
    made = []
    for row in range(count):
        grid = torch.stack(torch.meshgrid(*(torch.arange(24.0) for _ in range(3)), indexing="ij"), -1)
        mask = ((grid - torch.tensor([8.0 + row, 11, 13])).norm(dim=-1) < 6).to(torch.uint8)
        noise = torch.randn(1, 24, 24, 24, generator=torch.Generator().manual_seed(row))
        places = mask.nonzero()
        made.append(
            {
                "image": 2 * mask[None] - 1 + 0.2 * noise,
                "limits": torch.tensor([[0.0, 1.0]]),
                "mask": mask,
                "points": torch.cat([torch.ones(len(places), 1), places], 1).int(),
                "row": row,
            }
        )
    return made


def test_what_is_sams_own_does_not_train():
    network = module().task.encoder
    trained = set(freeze(network))
    assert {name.split(".")[0] for name in trained} == {"encoder", "sampler", "decoder"}
    endings = ("attn.qkv.weight", "attn.proj.bias", "mlp.lin1.weight", "rel_pos_h", "rel_pos_w", "pos_embed")
    assert not [name for name in trained if name.startswith("encoder.") and name.endswith(endings)]
    block = {name.removeprefix("encoder.blocks.0.") for name in trained if name.startswith("encoder.blocks.0.")}
    adapter = {f"pre_attn.{part}.{kind}" for part in ("linear1", "conv", "linear2") for kind in ("weight", "bias")}
    norms = {f"norm{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    assert block == adapter | norms | {"attn.rel_pos_d"}


def test_training_clicks_hit_and_miss():
    mask = torch.zeros(8, 8, 8, dtype=torch.uint8)
    mask[2:4] = 1
    draws = [training_clicks(mask, CONFIG, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    points, labels = draws[0]
    assert points.shape == (30, 3)
    assert torch.equal(points, draws[1][0])
    assert not torch.equal(points, draws[2][0])
    assert torch.equal(labels == 1, mask[tuple(points.long().T)] == 1)
    assert (labels[:10] == 1).all()
    _, none = training_clicks(torch.zeros_like(mask), CONFIG, torch.Generator())
    assert none.tolist() == [ABSENT] * 10 + [0] * 20
    few = [training_clicks(mask, replace(CONFIG, vary=True), torch.Generator().manual_seed(n))[1] for n in range(200)]
    assert {int((one[:10] == 1).sum()) for one in few} == set(range(1, 11))
    assert {int((one[10:] != ABSENT).sum()) for one in few} <= set(range(21))


def test_a_view_is_the_same_for_the_same_draw():
    made, case = module(), cases(1)[0]
    first, again = (made.view(case, torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["image"].shape == (1, 16, 16, 16)
    whole = [made.val_view(case, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    assert torch.equal(whole[0]["points"], whole[1]["points"])


def test_the_intensities_of_a_set_are_those_of_what_is_labelled():
    found = measured(cases(3))
    assert found.mean == pytest.approx(1, abs=0.02)
    assert found.std == pytest.approx(0.2, abs=0.02)
    assert found.low == pytest.approx(1 - 2.576 * 0.2, abs=0.05)


def test_gradients_of_each_part_are_clipped():
    made = module()
    batch = made.collate([made.view(case, torch.Generator().manual_seed(0)) for case in cases(2)])
    (1000 * made.training_step(batch, 0)).backward()
    made.clip(1.0)
    network = made.task.encoder
    for part in (network.encoder, network.sampler, network.decoder):
        norm = torch.stack([p.grad.norm() for p in part.parameters() if p.grad is not None]).norm()
        assert norm == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("prompted", [True, False])
def test_a_few_steps_improve_whole_volumes(prompted):
    made = module(network=replace(CONFIG.network, prompted=prompted))
    frozen = made.task.encoder.encoder.blocks[0].attn.qkv.weight.clone()
    before = validate(made)
    fit(made, cases(3), None, TrainConfig(steps=30, batch_size=2, accelerator="cpu"), progress=False)
    assert validate(made) > max(before, 0.5)
    assert torch.equal(made.task.encoder.encoder.blocks[0].attn.qkv.weight, frozen)


def validate(made: Sam3DAdaptation) -> float:
    made.eval()
    seen = [made.val_view(case, torch.Generator()) for case in cases(2)]
    made.on_validation_epoch_start()
    made.validation_step(made.collate(seen), 0)
    return float(made._dice.compute())
