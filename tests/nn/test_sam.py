"""SAM's trunk, prompts and decoder: what the fixtures cannot show."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vesalius.errors import ConfigError
from vesalius.nn.sam import (
    SAM_PRESETS,
    SamAttention,
    SamBlock,
    SamConfig,
    SamDecoderConfig,
    SamViT,
    adapter_state_dict,
    install,
    relative_rows,
    shift_mask,
)
from vesalius.nn.sam_decoder import Sam, SamMaskDecoder
from vesalius.nn.sam_prompts import SamPromptEncoder

TINY = SAM_PRESETS["sam_tiny"]


def _random(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def _literal(attention, x):
    """The logits of every pair written out."""
    count, *grid, width = x.shape
    q, k, v = attention.qkv(x).reshape(count, -1, 3, attention.heads, width // attention.heads).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    places = torch.stack(torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")).flatten(1)
    gain = attention.lr if len(grid) == 3 else 1.0
    for axis, place, side in zip("hwd", places, grid, strict=False):
        rows = relative_rows(attention.get_parameter(f"rel_pos_{axis}"), side)[place][:, place]
        logits = logits + gain * torch.einsum("bnqc,qkc->bnqk", q, rows)
    out = logits.softmax(-1) @ v
    return attention.proj(out.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (2, 3, 4)], ids=["own grid", "resized tables", "three axes"])
def test_attention_is_what_its_equation_says(grid):
    attention = _random(SamAttention(32, 2, 4, axes=len(grid)))
    if len(grid) == 3:
        attention.lr.fill_(0.7)
    x = torch.randn(2, *grid, 32)
    torch.testing.assert_close(attention(x), _literal(attention, x), rtol=1e-4, atol=1e-4)


def test_without_a_gradient_queries_are_taken_in_parts(monkeypatch):
    attention, block = _random(SamAttention(16, 4, 6)), _random(SamBlock(16, 2, window=4, shift=2))
    x, tokens = torch.randn(2, 6, 5, 16), torch.randn(2, 6, 8, 16)
    shifted = block(tokens)
    monkeypatch.setattr("vesalius.nn.sam.HELD", 7 * 2 * 4 * 30)  # seven queries at a time
    with torch.no_grad():
        torch.testing.assert_close(attention(x), _literal(attention, x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(block(tokens), shifted, rtol=1e-4, atol=1e-4)
    assert shifted.grad_fn is not None


@pytest.mark.parametrize("axes", [2, 3])
def test_the_shift_lets_neighbours_in_and_nothing_else(axes):
    """Windows of 4 rolled by 2: token 3 meets 2 to 5 along each axis, and not what the roll carries to it."""
    block = _random(SamBlock(16, 2, window=4, shift=2, axes=axes))
    x = torch.randn(1, *(8,) * axes, 16, requires_grad=True)
    block(x)[(0, *(3,) * axes)].sum().backward()
    seen = x.grad.abs().sum(-1)[0] > 1e-7  # the mask is a logit of -100, not of -infinity
    expected = torch.zeros((8,) * axes, dtype=torch.bool)
    expected[(slice(2, 6),) * axes] = True
    assert torch.equal(seen, expected)
    corner = torch.zeros_like(x).detach()
    corner[(0, *(0,) * axes)] = 1
    x.grad = None
    (block(x) * corner).sum().backward()
    edge = torch.zeros_like(expected)
    edge[(slice(0, 2),) * axes] = True
    assert torch.equal(x.grad.abs().sum(-1)[0] > 1e-7, edge)


def test_the_shift_mask_has_a_window_of_regions():
    mask = shift_mask((8, 8), 4, 2)
    assert mask.shape == (4, 16, 16)
    assert set(mask.unique().tolist()) == {-100.0, 0.0}
    assert (mask[0] == 0).all()  # the first window was whole before


def test_padding_of_windows_takes_part():
    """SAM was trained with zeros beside its tokens; hiding them gives other numbers."""
    block = _random(SamBlock(16, 2, window=4))
    x = torch.randn(1, 6, 6, 16)
    alone = block.attn(block.norm1(x)[:, 4:, 4:])
    padded = block(x)[:, 4:, 4:] - x[:, 4:, 4:]
    middle = x[:, 4:, 4:] + alone
    assert not torch.allclose(padded, alone + block.mlp(block.norm2(middle)), atol=1e-3)


def test_adapters_go_into_slots_and_leave_the_base_loadable():
    encoder = SamViT(TINY)
    base = set(encoder.state_dict())
    encoder.requires_grad_(False)
    install(encoder, "pre_attn", lambda number, block: nn.Linear(96, 96) if number % 2 else None)
    install(encoder, "attn.qkv", lambda number, block: nn.Sequential(block.attn.qkv, nn.Linear(288, 288, bias=False)))
    trained = adapter_state_dict(encoder)
    assert set(trained) == {
        *(f"blocks.{n}.pre_attn.{part}" for n in (1, 3) for part in ("weight", "bias")),
        *(f"blocks.{n}.attn.qkv.1.weight" for n in range(4)),
    }
    moved = {name.replace("attn.qkv.", "attn.qkv.0.") for name in base}
    assert moved | set(trained) == set(encoder.state_dict())
    assert encoder(torch.zeros(1, 3, 64, 32)).shape == (1, 64, 4, 2)
    with pytest.raises(ConfigError, match="did you mean 'post_mlp'"):
        install(encoder, "post_mpl", lambda number, block: None)


def test_a_slot_comes_where_its_name_says():
    class Add(nn.Module):
        def forward(self, x):
            return x + 1

    plain = _random(SamBlock(16, 2, window=4))
    x = torch.randn(1, 4, 4, 16)
    middle = x + plain._attend(plain.norm1(x))
    expected = {
        "pre_attn": plain(x + 1),
        "post_attn": middle + 1 + plain.mlp(plain.norm2(middle + 1)),
        "post_mlp": plain(x) + 1,
    }
    for slot, output in expected.items():
        setattr(plain, slot, Add())
        torch.testing.assert_close(plain(x), output, rtol=1e-4, atol=1e-4)
        setattr(plain, slot, nn.Identity())


def test_run_hands_out_states_of_any_size():
    encoder = SamViT(TINY)
    tokens = encoder.embed(torch.randn(2, 3, 48, 80))
    early, last = encoder.run(tokens, take=(1, 3))
    assert early.shape == last.shape == (2, 3, 5, 96)
    assert torch.equal(encoder.run(tokens)[0], last)
    with pytest.raises(ConfigError, match="cut into patches of 16"):
        encoder(torch.zeros(1, 3, 40, 64))
    with pytest.raises(ConfigError, match="1 channels"):
        encoder(torch.zeros(1, 1, 64, 64))


def test_prompts_meet_the_image_that_the_index_names():
    decoder = _random(SamMaskDecoder(32, SamDecoderConfig(mlp=64, iou_hidden=32)))
    images, positions = torch.randn(2, 32, 4, 4), torch.randn(1, 32, 4, 4)
    sparse, dense = torch.randn(3, 2, 32), torch.randn(1, 32, 4, 4)
    index = torch.tensor([1, 0, 1])
    masks, iou = decoder(images, positions, sparse, dense, index)
    for row, image in enumerate(index):
        alone, its = decoder(images[image, None], positions, sparse[row, None], dense)
        torch.testing.assert_close(masks[row], alone[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(iou[row], its[0], rtol=1e-4, atol=1e-4)


def test_more_stages_and_tokens_give_finer_masks_of_more_classes():
    decoder = SamMaskDecoder(64, SamDecoderConfig(mask_tokens=6, stages=4))
    empty, dense = torch.zeros(1, 0, 64), torch.zeros(1, 64, 4, 4)
    masks, iou = decoder(torch.randn(3, 64, 4, 4), torch.randn(1, 64, 4, 4), empty, dense)
    assert masks.shape == (3, 6, 64, 64)
    assert iou.shape == (3, 6)
    assert [name for name in decoder.state_dict() if name.startswith("output_upscaling.9")]  # MA-SAM's last one


def test_gradients_reach_every_part_and_nothing_is_thresholded():
    sam = Sam(TINY)
    points, labels = torch.tensor([[[30.0, 40.0]]]), torch.tensor([[1]])
    masks, iou = sam.decode(sam.encode(torch.rand(1, 3, 128, 96) * 255), points=points, labels=labels)
    (masks.square().mean() + iou.mean()).backward()
    idle = {name for name, parameter in sam.named_parameters() if parameter.grad is None}
    assert not {name for name in idle if not name.startswith("prompt_encoder.")}
    assert len(masks.unique()) > 100


def test_prompts_that_cannot_be_meant():
    encoder = SamPromptEncoder(32, image_size=64)
    with pytest.raises(ConfigError, match="label"):
        encoder(points=torch.zeros(1, 2, 2), labels=torch.ones(1, 1))
    with pytest.raises(ConfigError, match="16 x 16"):
        encoder(masks=torch.zeros(1, 1, 64, 64))
    with pytest.raises(ConfigError, match="resize its longer side to 128"):
        Sam(TINY).encode(torch.zeros(1, 3, 256, 64))
    with pytest.raises(ConfigError, match="count from 0"):
        SamConfig(global_blocks=(12,))
