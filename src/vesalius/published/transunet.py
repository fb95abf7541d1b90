"""TransUNet's files (Chen 2021): a trained network, and Google's ``R50+ViT-B_16.npz`` that trainings start from.

A trained file is a bare state dict, whose queries, keys and values are layers of their own. Google's is a numpy
archive of the encoder for JAX: convolutions are HWIO, linear layers (in, out), and positions have a class token, which
is dropped. Neither the authors nor Google offer them for download any more (2026).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Window
from vesalius.errors import WeightsError
from vesalius.files import atomic
from vesalius.nn.transunet import STAGES, TransUNet, TransUNetConfig, resize_positions
from vesalius.published.checkpoint import LoadReport, fill
from vesalius.published.keys import Keys, Request

LICENCE = "not stated for trained weights; those of ImageNet-21k: Apache 2.0"
CITATION = (
    "Chen et al., TransUNet: Transformers make strong encoders for medical image segmentation, 2021, arXiv 2102.04306"
)
PARTS = ("segmentation",)
LAYER = "transformer.encoder.layer."
QKV = ("query", "key", "value")
POSITIONS = "transformer.embeddings.position_embeddings"
STEM = "transformer.embeddings.hybrid_model."
NAMES = (
    (r"stem\.conv", f"{STEM}root.conv"),
    (r"stem\.norm", f"{STEM}root.gn"),
    (r"embed", "transformer.embeddings.patch_embeddings"),
    (r"positions", POSITIONS),
    (r"norm", "transformer.encoder.encoder_norm"),
)
INNER = (
    ("downsample.norm", "gn_proj"),
    ("downsample.conv", "downsample"),
    ("conv", "conv"),
    ("norm", "gn"),
)
BLOCK = (("norm1", "attention_norm"), ("norm2", "ffn_norm"), ("mlp", "ffn"), ("attn.proj", "attn.out"))


def contract(size: int, channels: int) -> VolumeContract:
    """The slices that the published networks for abdominal CT read: -125 to 275 HU, whatever `channels`: repeated."""
    return VolumeContract(("CT",), orientation="SPL", intensity=Window(-125, 275), roi=(1, size, size))


def file_name(name: str) -> str:
    """The name in a trained file of one of `TransUNet`'s tensors, the fused queries, keys and values apart.

    >>> file_name("stem.stages.0.1.norm2.weight"), file_name("blocks.3.mlp.fc1.bias")
    ('transformer.embeddings.hybrid_model.body.block1.unit2.gn2.weight', 'transformer.encoder.layer.3.ffn.fc1.bias')
    """
    if found := re.match(r"stem\.stages\.(\d+)\.(\d+)\.", name):
        own, theirs = next(pair for pair in INNER if name[found.end() :].startswith(pair[0]))
        rest = theirs + name[found.end() :].removeprefix(own)
        return f"{STEM}body.block{int(found[1]) + 1}.unit{int(found[2]) + 1}.{rest}"
    if found := re.match(r"blocks\.(\d+)\.", name):
        own, theirs = next((pair for pair in BLOCK if name[found.end() :].startswith(pair[0])), ("", ""))
        return f"{LAYER}{found[1]}.{theirs}{name[found.end() :].removeprefix(own)}"
    for pattern, theirs in NAMES:
        if re.match(rf"{pattern}(\.|$)", name):
            return re.sub(f"^{pattern}", theirs, name)
    return name


def published_state(network: TransUNet) -> dict[str, Tensor]:
    """The tensors under the names of a trained file."""
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        tensor = tensor.detach().cpu().clone()
        theirs = file_name(name)
        if ".attn.qkv." in theirs:
            parts = tensor.chunk(3)
            state |= {theirs.replace("qkv", one): part.clone() for one, part in zip(QKV, parts, strict=True)}
        else:
            state[theirs] = tensor
    return state


def save_transunet(network: TransUNet, path: str | Path) -> Path:
    """Write a network as the authors' code reads it: a bare state dict."""
    with atomic(Path(path)) as temporary:
        torch.save(published_state(network), temporary)
    return Path(path)


def network(keys: Keys, request: Request) -> dict[str, Any]:
    """Move the keys of a trained file, and return the architecture.

    Raises:
        WeightsError: another layout, or another number of channels than its own.
    """
    config = _config(keys, request)
    _fuse(keys, config.depth)
    names = {file_name(name): name for name in _names(config)}
    for theirs, own in names.items():
        if own == "positions" and request.image_size and request.image_size != config.image_size:
            config = replace(config, image_size=request.image_size)
            resize = partial(resize_positions, grid=(config.grid, config.grid))
            keys.move(theirs, own, resize, f"positions resized for {config.image_size} px")
        elif theirs in keys:
            keys.move(theirs, own)
    return {"name": "transunet", "config": asdict(config)}


