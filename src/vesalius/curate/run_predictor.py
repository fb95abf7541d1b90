"""A Vesalius run as a member of the ensemble: its masks, and the probabilities that tell how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from vesalius.curate.masks import member_mask
from vesalius.curate.predictors import Bytes, Found, Predictor, meaning, structures, told, weights_file
from vesalius.data.class_tables import ClassTable
from vesalius.data.label_tables import CONNECTIVITY
from vesalius.data.volumes.contract import VolumeContract
from vesalius.errors import ConfigError
from vesalius.evaluation.sliding import sliding_window
from vesalius.evaluation.volume_tasks import VolumeTask, load_volume_task
from vesalius.images import Image
from vesalius.tasks.volume_language import LanguageSegmentation
from vesalius.tasks.volume_segmentation import VolumeSegmentation


def predict_with_run(predictor: Predictor, image: Image, table: ClassTable) -> Found:
    """What a run says of a volume; its network is loaded once a process.

    Memory: a byte a voxel (of the network's grid) and class beside the windows' own.

    Raises:
        VesaliusError: the run does not segment volumes, or the image is not what it reads.
    """
    task, contract = _task(predictor.run, weights_file(predictor.run).stat().st_mtime_ns)
    meant = [meaning(predictor, name, table) for name in task.classes]
    known = {name: number for number, name in enumerate(meant) if name in table.names}
    placed = contract.place(image)
    limits = contract.limits(placed)
    stored = sliding_window(
        task,
        torch.from_numpy(placed),
        roi=contract.roi,
        prepare=lambda part: contract.normalise(part, limits),
        decide=partial(_labels_and_softmax, task) if isinstance(task, VolumeSegmentation) else _sigmoid,
        device=next(task.parameters()).device,
        title=None,
    )
    if isinstance(task, LanguageSegmentation):
        cleaned = task.masks(stored > 127)
        masks = {name: contract.restore(cleaned[number], image).astype(bool) for name, number in known.items()}
        soft = {name: _smooth(stored[number], contract, image) for name, number in known.items()}
        return Found(tuple(known), masks=masks, probabilities=soft)
    labels = told(contract.restore(stored[0], image), ["", *meant], image, table)
    soft = {name: _smooth(stored[number + 1], contract, image) for name, number in known.items() if len(stored) > 1}
    return Found(structures(meant, table), labels, probabilities=_with_tumours(soft, labels, table))


@lru_cache(4)
def _task(run: str, changed: int) -> tuple[VolumeTask, VolumeContract]:
    """A run's task, kept for the next case; `changed` is when its weights were written."""
    task, card = load_volume_task(run)
    if not isinstance(card.contract, VolumeContract):
        raise ConfigError(f"{run} does not segment volumes", remedy="give a run of volumes")
    return task.to("cuda" if torch.cuda.is_available() else "cpu"), card.contract


def _sigmoid(scores: Tensor) -> Tensor:
    """Logits ``[J, d, H, W]`` -> floor(255 x p) uint8."""
    return (scores.sigmoid() * 255).to(torch.uint8)


def _labels_and_softmax(task: VolumeSegmentation, scores: Tensor) -> Tensor:
    """Logits ``[K + 1, d, H, W]`` -> uint8: the label map, then floor(255 x p) of each class unless they overlap."""
    labels = task.decide(scores)[None]
    return labels if task.regions else torch.cat([labels, (scores.softmax(0)[1:] * 255).to(torch.uint8)])


def _smooth(stored: Bytes, contract: VolumeContract, image: Image) -> Bytes:
    """Probabilities on the network's voxels -> on the image's, in between where voxels differ in size."""
    if contract.spacing is None:
        return contract.restore(stored, image)
    return (contract.restore(stored.astype(np.float32), image)).astype(np.uint8)


def _with_tumours(soft: Mapping[str, Bytes], labels: Bytes, table: ClassTable) -> dict[str, Bytes]:
    """Of exclusive classes: a tumour's probability is its organ's, too, as its voxels are (`member_mask`)."""
    found = dict(soft)
    for entry in table.classes:
        if entry.kind == "organ" or not entry.counts or entry.name not in soft:
            continue
        for organ in filter(found.__contains__, entry.organs):
            near = ndimage.binary_dilation(member_mask(table, labels, organ), CONNECTIVITY)
            total = found[organ].astype(np.uint16) + np.where(near, soft[entry.name], 0)
            found[organ] = np.minimum(total, 255).astype(np.uint8)
    return found
