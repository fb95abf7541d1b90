"""Classification: one label an image, from the mean of the patch tokens (USFM, Deblurring MIM) or the class token."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.errors import ConfigError
from vesalius.files import write_text
from vesalius.images import Image
from vesalius.nn.encoder import Encoder
from vesalius.tasks import metrics as scores
from vesalius.tasks.trunk import check_formats, freeze_unused, last_tokens


class Classifier(nn.Module):
    """A linear head on an encoder.

    Both papers normalise the mean of the raw patch tokens (``fc_norm``, eps 1e-6) in place of the encoder's final norm.

    Args:
        encoder: the trunk.
        classes: names, one output each.
        pool: the mean of the patch tokens, or the class token.
        fc_norm: normalise after pooling; without it the encoder's own final norm comes before.
        label_smoothing: of the cross-entropy; 0.1 in both papers.
        head_std: standard deviation of the head's initial weights: 0.02 * 0.001 in USFM, 2e-5 in Deblurring MIM.
        head_dropout: before the head.

    >>> from vesalius.nn.vit import ViT, ViTConfig
    >>> encoder = ViT(ViTConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2))
    >>> classifier = Classifier(encoder, ("benign", "malignant"))
    >>> classifier.predict(torch.zeros(4, 3, 32, 32)).shape
    torch.Size([4, 2])
    """

    TASK = "classification"
    FORMATS = ("csv",)

    def __init__(
        self,
        encoder: Encoder,
        classes: Sequence[str],
        *,
        pool: Literal["mean", "cls"] = "mean",
        fc_norm: bool = True,
        label_smoothing: float = 0.1,
        head_std: float = 2e-5,
        head_dropout: float = 0.0,
    ):
        super().__init__()
        if len(classes) < 2:
            raise ConfigError(f"{len(classes)} class(es) to tell apart", remedy="label the images with at least 2")
        if pool == "cls" and not getattr(encoder.config, "cls", False):
            raise ConfigError("pool = 'cls' but the encoder has no class token", remedy="use pool = 'mean'")
        self.encoder, self.classes = encoder, tuple(classes)
        self.pool, self.label_smoothing = pool, label_smoothing
        self.fc_norm = nn.LayerNorm(encoder.width, eps=1e-6) if fc_norm else None
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(encoder.width, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)
        freeze_unused(encoder, final=not fc_norm)
        self.config: dict[str, Any] = {
            "classes": list(classes),
            "pool": pool,
            "fc_norm": fc_norm,
            "label_smoothing": label_smoothing,
            "head_std": head_std,
            "head_dropout": head_dropout,
        }

    def features(self, image: Tensor) -> Tensor:
        """Image ``[B, C, H, W]`` -> what the head reads, ``[B, width]``."""
        if self.fc_norm is None:
            encoded = self.encoder(image)
            return encoded.patches.mean(1) if self.pool == "mean" else encoded.cls
        tokens, (rows, columns) = last_tokens(self.encoder, image)
        pooled = tokens[:, -rows * columns :].mean(1) if self.pool == "mean" else tokens[:, 0]
        return self.fc_norm(pooled)

    def forward(self, image: Tensor) -> Tensor:
        """Image ``[B, C, H, W]`` -> logits ``[B, K]``."""
        return self.head(self.dropout(self.features(image)))

    def loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy against ``batch["label"] [B]``."""
        return F.cross_entropy(output, batch["label"], label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Image ``[B, C, H, W]`` -> probabilities ``[B, K]``."""
        return self(image).float().softmax(-1)

    def metrics(self, probabilities: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
        """See `vesalius.tasks.metrics.classification`."""
        return scores.classification(probabilities, labels, classes=self.classes)

    def row(self, probabilities: ArrayLike, image: Image) -> dict[str, Any]:
        """One line of a table of predictions: path, frame, predicted, and a probability per class."""
        p = np.asarray(probabilities, np.float64)
        named = {f"p_{name}": round(float(value), 6) for name, value in zip(self.classes, p, strict=True)}
        frame = "" if image.frame is None else image.frame
        return {"path": str(image.path), "frame": frame, "predicted": self.classes[int(p.argmax())]} | named

    def write(
        self,
        probabilities: ArrayLike,
        image: Image,
        folder: str | Path,
        stem: str,
        formats: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write ``stem.csv`` with one `row`.

        Args:
            probabilities: ``[K]`` of one image.
        """
        check_formats(formats, self.FORMATS)
        row = self.row(probabilities, image)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
        return [write_text(Path(folder) / f"{stem}.csv", text.getvalue())]
