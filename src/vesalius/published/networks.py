"""The published networks as wholes: an encoder, and what stands on it. A card's architecture rebuilds each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from vesalius.errors import WeightsError, nearest
from vesalius.nn.convvit import ConvViT, ConvViTConfig
from vesalius.nn.dints import DiNTS, DiNTSConfig
from vesalius.nn.dynunet import DynUNet, DynUNetConfig
from vesalius.nn.encoder import Encoder
from vesalius.nn.language_head import LanguageDriven
from vesalius.nn.mae import MAEDecoder
from vesalius.nn.prompts import describe_prompts, restore_prompts
from vesalius.nn.pyramid import DownLevel, FeaturePyramid
from vesalius.nn.sam import SamConfig, SamViT
from vesalius.nn.sam3d import Sam3D, Sam3DShape
from vesalius.nn.sam_decoder import Sam
from vesalius.nn.segvit import ATMHead, Stage
from vesalius.nn.swin_ssl import SwinSSL
from vesalius.nn.swin_unetr import SwinConfig, SwinEncoder, SwinUNETR
from vesalius.nn.transunet import TransUNet, TransUNetConfig
from vesalius.nn.unet3d import NestedUNet3D, NestedUNet3DConfig, SegResNet, SegResNetConfig, UNet3D, UNet3DConfig
from vesalius.nn.unetpp import UNetPlusPlus
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.nn.volumes import VolumeSegmenter, VolumeTrunk

Architecture = Mapping[str, Any]
"""``{"name": ..., "config": {...}}``, plain values; config["encoder"] is that of the encoder, if it stands on one."""


class Classifier(nn.Module):
    """Class scores from one vector an image: LayerNorm of the mean raw patch token, or `pooled` as it is."""

    def __init__(self, encoder: Encoder, *, classes: int, norm: bool):
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.width, eps=encoder.config.eps) if norm else None
        self.head = nn.Linear(encoder.width, classes)

    def features(self, image: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, width]``: what the head reads."""
        last = self.encoder.depth - 1
        out = self.encoder(image, layers=(last,) if self.norm is not None else ())
        if self.norm is None:
            return out.pooled
        patches = out.grid[0] * out.grid[1]
        return self.norm(out.layers[last][:, -patches:].mean(1))

    def forward(self, image: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> logits ``[B, classes]``."""
        return self.head(self.features(image))


class SimMIM(nn.Module):
    """An encoder, and a 1x1 convolution with pixel shuffle that restores the image (Xie 2022)."""

    def __init__(self, encoder: Encoder, *, channels: int):
        super().__init__()
        self.encoder = encoder
        patch = encoder.patch_size
        self.decoder = nn.Sequential(nn.Conv2d(encoder.width, patch**2 * channels, 1), nn.PixelShuffle(patch))

    def forward(self, image: Tensor, replace: Tensor | None = None) -> Tensor:
        """``[B, C, H, W]``, and where mask tokens stand in ``[B, N]`` bool -> restored ``[B, C, H, W]``."""
        out = self.encoder(image, replace=replace)
        return self.decoder(out.patches.transpose(1, 2).unflatten(2, out.grid))


class MaskedAutoencoder(nn.Module):
    """An encoder of the kept patches and MAE's decoder of all of them."""

    def __init__(self, encoder: Encoder, *, decoder: Mapping[str, Any]):
        super().__init__()
        self.encoder = encoder
        options = {**decoder, "grid": tuple(decoder["grid"])}
        self.decoder = MAEDecoder(encoder_width=encoder.width, patch_size=encoder.patch_size, **options)

    def forward(self, image: Tensor, keep: Tensor, restore: Tensor) -> Tensor:
        """``[B, C, H, W]``, with keep and restore of `masking.random_keep` -> patches ``[B, N, patch^2 * C]``."""
        out = self.encoder(image, keep=keep)
        return self.decoder(out.patches, out.cls, restore, out.grid)


class _OnMaps(nn.Module):
    """An encoder and its maps at strides 4, 8, 16 and 32 (plain transformer: of the given blocks), finest first."""

    neck: FeaturePyramid | DownLevel

    def __init__(self, encoder: Encoder, *, blocks: tuple[int, ...] = (), maps: int = 4):
        super().__init__()
        self.encoder, self.blocks = encoder, tuple(blocks)
        if isinstance(encoder, ConvViT):
            self.neck = DownLevel(encoder.config.widths)
        else:
            self.neck = FeaturePyramid(encoder.width, maps=maps)

    def maps(self, image: Tensor) -> list[Tensor]:
        """``[B, C, H, W]`` -> maps ``[B, D, h, w]``."""
        out = self.encoder(image, layers=self.blocks)
        return self.neck([out.layers[b] for b in self.blocks], out.grid) if self.blocks else self.neck(out.maps)


class Pyramid(_OnMaps):
    """What a segmentation head receives: the maps."""

    def forward(self, image: Tensor) -> list[Tensor]:
        """``[B, C, H, W]`` -> maps ``[B, D, h, w]``."""
        return self.maps(image)


class SegViT(_OnMaps):
    """USFM's attention-to-mask segmentation network."""

    def __init__(self, encoder: Encoder, *, blocks: tuple[int, ...], classes: int, width: int, heads: int, layers: int):
        super().__init__(encoder, blocks=blocks, maps=3)
        self.head = ATMHead(self.neck.channels, classes, width=width, heads=heads, layers=layers)

    def forward(self, image: Tensor) -> list[Stage]:
        """``[B, C, H, W]`` -> stages, the last one's masks at the image's size."""
        return self.head(self.maps(image), (image.shape[-2], image.shape[-1]))


class UNetPP(_OnMaps):
    """Deblurring MIM's segmentation network: logits at half the image's size."""

    def __init__(self, encoder: Encoder, *, blocks: tuple[int, ...], classes: int, widths: tuple[int, ...]):
        super().__init__(encoder, blocks=blocks)
        self.head = UNetPlusPlus(self.neck.channels, classes, widths=tuple(widths))

    def forward(self, image: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> logits ``[B, classes, H / 2, W / 2]``."""
        return self.head(self.maps(image))


def prompted(config: Mapping[str, Any]) -> Encoder:
    """An encoder that holds prompts: config["encoder"] is the trunk's architecture, config["prompts"] what is in it."""
    encoder = build(config["encoder"])
    assert isinstance(encoder, Encoder)
    restore_prompts(encoder, config["prompts"])
    encoder.built_with_prompts = True  # type: ignore[assignment]  # a plain flag, for `architecture`
    return encoder


ENCODERS: dict[str, Callable[[Mapping[str, Any]], Encoder]] = {
    "vit": lambda config: ViT(ViTConfig(**config)),
    "convvit": lambda config: ConvViT(ConvViTConfig(**config)),
    "prompted": prompted,
}


def _swin(config: Mapping[str, Any]) -> SwinConfig:
    """Without what was once part of it, and says nothing about weights."""
    return SwinConfig(**{name: value for name, value in config.items() if name != "checkpointing"})


VOLUME_TRUNKS: dict[str, Callable[[Mapping[str, Any]], VolumeTrunk]] = {
    "swin": lambda config: SwinEncoder(_swin(config)),
    "swin_unetr": lambda config: SwinUNETR(_swin(config)),
    "unet3d": lambda config: UNet3D(UNet3DConfig(**config)),
    "nested_unet3d": lambda config: NestedUNet3D(NestedUNet3DConfig(**config)),
    "segresnet": lambda config: SegResNet(SegResNetConfig(**config)),
    "dints": lambda config: DiNTS(DiNTSConfig(**config)),
    "dynunet": lambda config: DynUNet(DynUNetConfig(**config)),
}
PROMPTABLE: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "sam": lambda config: Sam(SamConfig.from_dict(config)),
    "sam_encoder": lambda config: SamViT(SamConfig.from_dict(config)),
    "sam3d": lambda config: Sam3D(Sam3DShape.from_dict(config)),
}
SLICES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "transunet": lambda config: TransUNet(TransUNetConfig(**config)),
}
"""Networks of slices that are segmentations by themselves."""
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "classifier": Classifier,
    "simmim": SimMIM,
    "mae": MaskedAutoencoder,
    "pyramid": Pyramid,
    "segvit": SegViT,
    "unetpp": UNetPP,
    "swin_ssl": SwinSSL,
    "volume_segmenter": VolumeSegmenter,
    "language_driven": LanguageDriven,
}
KNOWN = (*ENCODERS, *VOLUME_TRUNKS, *PROMPTABLE, *SLICES, *NETWORKS)


