"""The plain vision transformer of timm."""

from __future__ import annotations

from pathlib import Path

import torch

from vesalius.evaluation.parity.common import Adapter, Outputs, hints_of, image_of
from vesalius.published.fixture import Fixture
from vesalius.published.load import load


def classifier(fixture: Fixture, file: Path) -> Outputs:
    """Timm's classifier on the class token."""
    c = fixture.config
    network = load("vit", file, part="classification", image_size=c.get("img_size"), hints=hints_of(c))
    wanted = {name: int(name.split("_")[1]) for name in fixture.outputs if name.startswith("patches_")}
    out = network.encoder(image_of(fixture), layers=tuple(wanted.values()))
    return {
        "tokens": torch.cat([out.cls.unsqueeze(1), out.patches], dim=1),
        "logits": network.head(out.pooled),
        **{name: out.layers[block][:, 1:] for name, block in wanted.items()},
    }


FAMILIES: dict[str, Adapter] = {"vit_b16": classifier}
