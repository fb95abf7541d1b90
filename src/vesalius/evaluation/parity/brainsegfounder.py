"""BrainSegFounder: the pre-training network and its tasks, the fine-tuned Swin UNETR, regions and schedules."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vesalius.data.datasets import generator
from vesalius.evaluation.parity.common import Adapter, Outputs, image_of, tensor
from vesalius.nn.optim import linear_warmup_cosine, warmup_cosine
from vesalius.nn.swin_ssl import SSLOutputs
from vesalius.pretrain.brainsegfounder import draw_boxes, paste, ssl_loss, turn
from vesalius.published.fixture import Fixture
from vesalius.published.load import load
from vesalius.tasks.brats import labels, regions


def pretraining(fixture: Fixture, file: Path) -> Outputs:
    """The three heads and the encoder's maps."""
    network = load("brainsegfounder", file, part="pretrain")
    out, maps = network(image_of(fixture)), network.encoder(image_of(fixture)).maps
    return {
        "rot": out.rotation,
        "contrastive": out.contrastive,
        "recon": out.reconstruction,
        "bottleneck": maps[-1],
        **{f"stage{n}": level for n, level in enumerate(maps)},
    }


def segmentation(fixture: Fixture, file: Path) -> Outputs:
    """The fine-tuned network and its encoder's maps."""
    network = load("brainsegfounder", file, part="segmentation")
    features = network.encoder(image_of(fixture))
    maps = {f"stage{n}": level for n, level in enumerate(features.maps)}
    return {"logits": network.head(features.decoder), "bottleneck": features.maps[-1], **maps}


def loss(fixture: Fixture, file: Path) -> Outputs:
    """The weighted sum of the three tasks and its terms."""
    c = fixture.config
    outputs = SSLOutputs(
        rotation=tensor(fixture, "rot_logits"),
        contrastive=torch.cat([tensor(fixture, "z1"), tensor(fixture, "z2")]),
        reconstruction=tensor(fixture, "recon"),
    )
    batch = {"turns": tensor(fixture, "rot_target"), "target": tensor(fixture, "image")}
    terms = ssl_loss(outputs, batch, temperature=c["temperature"], weights=tuple(c["weights"]))
    return {**terms, "total": terms["loss"], "inpainting": terms["reconstruction"]}


def rotation(fixture: Fixture, file: Path) -> Outputs:
    """Quarter turns."""
    return {"rotated": turn(image_of(fixture), tensor(fixture, "k"))}


def cutout(fixture: Fixture, file: Path) -> Outputs:
    """Boxes of another volume."""
    return {"image": paste(image_of(fixture), tensor(fixture, "boxes"), tensor(fixture, "replacement"))}


def cutout_statistics(fixture: Fixture, file: Path) -> Outputs:
    """How much one pass of our own draws replaces, in how many boxes, of which edges."""
    c, outputs = fixture.config, {}
    for text, draws in c["draws"].items():
        side = int(text)
        draw = partial(draw_boxes, (side,) * 3, share=c["max_drop"], low=c["tolerance"], high=c["max_block"])
        passes = [draw(generator=generator(0, n)) for n in range(draws)]
        empty = torch.zeros(1, side, side, side, dtype=torch.bool)
        shares = np.array([float(paste(empty, boxes, ~empty).sum()) / side**3 for boxes in passes])
        counts = np.array([len(boxes) for boxes in passes])
        every = torch.cat(passes)
        whole = every[:, 0::2] <= side - int(c["max_block"] * side)  # starts from which no box reaches the border
        edges = (every[:, 1::2] - every[:, 0::2])[whole].double()
        outputs[f"fraction_{side}"] = np.array([shares.mean(), shares.std(), *np.quantile(shares, (0.05, 0.5, 0.95))])
        outputs[f"boxes_{side}"] = np.array([counts.mean(), counts.std()])
        outputs[f"edge_{side}"] = np.array([edges.min(), edges.max(), edges.mean()])
    return outputs


def brats_labels(fixture: Fixture, file: Path) -> Outputs:
    """Labels to regions, and predicted regions to labels."""
    return {"channels": regions(fixture.inputs["label"]), "label_map": labels(fixture.inputs["prob"])}


def schedule(fixture: Fixture, file: Path) -> Outputs:
    """The learning rate of every step or epoch, with the numbers that the fixture's text gives."""
    outputs = {}
    for name, kept in fixture.outputs.items():
        found = re.match(r"base ([\d.e-]+), warmup (\d+)\D+(\d+)", fixture.config[name])
        assert found is not None
        lr, warmup, total = float(found[1]), int(found[2]), int(found[3])
        rate = partial(warmup_cosine if "step" in name else linear_warmup_cosine, total=total, warmup=warmup, lr=lr)
        # The published cosine goes on after its end and rises again, as its mirror image.
        outputs[name] = np.array([rate(min(n, 2 * total - n)) for n in range(len(kept["value"]))])
    return outputs


FAMILIES: dict[str, Adapter] = {
    "brainsegfounder_ssl": pretraining,
    "brainsegfounder_atlas_ssl": pretraining,
    "brainsegfounder_seg": segmentation,
    "brainsegfounder_atlas": segmentation,
    "brainsegfounder_loss": loss,
    "brainsegfounder_rotation": rotation,
    "brainsegfounder_cutout": cutout,
    "brainsegfounder_cutout_stats": cutout_statistics,
    "brainsegfounder_brats_labels": brats_labels,
    "brainsegfounder_lr": schedule,
}
