"""The authors' layout of 3DSAM-adapter, read and written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vesalius.errors import ConfigError, WeightsError
from vesalius.nn.sam import SAM_PRESETS, SamViT
from vesalius.nn.sam3d import Sam3D, Sam3DShape
from vesalius.published.keys import Hints
from vesalius.published.load import load, load_weights, save_weights
from vesalius.published.sam3d import published_state

SHAPE = Sam3DShape(window=4, layers=8, neck=32, sampler_heads=4, sampler_hidden=64, hidden=16)
HINTS = Hints(decoder_heads=4, window=4)


def written(folder, shape):
    torch.manual_seed(0)
    network = Sam3D.on(SamViT(replace(SAM_PRESETS["sam_tiny"], width=24)), shape).eval()
    state = published_state(network, crop=(32, 32, 32))
    state["encoder_opt"] = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save(state, folder / "best.pth.tar")
    return network, state


def test_what_is_written_is_read(tmp_path):
    network, state = written(tmp_path, SHAPE)
    assert len(state["feature_dict"]) == 4
    assert "transformer.layers.1.cross_attn_token_to_image.q_proj.weight" in state["feature_dict"][0]
    assert state["encoder_dict"]["blocks.2.attn_mask"].shape == (8, 64, 64)
    again = load("sam3d", tmp_path / "best.pth.tar", hints=HINTS)
    volume, points = torch.randn(1, 1, 32, 32, 32), torch.tensor([[[5.0, 6, 7]]])
    assert torch.equal(again(volume, points), network(volume, points))
    assert again.report.share == 1
    assert "optimiser's state" in again.report.dropped.values()
    assert again.card.contract.roi == (128, 128, 128)
    save_weights(again, tmp_path / "ours", again.card)
    assert torch.equal(load_weights(tmp_path / "ours")(volume, points), network(volume, points))


def test_the_automatic_variant_has_no_sampler_and_larger_crops(tmp_path):
    network, state = written(tmp_path, replace(SHAPE, prompted=False, upsample=2))
    assert "feature_dict" not in state
    with pytest.raises(WeightsError, match="its keys fit sam3d automatic"):
        load("sam3d", tmp_path / "best.pth.tar", hints=HINTS)
    again = load("sam3d", tmp_path / "best.pth.tar", part="automatic", hints=HINTS)
    assert again.card.contract.roi == (256, 256, 256)
    volume = torch.randn(1, 1, 32, 32, 32)
    assert torch.equal(again(volume), network(volume))


def test_clicks_with_labels_cannot_be_written():
    network = Sam3D(replace(SHAPE, sam=replace(SAM_PRESETS["sam_tiny"], width=24), labels=True))
    with pytest.raises(ConfigError, match="neither"):
        published_state(network)
