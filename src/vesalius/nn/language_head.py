"""The language-driven head (Liu 2023, 2024): a class's name and the volume together write a tiny network's weights.

Each class is a row of an embedding table and, from it, three 1x1x1 convolutions with a logit of their own. Only the
classes that are asked for are computed, and a new class is a new row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.errors import ConfigError, nearest
from vesalius.nn.volumes import VolumeFeatures, VolumeTrunk

CHUNK = 4  # classes whose hidden features, [B, CHUNK, hidden, voxels], are held at once
GROUPS = 16  # of the two group norms, or the most that divide the channels
Encoding = Literal["text", "learned"]
Controller = Literal["shared", "per_class"]


def parameter_count(hidden: int) -> int:
    """Numbers that describe one class's network ``hidden -> hidden -> hidden -> 1``.

    >>> parameter_count(8)
    153
    """
    return 2 * hidden**2 + hidden + 2 * hidden + 1


def dynamic_head(features: Tensor, parameters: Tensor) -> Tensor:
    """Apply one three-layer network a class, ReLU between the layers, to every voxel.

    Args:
        features: ``[B, C, D, H, W]``.
        parameters: ``[B, K, parameter_count(C)]``: weights ``[out, in]`` of the three layers, then their biases.

    Returns:
        Logits ``[B, K, D, H, W]``.

    >>> dynamic_head(torch.ones(1, 8, 2, 2, 2), torch.zeros(1, 5, 153)).shape
    torch.Size([1, 5, 2, 2, 2])
    """
    c = features.shape[1]
    voxels = features.flatten(2)
    parts = [_head(voxels, chunk, c) for chunk in parameters.split(CHUNK, dim=1)]
    return torch.cat(parts, dim=1).unflatten(2, features.shape[2:])


def _head(voxels: Tensor, parameters: Tensor, c: int) -> Tensor:
    """``[B, C, V]`` and ``[B, K, P]`` -> ``[B, K, V]``."""
    w1, w2, w3, b1, b2, b3 = parameters.split([c * c, c * c, c, c, c, 1], dim=2)
    x = torch.einsum("bkoc,bcv->bkov", w1.unflatten(2, (c, c)), voxels)
    x = F.relu(x + b1.unsqueeze(-1))
    x = F.relu(torch.einsum("bkoc,bkcv->bkov", w2.unflatten(2, (c, c)), x) + b2.unsqueeze(-1))
    return torch.einsum("bkc,bkcv->bkv", w3, x) + b3


class LanguageHead(nn.Module):
    """Class logits from a trunk's bottleneck and decoder, and class embeddings.

    With g the pooled bottleneck, t_k the embedding's projection and f the reduced decoder features, the parameters of
    class k are ``controller([g, t_k])`` and its logits those of `dynamic_head` on f.

    Args:
        bottleneck_channels, decoder_channels: of the trunk.
        classes: rows of the embedding table.
        embedding: its width; 512 for CLIP ViT-B/32.
        encoding: "text": fixed embeddings of the class names (a buffer; fill it); "learned": a table that trains.
        controller: "shared": one linear layer for all classes on projected embeddings; "per_class": two layers a class
            on raw ones, which a later class does not touch.
        width: of g, of t_k, and (for "per_class") half the hidden layer.
        hidden: channels of a class's own network.
    """

    embedding: Tensor

    def __init__(
        self,
        bottleneck_channels: int,
        decoder_channels: int,
        classes: int,
        *,
        embedding: int = 512,
        encoding: Encoding = "text",
        controller: Controller = "shared",
        width: int = 256,
        hidden: int = 8,
    ):
        super().__init__()
        self.encoding, self.controller_kind, self.hidden = encoding, controller, hidden
        self.image = nn.Sequential(
            nn.GroupNorm(math.gcd(GROUPS, bottleneck_channels), bottleneck_channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(bottleneck_channels, width),
        )
        self.voxel = nn.Sequential(
            nn.GroupNorm(math.gcd(GROUPS, decoder_channels), decoder_channels),
            nn.ReLU(),
            nn.Conv3d(decoder_channels, hidden, 1),
        )
        if encoding == "learned":
            embedding = width if controller == "shared" else embedding
            self.embedding = nn.Parameter(torch.randn(classes, embedding))
        else:
            self.register_buffer("embedding", torch.zeros(classes, embedding))
        projected = encoding == "text" and controller == "shared"
        self.text = nn.Sequential(nn.Linear(embedding, width), nn.ReLU()) if projected else nn.Identity()
        self.controller: nn.Linear | nn.ModuleList
        if controller == "shared":
            self.controller = nn.Linear(2 * width, parameter_count(hidden))
        else:
            self.controller = nn.ModuleList(self._own_controller(width + embedding, 2 * width) for _ in range(classes))

    def _own_controller(self, ins: int, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(ins, width), nn.ReLU(), nn.Linear(width, parameter_count(self.hidden)))

    def extend(self, embeddings: Tensor) -> None:
        """Append classes ``[K, embedding]``; what the old ones compute stays as it is.

        Raises:
            ConfigError: embeddings of another width.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding.shape[1]:
            raise ConfigError(
                f"embeddings of shape {list(embeddings.shape)} for a table of {self.embedding.shape[1]} columns",
                remedy="make them with the text encoder of the old ones",
            )
        table = torch.cat([self.embedding.detach(), embeddings.to(self.embedding)])
        if self.encoding == "learned":
            self.embedding = nn.Parameter(table)
        else:
            self.embedding = table
        if isinstance(self.controller, nn.ModuleList):
            first = self.controller.get_submodule("0.0")
            assert isinstance(first, nn.Linear)
            new = (self._own_controller(first.in_features, first.out_features) for _ in embeddings)
            self.controller.extend(part.to(first.weight) for part in new)

    def forward(self, features: VolumeFeatures, classes: Sequence[int] | None = None) -> Tensor:
        """Logits ``[B, K, D, H, W]`` of the rows `classes` (of all, if None), in the order in which they are given."""
        rows = list(range(len(self.embedding))) if classes is None else list(classes)
        image = self.image(features.bottleneck)
        text = self.text(self.embedding[rows])
        pairs = torch.cat(
            [image.unsqueeze(1).expand(-1, len(rows), -1), text.unsqueeze(0).expand(len(image), -1, -1)], dim=-1
        )
        if isinstance(self.controller, nn.ModuleList):
            parameters = torch.stack([self.controller[row](pairs[:, n]) for n, row in enumerate(rows)], dim=1)
        else:
            parameters = self.controller(pairs)
        return dynamic_head(self.voxel(features.decoder), parameters)


