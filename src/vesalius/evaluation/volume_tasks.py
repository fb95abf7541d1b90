"""A run, or an authors' file that was converted, as a task that segments volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from vesalius.adapt.networks import load_task
from vesalius.adapt.sam_files import is_adapted, load_adapted
from vesalius.data.abdomen import NAMES, TEMPLATE
from vesalius.data.class_tables import ClassTable
from vesalius.errors import WeightsError
from vesalius.nn.language_head import LanguageDriven
from vesalius.nn.sam3d import Sam3D
from vesalius.nn.volumes import VolumeSegmenter
from vesalius.published.card import Card
from vesalius.published.load import load_weights
from vesalius.tasks.prompted_volumes import PromptedVolumeSegmentation
from vesalius.tasks.stacks import StackSegmentation
from vesalius.tasks.volume_language import LanguageSegmentation
from vesalius.tasks.volume_segmentation import BRATS, Regions, VolumeSegmentation

PUBLISHED: dict[int, tuple[tuple[str, ...], Regions]] = {
    1: (("stroke lesion",), {"stroke lesion": ("stroke lesion",)}),
    3: (("necrotic core", "oedema", "enhancing tumour"), BRATS),
}
"""Outputs of BrainSegFounder's fine-tuned files -> classes and regions: ATLAS and BraTS."""
CLICKED = ("tumor",)
"""What 3DSAM-adapter's files segment; each was trained on one organ's, which it does not name."""

OnSam = StackSegmentation | PromptedVolumeSegmentation
VolumeTask = VolumeSegmentation | LanguageSegmentation | OnSam


def load_volume_task(path: str | Path, *, trunk: str | None = None) -> tuple[VolumeTask, Card]:
    """A segmentation of volumes in evaluation mode, and its card: a run's, or an authors' file that was converted.

    Args:
        path: of the run, or the weights file.
        trunk: where the trunk of a run that stores only what it trained lies now, if it was moved.

    Raises:
        WeightsError: it is something else.
    """
    place = Path(path)
    beside = place.with_suffix(".json") if place.suffix == ".safetensors" else place / "card.json"
    if place.name == "weights.safetensors":
        beside = place.with_name("card.json")
    card = Card.load(beside)
    if is_adapted(card):
        return load_adapted(path, trunk=trunk)
    if card.architecture["name"] == "sam3d":
        network = cast(Sam3D, load_weights(path))
        card = replace(card, classes=card.classes or CLICKED)
        return PromptedVolumeSegmentation(network, card.classes).eval(), card
    if card.architecture["name"] == "language_driven":
        language = cast(LanguageDriven, load_weights(path))
        known = {"classes": list(language.classes)} if language.classes != NAMES else TEMPLATE.to_dict()
        table = ClassTable.from_dict(card.extra.get("classes", known))
        return LanguageSegmentation(language, table).eval(), card
    if card.architecture["name"] != "volume_segmenter":
        return cast("tuple[VolumeSegmentation, Card]", load_task(path))
    segmenter = cast(VolumeSegmenter, load_weights(path))
    outputs = segmenter.head.out_channels
    if card.system != "brainsegfounder" or outputs not in PUBLISHED:
        raise WeightsError(f"nothing says what its {outputs} outputs are", path=path, remedy="adapt it to your classes")
    classes, regions = PUBLISHED[outputs]
    task = VolumeSegmentation(segmenter.encoder, classes, regions=regions)
    task.head = segmenter.head
    return task.eval(), replace(card, classes=classes)
