"""Classification: one label an image, or any number of them.

From the mean of the patch tokens (USFM, Deblurring MIM), the class token, or what the encoder itself pools (EPT).
"""

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

from vesalius.errors import ConfigError, nearest
from vesalius.files import write_text
from vesalius.images import Image
from vesalius.nn.encoder import Encoder
from vesalius.tasks import metrics as scores
from vesalius.tasks.multilabel import SEPARATOR, binary_cross_entropy, named
from vesalius.tasks.multilabel import multilabel as multilabel_scores
from vesalius.tasks.trunk import check_formats, freeze_unused, last_tokens


class Classifier(nn.Module):
    """A head on an encoder.

    USFM and Deblurring MIM normalise the mean of the raw patch tokens (``fc_norm``, eps 1e-6) in place of the encoder's
    final norm.

    Args:
        encoder: the trunk.
        classes: names, one output each.
        pool: the mean of the patch tokens, the class token, or the encoder's own `pooled` output, which is what the
            published trunks give and what `head` can be trained on alone.
        fc_norm: normalise after pooling; without it the encoder's own final norm comes before. By default it is done,
            except with pool = "encoder", which is normalised already.
        head: a linear layer, or mlp3: three of them, the inner two as wide as the trunk, with ReLU between. The paper
            that compares with it (EPT) does not give its widths. [rec]
        multilabel: any number of classes an image, each decided by itself.
        label_smoothing: of the cross-entropy; by default 0.1 as in both papers, and none with multilabel.
        head_std: standard deviation of the last layer's initial weights: 0.02 * 0.001 in USFM, 2e-5 in Deblurring MIM,
            0.01 in EPT.
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
        pool: Literal["mean", "cls", "encoder"] = "mean",
        fc_norm: bool | None = None,
        head: Literal["linear", "mlp3"] = "linear",
        multilabel: bool = False,
        label_smoothing: float | None = None,
        head_std: float = 2e-5,
        head_dropout: float = 0.0,
    ):
        super().__init__()
        fc_norm = pool != "encoder" if fc_norm is None else fc_norm
        label_smoothing = (0.0 if multilabel else 0.1) if label_smoothing is None else label_smoothing
        _check(encoder, classes, pool, fc_norm, head, multilabel, label_smoothing)
        self.encoder, self.classes, self.multilabel = encoder, tuple(classes), multilabel
        self.pool, self.label_smoothing = pool, label_smoothing
        self.fc_norm = nn.LayerNorm(encoder.width, eps=1e-6) if fc_norm else None
        self.dropout = nn.Dropout(head_dropout)
        last = nn.Linear(encoder.width, len(classes))
        nn.init.trunc_normal_(last.weight, std=head_std)
        nn.init.zeros_(last.bias)
        self.head = last if head == "linear" else _mlp3(encoder.width, last)
        freeze_unused(encoder, final=not fc_norm, pooled=pool == "encoder")
        self.config: dict[str, Any] = {
            "classes": list(classes),
            "pool": pool,
            "fc_norm": fc_norm,
            "head": head,
            "multilabel": multilabel,
            "label_smoothing": label_smoothing,
            "head_std": head_std,
            "head_dropout": head_dropout,
        }

    def features(self, image: Tensor) -> Tensor:
        """Image ``[B, C, H, W]`` -> what the head reads, ``[B, width]``."""
        if self.fc_norm is None:
            encoded = self.encoder(image)
            if self.pool == "encoder":
                return encoded.pooled
            return encoded.patches.mean(1) if self.pool == "mean" else encoded.cls
        tokens, (rows, columns) = last_tokens(self.encoder, image)
        pooled = tokens[:, -rows * columns :].mean(1) if self.pool == "mean" else tokens[:, 0]
        return self.fc_norm(pooled)

    def forward(self, image: Tensor) -> Tensor:
        """Image ``[B, C, H, W]`` -> logits ``[B, K]``."""
        return self.head(self.dropout(self.features(image)))

    def loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy against ``batch["label"] [B]``.

        With several labels an image, binary cross-entropy against ``batch["label"] [B, K]``, summed over the classes
        that ``batch["annotated"] [B, K]`` (all without it) says were looked for.
        """
        if self.multilabel:
            return binary_cross_entropy(output, batch["label"], batch.get("annotated"))
        return F.cross_entropy(output, batch["label"], label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Image ``[B, C, H, W]`` -> probabilities ``[B, K]``, which sum to 1 unless several labels are possible."""
        logits = self(image).float()
        return logits.sigmoid() if self.multilabel else logits.softmax(-1)

    def metrics(
        self, probabilities: ArrayLike, labels: ArrayLike, annotated: ArrayLike | None = None
    ) -> dict[str, Any]:
        """See `vesalius.tasks.metrics.classification` and `vesalius.tasks.multilabel.multilabel`.

        Args:
            annotated: ``[N, K]``, with several labels an image.
        """
        if self.multilabel:
            return multilabel_scores(probabilities, labels, classes=self.classes, annotated=annotated)
        return scores.classification(probabilities, labels, classes=self.classes)

    def row(self, probabilities: ArrayLike, image: Image) -> dict[str, Any]:
        """One line of a table of predictions: path, frame, predicted, and a probability per class.

        Several predicted labels are joined by ``;``, and there may be none.
        """
        p = np.asarray(probabilities, np.float64)
        columns = {f"p_{name}": round(float(value), 6) for name, value in zip(self.classes, p, strict=True)}
        frame = "" if image.frame is None else image.frame
        predicted = named(p, self.classes) if self.multilabel else self.classes[int(p.argmax())]
        return {"path": str(image.path), "frame": frame, "predicted": predicted} | columns

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


def _check(
    encoder: Encoder,
    classes: Sequence[str],
    pool: str,
    fc_norm: bool,
    head: str,
    multilabel: bool,
    label_smoothing: float,
) -> None:
    """Refuse what cannot be built."""
    least = 1 if multilabel else 2
    if len(classes) < least:
        raise ConfigError(f"{len(classes)} class(es) to tell apart", remedy=f"label the images with at least {least}")
    if pool == "cls" and not getattr(encoder.config, "cls", False):
        raise ConfigError("pool = 'cls' but the encoder has no class token", remedy="use pool = 'mean'")
    if pool == "encoder" and fc_norm:
        raise ConfigError("fc_norm with pool = 'encoder', which the encoder has normalised", remedy="leave out fc_norm")
    for value, known in ((pool, ("mean", "cls", "encoder")), (head, ("linear", "mlp3"))):
        if value not in known:
            raise ConfigError(f"a classifier has no {value!r}", remedy=nearest(value, known))
    if multilabel and label_smoothing:
        raise ConfigError("label_smoothing with several labels an image", remedy="set label_smoothing = 0")
    if multilabel and any(SEPARATOR in name for name in classes):
        raise ConfigError(f"a class's name holds {SEPARATOR!r}, which joins several labels", remedy="rename it")


def _mlp3(width: int, last: nn.Linear) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)
