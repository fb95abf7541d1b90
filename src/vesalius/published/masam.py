"""MA-SAM's files (Chen 2024): what was trained, which stands on a SAM file that has to be there, too.

The authors' file is flat and holds the slice adapters under the names of their wrappers, the FacT factors, and all of
the prompt encoder and mask decoder. The tables of positions are in neither file at the size of the training: they are
resized from SAM's, so that the size has to be the one that the file was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Window
from vesalius.errors import WeightsError
from vesalius.files import atomic, sha256
from vesalius.nn.masam import MaSam, StackAdapters
from vesalius.nn.sam import SamConfig
from vesalius.published import sam
from vesalius.published.card import Card
from vesalius.published.checkpoint import fill, read_state
from vesalius.published.keys import Hints, Keys, Request
from vesalius.published.networks import Hollow

LICENCE = "Apache-2.0 for SAM's weights; the licence file of the authors' code is missing"
CITATION = (
    "Chen et al., MA-SAM: Modality-agnostic SAM adaptation for 3D medical image segmentation, Medical Image Analysis "
    "98:103310, 2024, doi:10.1016/j.media.2024.103310"
)
BLOCK = r"image_encoder\.ImageEncoderViT\.blocks\.(\d+)\.Block\."
SLOTS = {"": "pre_attn", "_2": "post_attn"}
"""The suffix of an adapter's names, and where it stands."""
LAYERS = {"norm": "norm", "linear_down": "down", "conv": "conv", "linear_up": "up"}
SHARED = {"image_encoder.FacTu.weight": "fact.u.weight", "image_encoder.FacTv.weight": "fact.v.weight"}
BTCV = VolumeContract(("CT",), orientation="SPL", intensity=Window(-200, 250), roi=(5, 512, 512))
"""What the published networks for abdominal CT read."""


def our_name(name: str) -> str | None:
    """The network's name of a tensor of the authors' file; None where there is none.

    >>> our_name("q_FacTs_003")
    'image_encoder.blocks.3.attn.qkv.q.weight'
    >>> our_name("image_encoder.ImageEncoderViT.blocks.7.Block.adapter_linear_down_2.weight")
    'image_encoder.blocks.7.post_attn.down.weight'
    """
    if name in SHARED:
        return SHARED[name]
    if name.startswith(("prompt_encoder.", "mask_decoder.")):
        return name
    if found := re.fullmatch(r"([qv])_FacTs_(\d+)", name):
        return f"image_encoder.blocks.{int(found[2])}.attn.qkv.{found[1]}.weight"
    if found := re.fullmatch(rf"{BLOCK}adapter_({'|'.join(LAYERS)})(_2)?\.(weight|bias)", name):
        return f"image_encoder.blocks.{found[1]}.{SLOTS[found[3] or '']}.{LAYERS[found[2]]}.{found[4]}"
    return None


def their_name(name: str) -> str:
    """The inverse of `our_name`.

    >>> their_name("image_encoder.blocks.7.post_attn.down.weight")
    'image_encoder.ImageEncoderViT.blocks.7.Block.adapter_linear_down_2.weight'
    """
    inverse = {ours: theirs for theirs, ours in SHARED.items()}
    if found := re.fullmatch(r"image_encoder\.blocks\.(\d+)\.attn\.qkv\.([qv])\.weight", name):
        return f"{found[2]}_FacTs_{int(found[1]):03d}"
    if found := re.fullmatch(r"image_encoder\.blocks\.(\d+)\.(pre_attn|post_attn)\.(\w+)\.(weight|bias)", name):
        suffix = next(suffix for suffix, slot in SLOTS.items() if slot == found[2])
        layer = next(theirs for theirs, ours in LAYERS.items() if ours == found[3])
        return f"image_encoder.ImageEncoderViT.blocks.{found[1]}.Block.adapter_{layer}{suffix}.{found[4]}"
    return inverse.get(name, name)


