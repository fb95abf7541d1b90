"""Files of the EPT repository: one tensor's shape says which method they hold, and a converted file keeps it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vesalius.errors import WeightsError
from vesalius.nn.prompts import collapse, describe_prompts, literal_attention
from vesalius.published.fixture import weight_rule
from vesalius.published.keys import Hints
from vesalius.published.load import convert, load, load_backbone, load_weights, recognise, save_weights
from vesalius.published.networks import architecture

WIDTH, DEPTH, TOKENS = 64, 3, 17
PROMPTS = {"ept": (2, TOKENS, 5), "vpt": (3, 4, WIDTH), "plain": None}
EXPECTED = {
    "ept": {"embedded": {"length": 5, "layers": [0, 1], "mode": "concat", "grid": [4, 4]}},
    "vpt": {"tokens": {"length": 4, "layers": [0, 1, 2]}},
    "plain": {},
}


def state(prompt: tuple[int, ...] | None) -> dict[str, torch.Tensor]:
    """An mmcls state dict."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, TOKENS, WIDTH),
        "patch_embed.projection.weight": (WIDTH, 3, 8, 8),
        "patch_embed.projection.bias": (WIDTH,),
    }
    for n in range(DEPTH):
        for name, shape in {
            "ln1": (WIDTH,),
            "ln2": (WIDTH,),
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "ffn.layers.0.0": (2 * WIDTH, WIDTH),
            "ffn.layers.1": (WIDTH, 2 * WIDTH),
        }.items():
            shapes |= {f"layers.{n}.{name}.weight": shape, f"layers.{n}.{name}.bias": shape[:1]}
    shapes |= {"ln1.weight": (WIDTH,), "ln1.bias": (WIDTH,)}
    if prompt:
        shapes["prompt"] = prompt
    shapes = {f"backbone.{name}": shape for name, shape in shapes.items()}
    shapes |= {"head.fc.weight": (6, WIDTH), "head.fc.bias": (6,)}
    filled = {name: torch.from_numpy(weight_rule(name, shape)) for name, shape in shapes.items()}
    if prompt:
        filled["backbone.prompt"] *= 100  # strong enough that leaving them out shows
    return filled


@pytest.fixture(params=PROMPTS)
def published(request, tmp_path):
    torch.save({"meta": {"epoch": 20}, "state_dict": state(PROMPTS[request.param])}, tmp_path / "epoch_20.pth")
    return request.param, tmp_path / "epoch_20.pth"


@pytest.fixture
def image():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_file_says_what_it_holds_and_a_converted_one_too(published, image, tmp_path):
    kind, file = published
    network = load("ept", file, part="classification")
    assert describe_prompts(network.encoder) == EXPECTED[kind]
    assert network.report.share == 1
    assert not network.report.dropped
    assert recognise(torch.load(file)["state_dict"]) == ["ept backbone", "ept classification"]
    convert("ept", file, tmp_path / "converted", part="classification")
    with torch.no_grad():
        again = load_weights(tmp_path / "converted")
        torch.testing.assert_close(again(image), network(image))
        backbone = load_backbone(tmp_path / "converted")
        torch.testing.assert_close(backbone(image).pooled, network.features(image))
        torch.testing.assert_close(load_backbone(f"ept:{file}")(image).pooled, network.features(image))
    assert architecture(backbone) == backbone.card.architecture


def test_another_size_and_one_channel(published, image, tmp_path):
    _, file = published
    convert("ept", file, tmp_path / "converted")
    larger = torch.nn.functional.interpolate(image[:, :1], scale_factor=2)
    own = load("ept", file)
    loaded = load("ept", file, image_size=64, in_channels=1)
    refitted = load_backbone(tmp_path / "converted", image_size=64, in_channels=1)
    assert loaded.image_size == refitted.image_size == refitted.card.contract.size == 64
    with torch.no_grad():
        expected = own(larger.expand(-1, 3, -1, -1)).pooled
        torch.testing.assert_close(loaded(larger).pooled, expected)
        torch.testing.assert_close(refitted(larger).pooled, expected)


def test_prompts_are_the_published_ones_of_their_layers(tmp_path, image):
    values = state(PROMPTS["ept"])
    torch.save(values, tmp_path / "ept.pth")
    encoder = load("ept", tmp_path / "ept.pth", hints=Hints(heads=2, prompt_layers=(1, 2)))
    inside = {}
    encoder.blocks[2].attn.register_forward_hook(lambda module, args, out: inside.update(x=args[0], y=out))
    with torch.no_grad():
        encoder(image)
        attention = encoder.blocks[2].attn
        q, k, v = attention.qkv(inside["x"]).unflatten(2, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        y = literal_attention(q, k, v, values["backbone.prompt"][1]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(inside["y"], attention.proj(y), atol=1e-5, rtol=1e-5)


def test_a_collapsed_network_is_saved_as_such(tmp_path, image):
    torch.save(state(PROMPTS["ept"]), tmp_path / "ept.pth")
    encoder = load("ept", tmp_path / "ept.pth")
    with torch.no_grad():
        expected = encoder(image).pooled
    collapse(encoder)
    save_weights(encoder, tmp_path / "small", replace(encoder.card, architecture=architecture(encoder)))
    again = load_backbone(tmp_path / "small")
    assert describe_prompts(again)["embedded"]["length"] == 1
    with torch.no_grad():
        torch.testing.assert_close(again(image).pooled, expected)


def test_prompts_that_fit_nothing_are_refused(tmp_path):
    torch.save(state((2, 16, 5)), tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="neither EPT's logits of 17 tokens nor VPT's tokens of 64"):
        load("ept", tmp_path / "odd.pth")
    torch.save(state(PROMPTS["ept"]), tmp_path / "ept.pth")
    with pytest.raises(WeightsError, match=r"for 2 layers, not for \(0, 1, 2\) of 3"):
        load("ept", tmp_path / "ept.pth", hints=Hints(prompt_layers=(0, 1, 2)))
    with pytest.raises(WeightsError, match="ept backbone"):
        load("vit", tmp_path / "ept.pth")
