"""Fine-tuning: which weights move, by how much, and what validation measures."""

from __future__ import annotations

import pytest
import torch

from vesalius.adapt.full import PRESETS, Adaptation, AdaptConfig, for_fine_tuning
from vesalius.data.contract import InputContract
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.tasks.classification import Classifier
from vesalius.tasks.segmentation import Segmenter

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
    module = Adaptation(
        Classifier(ViT(ViTConfig(**SHAPE, drop_path=0.5)), ("a", "b")), CONTRACT, AdaptConfig(), method="linear"
    )
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


def test_validation_counts_give_balanced_accuracy_and_dice():
    encoder = ViT(ViTConfig(**SHAPE))
    classifier = Adaptation(Classifier(encoder, ("a", "b", "c")), CONTRACT, AdaptConfig())
    logits = torch.eye(3)[[0, 0, 1, 0]]
    counts = classifier._count(logits, {"label": torch.tensor([0, 0, 1, 1])})
    assert counts.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    segmenter = Adaptation(Segmenter(encoder, ("x", "y")), CONTRACT, AdaptConfig())
    guess = torch.tensor([[[0, 1], [1, 2]]])
    truth = torch.tensor([[[0, 1], [255, 1]]], dtype=torch.uint8)
    logits = torch.nn.functional.one_hot(guess, 3).permute(0, 3, 1, 2).float()
    assert segmenter._count({"logits": logits}, {"mask": truth}).tolist() == [[1, 0], [3, 1]]
