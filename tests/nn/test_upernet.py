from __future__ import annotations

import pytest
import torch

from vesalius.errors import ConfigError
from vesalius.nn.upernet import FCNHead, UPerHead

CHANNELS = (4, 6, 8, 8)


def maps(batch: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, 16 // 2**i, 24 // 2**i, generator=generator) for i, c in enumerate(CHANNELS)]


def test_every_map_is_read_and_no_input_is_changed():
    torch.manual_seed(0)
    head = UPerHead(CHANNELS, 3, width=8)
    inputs = [m.requires_grad_() for m in maps(2)]
    copies = [m.detach().clone() for m in inputs]
    logits = head(inputs, (64, 96))
    assert logits.shape == (2, 3, 64, 96)
    logits.square().sum().backward()
    assert all(m.grad.abs().sum() > 0 for m in inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


def test_training_on_one_image_says_what_to_do():
    head = UPerHead(CHANNELS, 2, width=8)
    with pytest.raises(ConfigError, match="batch size of 2"):
        head(maps(1), (64, 96))
    assert head.eval()(maps(1), (64, 96)).shape == (1, 2, 64, 96)


def test_auxiliary_head_keeps_the_maps_size():
    assert FCNHead(8, 3, width=4)(maps(2)[2]).shape == (2, 3, 4, 6)