def network(trained: Keys, base: Keys, request: Request) -> dict[str, Any]:
    """Move the keys of both files to one network's names, those of the base into `trained`; return the architecture.

    Args:
        trained: of the authors' file.
        base: of SAM's, in any of its layouts.

    Raises:
        WeightsError: another layout.
    """
    what = sam.network(base, request)
    for name in list(trained.left):
        if (ours := our_name(name)) is not None:
            trained.move(name, ours)
    for name, tensor in base.ours.items():
        if name.startswith("image_encoder."):
            trained.ours[name] = tensor
        else:
            base.dropped[name] = "trained anew"
    trained.left.update(base.left)
    trained.dropped, trained.reshaped = base.dropped, base.reshaped
    return {"name": "masam", "config": {"sam": what["config"], **_shape(trained.ours)}}


def _shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Classes and adapters, from the shapes of what was trained."""
    tokens = state.get("mask_decoder.mask_tokens.weight")
    if tokens is None:
        raise WeightsError("has no mask tokens", remedy="give the file that MA-SAM's training wrote")
    down = state.get("image_encoder.blocks.0.pre_attn.down.weight")
    inner = state.get("fact.u.weight")
    adapters = StackAdapters(width=0 if down is None else len(down), rank=0 if inner is None else len(inner))
    return {"classes": len(tokens) - 1, "adapters": asdict(adapters)}


def build(config: Mapping[str, Any]) -> MaSam:
    """The network of a card's architecture, with fresh weights."""
    return MaSam(SamConfig.from_dict(config["sam"]), config["classes"], StackAdapters(**config["adapters"]))


def describe(network: MaSam) -> dict[str, Any]:
    """What a card says of a network: the inverse of `build`."""
    config = {"sam": asdict(network.config), "classes": network.classes, "adapters": asdict(network.adapters)}
    return {"name": "masam", "config": config}


def load_masam(
    path: str | Path, base: str | Path, *, image_size: int = 512, scale: float = 1.0, hints: Hints | None = None
) -> MaSam:
    """The network of the authors' file on the SAM that it was trained on.

    Args:
        path: the authors' file.
        base: SAM's, of the same size (ViT-H for the published ones), in any of its layouts.
        image_size: pixels of the side that the file was trained with.
        scale: of the FacT increments; the published trainings have 1.
        hints: what the keys of SAM's file do not tell.

    Returns:
        The network in eval mode, with its `Card` as ``card`` and what became of every tensor as ``report``.

    Raises:
        WeightsError: a file is unsafe or of another layout, or the two do not fit together.
    """
    trained, under = Keys(read_state(path)), Keys(read_state(base))
    try:
        what = network(trained, under, Request("promptable", image_size, hints=hints or Hints()))
        what["config"]["adapters"]["scale"] = scale
        with Hollow():
            module = build(what["config"])
        report = fill(
            module, trained.ours, unexpected=trained.left, dropped=trained.dropped, reshaped=trained.reshaped
        ).check()
    except WeightsError as error:
        raise WeightsError(
            f"does not load as MA-SAM on {Path(base).name}: {error.what}",
            path=path,
            remedy=error.remedy or "give the SAM file that it was trained on",
        ) from error
    module.card = Card(  # type: ignore[assignment]
        system="masam",
        part="segmentation",
        architecture=what,
        contract=replace(BTCV, roi=(5, image_size, image_size)),
        source=f"{Path(path).name} on {Path(base).name}",
        sha256=sha256(path),
        licence=LICENCE,
        citation=CITATION,
        notes=(str(report),),
    )
    module.report = report  # type: ignore[assignment]
    return module.eval()


def save_masam(network: MaSam, path: str | Path) -> Path:
    """Write what was trained as the authors' code reads it: a flat torch file, without SAM's image encoder."""
    state = {their_name(name): tensor.detach().cpu().clone() for name, tensor in network.adapted_state().items()}
    with atomic(Path(path)) as temporary:
        torch.save(state, temporary)
    return Path(path)
