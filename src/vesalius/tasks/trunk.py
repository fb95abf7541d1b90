"""How the heads read an encoder: which blocks, which tokens, which maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vesalius.errors import ConfigError, nearest
from vesalius.nn.encoder import Encoder
from vesalius.nn.pyramid import DownLevel, FeaturePyramid


def default_layers(depth: int, maps: int = 4) -> tuple[int, ...]:
    """Blocks for a pyramid of 4 maps (3, 5, 7, 11 of 12) or 3 (5, 7, 11), scaled to `depth`.

    >>> default_layers(12), default_layers(12, 3), default_layers(24), default_layers(3)
    ((3, 5, 7, 11), (5, 7, 11), (7, 11, 15, 23), (0, 1, 1, 2))
    """
    return tuple(max(round((block + 1) * depth / 12) - 1, 0) for block in (3, 5, 7, 11)[-maps:])


def last_tokens(encoder: Encoder, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Raw tokens ``[B, prefix + N, width]`` after the last block, before any final norm or fusion, and their grid."""
    last = encoder.depth - 1
    encoded = encoder(image, layers=(last,))
    return encoded.layers[last], encoded.grid


def freeze_unused(encoder: Encoder, *, final: bool, pooled: bool = False) -> None:
    """Take parameters that a fine-tuned network does not read out of training.

    Without this, training on several processes would wait for their gradients.

    Args:
        encoder: its mask token is frozen in any case.
        final: whether the head reads the encoder's final output; if not, its final norm and the projections that
            are added before that (ConvMAE's multi-scale fusion) are frozen too.
        pooled: the head reads `pooled`, which trunks that take the mean of the patches take before their final norm.
    """
    for name in ("mask_token",) if final else ("mask_token", "norm", "stage1_output", "stage2_output"):
        part = getattr(encoder, name, None)
        if isinstance(part, nn.Module | nn.Parameter):
            part.requires_grad_(False)
    if pooled and getattr(encoder.config, "pool", "mean") == "mean":
        encoder.get_submodule("norm").requires_grad_(False)


def build_neck(
    encoder: Encoder, *, maps: int, layers: Sequence[int] | None = None
) -> tuple[nn.Module | None, tuple[int, ...], tuple[int, ...]]:
    """What turns an encoder's outputs into `maps` feature maps.

    A plain trunk gets a `FeaturePyramid` on the tokens of `layers`; a hierarchical one's own maps are used, with a
    `DownLevel` if one is missing.

    Returns:
        The module (None if the encoder's maps do as they are), the blocks it reads, the channels of the maps.

    Raises:
        ConfigError: layers that do not exist, or a hierarchical trunk of another number of maps.
    """
    native = _native_channels(encoder)
    if native:
        if len(native) == maps:
            return None, (), native
        if len(native) == maps - 1:
            level = DownLevel(native)
            return level, (), level.channels
        raise ConfigError(f"an encoder of {len(native)} maps for a decoder of {maps}", remedy="use decoder = 'linear'")
    layers = default_layers(encoder.depth, maps) if layers is None else tuple(layers)
    if len(layers) != maps or not all(0 <= layer < encoder.depth for layer in layers):
        raise ConfigError(
            f"layers = {list(layers)} for an encoder of {encoder.depth} blocks",
            remedy=f"give {maps} numbers from 0 to {encoder.depth - 1}",
        )
    pyramid = FeaturePyramid(encoder.width, maps=maps)
    return pyramid, layers, pyramid.channels


def feature_maps(encoder: Encoder, neck: nn.Module | None, layers: tuple[int, ...], image: Tensor) -> list[Tensor]:
    """Image ``[B, C, H, W]`` -> maps ``[B, C_i, h_i, w_i]``, finest first, by what `build_neck` returned."""
    encoded = encoder(image, layers=layers)
    if neck is None:
        return encoded.maps
    if layers:
        return neck([encoded.layers[layer] for layer in layers], encoded.grid)
    return neck(encoded.maps)


def check_formats(formats: Iterable[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """`formats`, or all `known` ones for None.

    Raises:
        ConfigError: one of them is not known.
    """
    formats = tuple(known if formats is None else formats)
    for name in formats:
        if name not in known:
            raise ConfigError(f"unknown output format {name!r}", remedy=nearest(name, known))
    return formats


@torch.no_grad()
def _native_channels(encoder: Encoder) -> tuple[int, ...]:
    """Channels of a hierarchical trunk's maps, from a trial run; () for a plain one."""
    training = encoder.training
    device = next(encoder.parameters()).device
    trial = torch.zeros(1, encoder.in_channels, encoder.image_size, encoder.image_size, device=device)
    maps = encoder.eval()(trial).maps
    encoder.train(training)
    return tuple(m.shape[1] for m in maps)
