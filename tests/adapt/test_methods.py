"""Every method: what trains, that the trunk stays as it was, and whether it starts as the pre-trained network."""

from __future__ import annotations

import copy

import pytest
import torch

from vesalius.adapt import METHODS
from vesalius.adapt.methods import CHANGES_TRUNK, install, reads_frozen_features, settings
from vesalius.adapt.networks import tensor_hash
from vesalius.errors import ConfigError
from vesalius.nn.convvit import ConvViT, ConvViTConfig
from vesalius.nn.encoder import Encoder
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.tasks.classification import Classifier

PLAIN = ViTConfig(image_size=32, patch_size=8, in_channels=1, width=16, depth=3, heads=2)
BEIT = ViTConfig(
    image_size=32,
    patch_size=8,
    in_channels=1,
    width=16,
    depth=3,
    heads=2,
    positions="none",
    relative="shared",
    layer_scale=0.1,
    pool="mean",
)
IDENTITY = ("full", "linear", "mlp3", "partial1", "bitfit", "lora", "adapter", "vp")
"""Methods that start as the pre-trained network."""


def encoder(kind: str) -> Encoder:
    torch.manual_seed(0)
    if kind == "convvit":
        return ConvViT(
            ConvViTConfig(image_size=32, in_channels=1, widths=(8, 12, 16), depths=(1, 1, 2), heads=2)
        ).eval()
    trunk = ViT(PLAIN if kind == "plain" else BEIT).eval()
    if kind == "beit":
        torch.nn.init.normal_(trunk.relative.table)
    return trunk


@pytest.mark.parametrize("kind", ["plain", "beit", "convvit"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_moves_what_should_move(method: str, kind: str):
    trunk = encoder(kind)
    image = torch.randn(4, 1, 32, 32)
    before, names, whole = trunk(image).pooled, list(trunk.state_dict()), tensor_hash(trunk)
    config = settings(method)
    install(trunk, method, config, generator=torch.Generator().manual_seed(0))
    start = trunk.eval()(image).pooled
    assert torch.allclose(start, before, atol=1e-5) == (method in IDENTITY)
    task = Classifier(trunk, ("a", "b"), pool="encoder", fc_norm=False, head="mlp3" if method == "mlp3" else "linear")
    task.head.requires_grad_(True)
    torch.nn.init.normal_(list(task.head.parameters())[-2])  # the published start has no gradient worth the name
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(2):  # at the first step the inner half of a low-rank update has no gradient yet
        optimizer.zero_grad()
        task.loss(task(image), {"label": torch.tensor([0, 1, 0, 1])}).backward()
        missing = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        optimizer.step()
    assert (tensor_hash(trunk, names) == whole) == (method not in CHANGES_TRUNK)
    assert torch.equal(trunk(image).pooled, start) == reads_frozen_features(method, config)


def test_prompts_that_are_frozen_train_nothing_in_the_trunk():
    for method in ("ept", "vpt"):
        trunk, config = encoder("plain"), settings(method, {"frozen": True})
        install(trunk, method, config, generator=torch.Generator())
        assert not any(p.requires_grad for p in trunk.parameters())
        assert reads_frozen_features(method, config)


def test_lora_of_whole_layers_is_pefts_and_leaves_the_trunk():
    pytest.importorskip("peft")
    trunk = encoder("plain")
    names, whole = list(trunk.state_dict()), tensor_hash(trunk)
    install(trunk, "lora", settings("lora", {"targets": ("proj", "fc1"), "rank": 2}), generator=torch.Generator())
    assert sorted({n.split(".lora_")[0] for n, p in trunk.named_parameters() if p.requires_grad}) == [
        f"blocks.{block}.{layer}" for block in range(3) for layer in ("attn.proj", "mlp.fc1")
    ]
    assert tensor_hash(trunk, names) == whole


def test_lora_of_rows_is_a_low_rank_change_of_the_qkv_weight():
    trunk, merged = encoder("plain"), encoder("plain")
    install(trunk, "lora", settings("lora", {"rank": 2, "alpha": 4}), generator=torch.Generator().manual_seed(1))
    for block, plain in zip(trunk.blocks, merged.blocks, strict=True):
        update = block.attn.qkv.lora
        torch.nn.init.normal_(update.b)
        q, v = update.b @ update.a * 2
        plain.attn.qkv.weight.data += torch.cat([q, torch.zeros_like(q), v])
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(trunk(image).patches, merged(image).patches, rtol=1e-4, atol=1e-5)


def test_added_prompts_are_spread_over_the_patches_and_fit_any_image_size():
    trunk = encoder("plain")
    install(trunk, "vp", settings("vp", {"length": 4, "layers": (1,)}), generator=torch.Generator())
    prompt = trunk.blocks[1].added_prompt
    prompt.values.data = torch.arange(4.0).view(4, 1).expand(4, 16)
    added = prompt(torch.zeros(1, 17, 16))[0, :, 0]
    assert added.tolist() == [0, *[float(i) for i in range(4) for _ in range(4)]]
    assert trunk(torch.zeros(1, 1, 48, 32)).patches.shape == (1, 24, 16)


def test_an_adapted_trunk_can_be_copied():
    for method in ("lora", "adapter", "ssf", "vp", "vpt", "ept"):
        trunk = install(encoder("plain"), method, settings(method), generator=torch.Generator())
        twin = copy.deepcopy(trunk)
        image = torch.randn(1, 1, 32, 32)
        for p in trunk.parameters():
            p.data.zero_()
        torch.testing.assert_close(twin(image).pooled, copy.deepcopy(twin)(image).pooled)
        assert twin(image).pooled.abs().sum() > 0


def test_settings_are_checked():
    assert settings("ept", {"layers": [0, 2]}).layers == (0, 2)
    with pytest.raises(ConfigError, match="did you mean 'length'"):
        settings("ept", {"lenght": 5})
    with pytest.raises(ConfigError, match="has no setting"):
        settings("linear", {"length": 5})
    with pytest.raises(ConfigError, match="blocks = 4 of a trunk of 3"):
        install(encoder("plain"), "partial1", settings("partial1", {"blocks": 4}), generator=torch.Generator())
    with pytest.raises(ConfigError, match="rows"):
        install(encoder("plain"), "lora", settings("lora", {"targets": ("q", "proj")}), generator=torch.Generator())
