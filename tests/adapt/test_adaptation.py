"""Fine-tuning: which weights move, by how much, and what validation measures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vesalius.adapt.adaptation import FEW_LABELS, PRESETS, Adaptation, AdaptConfig, for_fine_tuning
from vesalius.adapt.methods import install, settings
from vesalius.data.contract import InputContract
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.tasks.classification import Classifier

SHAPE = {"image_size": 32, "patch_size": 8, "in_channels": 1, "width": 16, "depth": 3, "heads": 2}
CONTRACT = InputContract(32, 1, (0.5,), (0.25,))


def test_a_shared_position_table_becomes_one_per_block_and_the_outputs_stay():
    shared = ViT(ViTConfig(**SHAPE, positions="none", relative="shared", pool="mean")).eval()
    torch.nn.init.normal_(shared.relative.table)
    tuned = for_fine_tuning(shared, drop_path=0.1).eval()
    assert tuned.config.relative == "per_block"
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(tuned(image).patches, shared(image).patches)


def test_learning_rates_fall_with_depth_and_scale_with_the_images_a_step():
    config = PRESETS["paper"]["classification"].scaled(64)
    assert config.lr == pytest.approx(1.25e-3 / 8)
    encoder = for_fine_tuning(ViT(ViTConfig(**SHAPE, positions="none", relative="shared", pool="mean")), 0.0)
    module = Adaptation(Classifier(encoder, ("a", "b")), CONTRACT, config)
    module.total_steps = 10
    optimizer = module.configure_optimizers()["optimizer"]
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: scale[id(p)] for name, p in module.named_parameters() if p.requires_grad}
    assert named["task.head.weight"] == named["task.fc_norm.bias"] == 1
    assert named["task.encoder.blocks.2.mlp.fc1.weight"] == pytest.approx(0.65)
    assert named["task.encoder.relative.1.table"] == pytest.approx(0.65**2)
    assert named["task.encoder.patch_embed.proj.weight"] == named["task.encoder.cls_token"] == pytest.approx(0.65**4)


def test_linear_moves_the_head_alone_and_keeps_the_trunk_in_evaluation_mode():
    encoder = ViT(ViTConfig(**SHAPE, drop_path=0.5)).freeze()
    module = Adaptation(Classifier(encoder, ("a", "b")), CONTRACT, AdaptConfig(), method="linear")
    before = {name: value.clone() for name, value in module.encoder.state_dict().items()}
    head = module.task.head.weight.clone()
    module.train()
    assert module.task.training
    assert not any(part.training for part in module.encoder.modules())
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    module.training_step({"image": torch.randn(4, 1, 32, 32), "label": torch.tensor([0, 1, 0, 1])}, 0).backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in module.encoder.state_dict().items())
    assert not torch.equal(head, module.task.head.weight)


def test_what_is_inside_the_trunk_may_have_its_own_learning_rate():
    encoder = install(ViT(ViTConfig(**SHAPE)), "ept", settings("ept"), generator=torch.Generator())
    task = Classifier(encoder, ("a", "b"), pool="encoder")
    module = Adaptation(task, CONTRACT, replace(FEW_LABELS["paper"], inner_lr=0.5), method="ept")
    module.total_steps = 10
    optimizer = module.configure_optimizers()["optimizer"]
    head, inside = optimizer.param_groups
    assert (type(optimizer), head["lr"], inside["lr"]) == (torch.optim.SGD, 6e-4, 0.5)
    assert [len(group["params"]) for group in (head, inside)] == [2, 3]
    module.train()
    assert not any(part.training for part in module.encoder.modules())
