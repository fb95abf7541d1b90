"""TransUNet's files: trained networks both ways, and Google's archive of the encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius.errors import WeightsError
from vesalius.nn.transunet import TRANSUNET_PRESETS, TransUNet
from vesalius.published.load import load
from vesalius.published.transunet import load_google, published_state, read_google, save_transunet

SMALL = replace(TRANSUNET_PRESETS["tiny"], width=32, groups=32, hidden=64, heads=1, image_size=48, skips=2)


@pytest.fixture
def network() -> TransUNet:
    torch.manual_seed(0)
    network = TransUNet(SMALL)
    torch.nn.init.normal_(network.positions)
    return network.eval()


def google(network: TransUNet, path: Path) -> Path:
    """The encoder as Google's archive holds it, for the embeddings and one block of the transformer."""
    arrays = {"Transformer/posembed_input/pos_embedding": np.zeros((1, 197, 64), np.float32), "head/kernel": np.ones(3)}
    for name, tensor in published_state(network).items():
        array, names = tensor.numpy(), name.split(".")
        kind = "kernel" if names[-1] == "weight" and array.ndim > 1 else names[-1].replace("weight", "scale")
        if "hybrid_model" in name:
            array = array.transpose(2, 3, 1, 0) if kind == "kernel" else array.reshape(1, 1, 1, -1)
            place = names[3:-1] if names[3] != "root" else [f"{names[4]}_root"]
            place = place[1:] if place[0] == "body" else place
            arrays["/".join([*place, kind]).replace("downsample", "conv_proj")] = array
        elif "patch_embeddings" in name:
            arrays[f"embedding/{kind}"] = array.transpose(2, 3, 1, 0) if kind == "kernel" else array
        elif "encoder_norm" in name:
            arrays[f"Transformer/encoder_norm/{kind}"] = array
        elif name.startswith("transformer.encoder.layer."):
            layer, part = f"Transformer/encoderblock_{names[3]}", "/".join(names[4:-1])
            if part.startswith("attn/out"):
                array = array.T.reshape(1, 64, 64) if kind == "kernel" else array
            elif part.startswith("attn"):
                array = array.T.reshape(64, 1, 64) if kind == "kernel" else array.reshape(1, 64)
            elif kind == "kernel":
                array = array.T
            for theirs, ours in (
                ("MultiHeadDotProductAttention_1", "attn"),
                ("MlpBlock_3/Dense_0", "ffn/fc1"),
                ("MlpBlock_3/Dense_1", "ffn/fc2"),
                ("LayerNorm_0", "attention_norm"),
                ("LayerNorm_2", "ffn_norm"),
            ):
                part = part.replace(ours, theirs)
            arrays[f"{layer}/{part}/{kind}"] = array
    np.savez(path, **arrays)
    return path


def test_a_trained_file_goes_both_ways(network: TransUNet, tmp_path: Path):
    file = save_transunet(network, tmp_path / "epoch_149.pth")
    names = set(torch.load(file, weights_only=True))
    assert {"transformer.encoder.layer.1.attn.query.weight", "decoder.blocks.0.conv1.0.weight"} <= names
    again = load("transunet", file)
    image = torch.rand(1, 1, 48, 48)
    assert again.config == replace(SMALL, heads=1)
    assert torch.equal(again(image), network(image))
    assert again.card.contract.intensity.low == -125
    larger = load("transunet", file, image_size=96)
    assert larger.positions.shape[1] == 36
    assert "resized for 96 px" in " ".join(larger.card.notes)


def test_googles_archive_fills_the_encoder_alone(network: TransUNet, tmp_path: Path):
    file = google(network, tmp_path / "R50+ViT-B_16.npz")
    fresh = TransUNet(SMALL).eval()
    decoder = fresh.decoder.conv_more[0].weight.clone()
    report = load_google(fresh, file)
    network.positions.data.zero_()  # the archive's
    image = torch.rand(1, 1, 48, 48)
    assert torch.equal(fresh.encode(image)[0], network.encode(image)[0])
    assert torch.equal(fresh.decoder.conv_more[0].weight, decoder)
    assert all(name.startswith(("decoder.", "segmentation_head.")) for name in report.missing)
    with pytest.raises(WeightsError, match="use the preset paper"):
        load_google(TransUNet(replace(SMALL, hidden=32)), file)


def test_what_is_no_archive_is_refused_and_never_unpickled(tmp_path: Path):
    np.savez(tmp_path / "objects.npz", **{"conv_root/kernel": np.array([{}], object)})
    with pytest.raises(WeightsError, match="R50"):
        read_google(tmp_path / "objects.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(WeightsError, match="R50"):
        read_google(tmp_path / "text.npz")