KINDS: dict[type[nn.Module], str] = {
    ConvViT: "convvit",
    ViT: "vit",
    SwinEncoder: "swin",
    SwinUNETR: "swin_unetr",
    UNet3D: "unet3d",
    NestedUNet3D: "nested_unet3d",
    SegResNet: "segresnet",
    DiNTS: "dints",
    DynUNet: "dynunet",
    TransUNet: "transunet",
}
"""The trunks by their class."""


def architecture(encoder: Encoder | VolumeTrunk | TransUNet) -> dict[str, Any]:
    """What a card says of an encoder, as it was built: what a method puts in later is the method's own to describe.

    >>> from vesalius.nn.vit import ViT, ViTConfig
    >>> architecture(ViT(ViTConfig(image_size=16, width=8, depth=1, heads=1)))["name"]
    'vit'
    """
    name = next(name for kind, name in KINDS.items() if isinstance(encoder, kind))
    what = {"name": name, "config": asdict(encoder.config)}
    if not isinstance(encoder, Encoder) or not hasattr(encoder, "built_with_prompts"):
        return what
    return {"name": "prompted", "config": {"encoder": what, "prompts": describe_prompts(encoder)}}


def trunk_config(what: Architecture) -> Mapping[str, Any]:
    """The configuration of an encoder's architecture, without its prompts."""
    return what["config"]["encoder"]["config"] if what["name"] == "prompted" else what["config"]


def build(what: Architecture) -> nn.Module:
    """The network of an `Architecture`, with fresh weights.

    Raises:
        WeightsError: a name or an option that is not known.
    """
    name, config = what["name"], dict(what["config"])
    try:
        if name in ENCODERS:
            return ENCODERS[name](config)
        if name in VOLUME_TRUNKS:
            return VOLUME_TRUNKS[name](config)
        if name in PROMPTABLE:
            return PROMPTABLE[name](config)
        if name in SLICES:
            return SLICES[name](config)
        if name in NETWORKS:
            return NETWORKS[name](build(config.pop("encoder")), **config)
    except TypeError as error:
        raise WeightsError(f"the architecture {name!r} does not have these options ({error})") from error
    raise WeightsError(f"unknown architecture {name!r}", remedy=nearest(name, KNOWN))


class Hollow(torch.overrides.TorchFunctionMode):
    """Within this context new layers hold no values, so that building a network to be loaded costs nothing.

    What a constructor computes (position tables, indices) is computed as usual.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))
