"""Embedded prompts against the published equations, prompt tokens against a walk through the blocks by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from vesalius.errors import ConfigError
from vesalius.nn.convvit import ConvViT, ConvViTConfig
from vesalius.nn.encoder import Encoder
from vesalius.nn.extra_key import channel_attention, extra_key_attention
from vesalius.nn.prompts import (
    EmbeddedPrompt,
    PromptedAttention,
    collapse,
    describe_prompts,
    embed_prompts,
    kept_mass,
    literal_attention,
    prepend_prompts,
    restore_prompts,
)
from vesalius.nn.vit import ViT, ViTConfig

TINY = {"image_size": 32, "patch_size": 8, "in_channels": 1, "width": 16, "depth": 3, "heads": 2, "pool": "mean"}


def tiny(kind: str = "plain", **changes) -> Encoder:
    torch.manual_seed(0)
    if kind == "hierarchical":
        config = ConvViTConfig(image_size=64, in_channels=1, widths=(8, 8, 16), depths=(1, 1, 3), heads=2)
        return ConvViT(config).eval()
    vit = ViT(ViTConfig(**TINY | changes)).eval()
    for name, parameter in vit.named_parameters():
        if "relative" in name:
            torch.nn.init.normal_(parameter)
    return vit


def strong(encoder: Encoder, **options) -> Encoder:
    """With prompts whose values matter, each its own."""
    embed_prompts(encoder, **{"length": 5, **options})
    for prompt in prompts(encoder):
        torch.nn.init.normal_(prompt.prompt, std=2)
    return encoder


def prompts(encoder: Encoder) -> list[EmbeddedPrompt]:
    return [module for module in encoder.modules() if isinstance(module, EmbeddedPrompt)]


@pytest.fixture
def image():
    return torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", ["concat", "scaled_concat"])
@pytest.mark.parametrize("biased", ["no", "frozen", "learned"])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_fast_form_is_the_published_concatenation(mode, biased, kind, tolerance):
    torch.manual_seed(0)
    prompt = EmbeddedPrompt((3, 3), prefix=1, length=4, mode=mode).to(kind)
    torch.nn.init.normal_(prompt.prompt, std=2)
    attention = PromptedAttention(tiny(width=24).blocks[0].attn.to(kind), prompt)
    attention.proj = torch.nn.Identity()
    learns = biased == "learned"  # takes the other of the two forms
    bias = None if biased == "no" else torch.randn(1, 2, 10, 10, dtype=kind, requires_grad=learns)
    results = []
    for literal in (False, True):
        x = torch.randn(2, 10, 24, dtype=kind, generator=torch.Generator().manual_seed(1)).requires_grad_()
        prompt.prompt.grad = None
        if learns:
            bias.grad = None
        if literal:
            q, k, v = attention.qkv(x).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
            y = literal_attention(q, k, v, prompt.prompt, mode=mode, bias=bias).transpose(1, 2).flatten(2)
        else:
            y = attention(x, attn_mask=bias)
        (y * torch.arange(24)).sum().backward()
        results.append([y, x.grad, prompt.prompt.grad.clone(), *([bias.grad.clone()] if learns else [])])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < tolerance


@pytest.mark.parametrize("shape", [(6, 6), (1, 1, 1, 6), (2, 1, 6, 6), (1, 3, 6, 6)])
def test_both_forms_take_masks_of_every_shape(shape):
    q, k, v = torch.randn(3, 2, 3, 6, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    logits, mask = torch.randn(3, 6), torch.randn(shape)
    fused = extra_key_attention(q, k, v, logits, mask=mask, scale=0.3)
    torch.testing.assert_close(fused, channel_attention(q, k, v, logits, mask=mask, dropout=0.0, scale=0.3))


def test_a_boolean_mask_hides_keys_but_not_the_prompts():
    attention = strong(tiny()).blocks[0].attn
    x, mask = torch.randn(1, 17, 16), torch.rand(17, 17) > 0.3
    additive = torch.zeros(17, 17).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(attention(x, attn_mask=mask), attention(x, attn_mask=additive))
    causal = torch.ones(17, 17, dtype=torch.bool).tril()
    torch.testing.assert_close(attention(x, is_causal=True), attention(x, attn_mask=causal))


@pytest.mark.parametrize("kind", ["plain", "hierarchical"])
def test_a_trunk_keeps_its_tensors_and_a_collapse_its_output(kind, image):
    encoder = tiny(kind)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    plain = encoder(image).pooled
    strong(encoder, layers=(0, 2))
    after = encoder.state_dict()
    assert set(after) - set(before) == {"blocks.0.attn.prompt.prompt", "blocks.2.attn.prompt.prompt"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    prompted = encoder(image).pooled
    assert (prompted - plain).norm() / plain.norm() > 1e-2
    collapse(encoder)
    assert {prompt.prompt.shape[1] for prompt in prompts(encoder)} == {1}
    torch.testing.assert_close(encoder(image).pooled, prompted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("relative", ["none", "per_block"])
@pytest.mark.parametrize("cls", [False, True])
def test_every_prompted_layer_learns_and_keeps_a_part_of_its_attention(relative, cls, image):
    encoder = tiny(relative=relative, cls=cls, positions="sincos").freeze()
    strong(encoder, layers=(2, 0))
    mass = kept_mass(encoder, image[..., :32, :32])
    assert mass.shape == (2, 2, 2, 16 + cls)
    assert ((mass > 0) & (mass < 1)).all()
    encoder(image).pooled.square().sum().backward()
    assert all(prompt.prompt.grad.abs().sum() > 0 for prompt in prompts(encoder))
    assert not [p for name, p in encoder.named_parameters() if p.grad is not None and "prompt" not in name]


def test_a_start_far_below_is_the_pretrained_network_and_the_published_start_is_not(image):
    plain = tiny()(image).pooled
    generator = torch.Generator().manual_seed(0)
    identity, published = tiny(), tiny()
    embed_prompts(identity, init_logit=-20.0, generator=generator)
    embed_prompts(published, generator=generator)
    torch.testing.assert_close(identity(image).pooled, plain, atol=1e-5, rtol=0)
    assert prompts(published)[0].logits(17).mean().item() == pytest.approx(math.log(100), abs=1e-2)
    assert (published(image).pooled - plain).norm() / plain.norm() > 0.05
    again = tiny()
    embed_prompts(again, init_logit=-20.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prompts(again)[1].prompt, prompts(identity)[1].prompt)


def test_another_grid_interpolates_the_patches_and_keeps_the_prefix():
    prompt = EmbeddedPrompt((2, 2), prefix=1, length=3)
    torch.nn.init.zeros_(prompt.prompt)
    with torch.no_grad():
        prompt.prompt[0] += 5
        prompt.prompt[1:3] += 1  # the upper row
    logits = prompt.logits(1 + 16)
    assert logits[0].item() == pytest.approx(5 + math.log(3))
    rows = logits[1:].view(4, 4)
    torch.testing.assert_close(rows, rows[:, :1].expand(4, 4))
    assert (rows[:-1, 0] > rows[1:, 0]).all()
    with pytest.raises(ConfigError, match="2 x 2 grid cannot serve 13 tokens"):
        prompt.logits(13)


def test_what_leaves_the_prompts_without_a_place_is_refused(image):
    encoder = strong(tiny())
    with pytest.raises(ConfigError, match="64 x 16"):  # 16 patches: as many as a square's
        encoder(image[..., :16])
    with pytest.raises(ConfigError, match="whole images"):  # 4 of 16 patches: again a square number
        encoder(image[..., :32, :32], keep=torch.arange(4).expand(2, 4))
    with pytest.raises(ConfigError, match="already"):
        prepend_prompts(encoder, length=2)
    with pytest.raises(ConfigError, match="numbers from 0 to 2"):
        embed_prompts(tiny(), layers=(1, 3))
    with pytest.raises(ConfigError, match="shallow"):
        prepend_prompts(tiny(), length=2, layers="shalow")
    scaled = strong(tiny(), mode="scaled_concat")
    assert scaled(image).pooled.isfinite().all()
    with pytest.raises(ConfigError, match="concat"):
        collapse(scaled)


@pytest.mark.parametrize("layers", ["shallow", "deep", (1,), (0, 2)])
@pytest.mark.parametrize("kind", ["plain", "hierarchical", "relative"])
def test_prompt_tokens_enter_are_replaced_and_leave(kind, layers, image):
    encoder = tiny(kind, relative="per_block" if kind == "relative" else "none")
    names = set(encoder.state_dict())
    plain = encoder(image)
    prepend_prompts(encoder, length=2, layers=layers, std=1.0, generator=torch.Generator().manual_seed(0))
    assert set(encoder.state_dict()) - names == {"prompts.tokens"}
    out = encoder(image, layers=(2,))
    assert out.patches.shape == plain.patches.shape
    assert not torch.allclose(out.patches, plain.patches, atol=1e-3)
    if kind == "plain":
        listed = {"shallow": (0,), "deep": (0, 1, 2)}.get(layers, layers)
        x = torch.cat([encoder.cls_token.expand(2, -1, -1), encoder.patch_embed(image).flatten(2).mT], dim=1)
        cls, patches = encoder._positions((8, 8)).split([1, 64], 1)
        x, inside = x + torch.cat([cls, patches], dim=1), 0
        bare = tiny()
        for number, block in enumerate(bare.blocks):
            if number in listed:
                new = encoder.prompts.tokens[listed.index(number)].expand(2, -1, -1)
                x, inside = torch.cat([x[:, :1], new, x[:, 1 + inside :]], dim=1), 2
            x = block(x)
        torch.testing.assert_close(out.layers[2], torch.cat([x[:, :1], x[:, 3:]], dim=1))
    encoder.freeze().prompts.requires_grad_(True)
    encoder(image).pooled.square().sum().backward()
    assert (encoder.prompts.tokens.grad.abs().sum((1, 2)) > 0).all()


def test_prompt_tokens_may_be_used_with_masking(image):
    encoder = tiny(relative="shared")
    prepend_prompts(encoder, length=2)
    keep = torch.arange(64).flip(0).expand(2, -1)
    torch.testing.assert_close(encoder(image, keep=keep).patches, encoder(image).patches.flip(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("put_in", [embed_prompts, prepend_prompts])
def test_a_copy_has_prompts_of_its_own(put_in, image):
    encoder = tiny()
    put_in(encoder, length=2)
    expected = encoder(image).pooled
    twin, rebuilt = copy.deepcopy(encoder), tiny()
    restore_prompts(rebuilt, describe_prompts(encoder))
    rebuilt.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "prompt" in name:
                parameter.copy_(torch.randn(parameter.shape) * 5)
    assert not torch.allclose(encoder(image).pooled, expected, atol=1e-3)
    torch.testing.assert_close(twin(image).pooled, expected)
    torch.testing.assert_close(rebuilt(image).pooled, expected)


@pytest.mark.parametrize("put_in", [embed_prompts, prepend_prompts])
def test_a_prompted_trunk_is_captured_whole(put_in, image):
    encoder = tiny().freeze()
    put_in(encoder, length=2)
    compiled = torch.compile(lambda x: encoder(x).pooled, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), encoder(image).pooled)