def read_google(path: str | Path) -> dict[str, Tensor]:
    """The encoder of Google's archive under the names of a trained file; positions without the class token.

    Raises:
        WeightsError: it is no such archive; objects are not unpickled.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        return dict(_google(arrays))
    except (OSError, ValueError, TypeError, AttributeError, IndexError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"is not the archive of a ResNet with a transformer ({error})", path=path, remedy="give R50+ViT-B_16.npz"
        ) from error


def load_google(network: TransUNet, path: str | Path) -> LoadReport:
    """Fill the encoder from Google's archive; the decoder stays as it is.

    Positions are resized as the published code does, see `resize_positions`.

    Raises:
        WeightsError: it is no such archive, or one of another shape.
    """
    keys = Keys(read_google(path))
    grid = (network.config.grid, network.config.grid)
    try:
        keys.shape(POSITIONS)
        _fuse(keys, network.config.depth)
        for own in _names(network.config):
            if own == "positions":
                keys.move(POSITIONS, own, partial(resize_positions, grid=grid), f"resized to {grid}")
            elif not own.startswith(("decoder.", "segmentation_head.")):
                keys.move(file_name(own), own)
        return fill(network, keys.ours, start=network.state_dict(), unexpected=keys.left, reshaped=keys.reshaped).check(
            minimum=0.0
        )
    except WeightsError as error:
        raise WeightsError(f"does not fit this network: {error.what}", path=path, remedy="use the preset paper") from (
            error
        )


def _google(arrays: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and values of Google's arrays as a trained file has them; heads that are not used are left out."""
    norms = {"LayerNorm_0": "attention_norm", "LayerNorm_2": "ffn_norm"}
    kinds = {"scale": "weight", "kernel": "weight", "bias": "bias"}
    for name, array in arrays.items():
        *place, kind = name.split("/")
        if place[:1] in (["cls"], ["head"], ["pre_logits"]) or name == "cls":
            continue
        if kind == "pos_embedding":
            yield POSITIONS, array[:, 1:]
            continue
        end = kinds.get(kind, kind)
        if place[0] in ("conv_root", "gn_root"):
            to = f"{STEM}root.{place[0].removesuffix('_root')}"
        elif place[0].startswith("block"):
            to = f"{STEM}body.{'.'.join(place)}".replace("conv_proj", "downsample")
        elif place[0] == "embedding":
            to = "transformer.embeddings.patch_embeddings"
        elif place[1] == "encoder_norm":
            to = "transformer.encoder.encoder_norm"
        else:
            layer = f"{LAYER}{place[1].removeprefix('encoderblock_')}."
            part = norms.get(place[2]) or f"{'attn' if 'Attention' in place[2] else 'ffn'}.{place[-1]}"
            to = layer + part.replace("Dense_0", "fc1").replace("Dense_1", "fc2")
        if ".attn." in to:  # heads apart: (width, heads, each) in, (heads, each, width) out
            inner = array.shape[0] if not to.endswith(".out") else -1
            array = (
                array.reshape(inner, array.shape[-1] if inner == -1 else -1) if kind == "kernel" else array.flatten()
            )
        if kind == "kernel":
            array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T
        elif "hybrid_model" in to:
            array = array.flatten()
        yield f"{to}.{end}", array.contiguous()


def _fuse(keys: Keys, depth: int) -> None:
    """Queries, keys and values become one layer, as they are in timm's."""
    for number in range(depth):
        for kind in ("weight", "bias"):
            parts = [f"{LAYER}{number}.attn.{one}.{kind}" for one in QKV]
            for part in parts:
                keys.shape(part)
            keys.left[f"{LAYER}{number}.attn.qkv.{kind}"] = torch.cat([keys.left.pop(part) for part in parts])


def _names(config: TransUNetConfig) -> list[str]:
    with torch.device("meta"):
        return list(TransUNet(config).state_dict())


def _config(keys: Keys, request: Request) -> TransUNetConfig:
    """The network's shape from its tensors'."""
    _, rows, hidden = keys.shape(POSITIONS)
    width, channels = keys.shape(f"{STEM}root.conv.weight")[:2]
    if request.in_channels not in (None, channels):
        raise WeightsError(
            f"{request.in_channels} input channels for a network of {channels}", remedy="a grey image is repeated"
        )
    steps = [keys.shape(f"decoder.blocks.{number}.conv1.0.weight") for number in range(STAGES + 1)]
    middle = keys.shape("decoder.conv_more.0.weight")[0]
    before = (middle, *(step[0] for step in steps))
    block = re.escape(f"{STEM}body.block")
    return TransUNetConfig(
        classes=keys.shape("segmentation_head.0.bias")[0] - 1,
        image_size=round(rows**0.5) * TransUNetConfig.patch_size,
        in_channels=channels,
        width=width,
        stages=tuple(keys.count(rf"{block}{number}\.unit(\d+)\.") - 1 for number in range(1, STAGES + 1)),
        hidden=hidden,
        depth=keys.count(re.escape(LAYER) + r"(\d+)\."),
        heads=request.hints.heads or max(hidden // 64, 1),
        mlp=keys.shape(f"{LAYER}0.ffn.fc1.weight")[0],
        middle=middle,
        decoder=tuple(step[0] for step in steps),
        skips=sum(step[1] > ins for step, ins in zip(steps, before, strict=False)),
    )