class LanguageDriven(nn.Module):
    """A trunk and a `LanguageHead`: the Universal Model's network.

    Args:
        encoder: a trunk with a decoder.
        classes: names of the outputs, in the order of the embedding table.
        embedding, encoding, controller, width, hidden: as of `LanguageHead`.

    >>> from vesalius.nn.unet3d import UNet3D, UNet3DConfig
    >>> network = LanguageDriven(UNet3D(UNet3DConfig(width=8)), classes=["liver", "spleen", "colon"])
    >>> volume = torch.rand(2, 1, 16, 16, 16)
    >>> network(volume).shape, network(volume, ["colon"]).shape
    (torch.Size([2, 3, 16, 16, 16]), torch.Size([2, 1, 16, 16, 16]))
    """

    def __init__(
        self,
        encoder: VolumeTrunk,
        *,
        classes: Sequence[str],
        embedding: int = 512,
        encoding: Encoding = "text",
        controller: Controller = "shared",
        width: int = 256,
        hidden: int = 8,
    ):
        super().__init__()
        self.encoder, self.classes = encoder, tuple(classes)
        self.head = LanguageHead(
            encoder.bottleneck_channels,
            encoder.decoder_channels,
            len(self.classes),
            embedding=embedding,
            encoding=encoding,
            controller=controller,
            width=width,
            hidden=hidden,
        )

    def rows(self, names: Sequence[str]) -> list[int]:
        """The rows of classes by name.

        Raises:
            ConfigError: a name that the network does not know.
        """
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise ConfigError(f"no class {unknown[0]!r}", remedy=nearest(unknown[0], self.classes))
        return [self.classes.index(name) for name in names]

    def extend(self, names: Sequence[str], embeddings: Tensor) -> None:
        """Append classes by name, with their embeddings ``[K, embedding]``.

        Raises:
            ConfigError: a name that is there already, or embeddings of another width or number.
        """
        known = [name for name in names if name in self.classes]
        if known:
            raise ConfigError(f"there is a class {known[0]!r} already", remedy="choose another name")
        if len(names) != len(embeddings):
            raise ConfigError(f"{len(embeddings)} embeddings for {len(names)} names", remedy="give one each")
        self.head.extend(embeddings)
        self.classes = (*self.classes, *names)

    def forward(self, volume: Tensor, classes: Sequence[str] | None = None) -> Tensor:
        """``[B, C, D, H, W]`` -> logits ``[B, K, D, H, W]`` of the named classes, or of all."""
        return self.head(self.encoder(volume), None if classes is None else self.rows(classes))
