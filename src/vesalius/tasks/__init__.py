"""Tasks: a head on an encoder, its loss, its scores, and how a prediction is written.

Every task is an `nn.Module` with the same face: ``forward(image)``, ``loss(output, batch)``, ``predict(image)``,
``metrics(predictions, truths)``, ``write(prediction, image, folder, stem)``, and a ``config`` from which
``task(name)(encoder, **config)`` builds it again.
"""

from __future__ import annotations

from importlib import import_module

from torch import nn

from vesalius.errors import ConfigError, nearest

TASKS = {
    "classification": "vesalius.tasks.classification:Classifier",
    "segmentation": "vesalius.tasks.segmentation:Segmenter",
    "enhancement": "vesalius.tasks.enhancement:Enhancer",
    "volume_segmentation": "vesalius.tasks.volume_segmentation:VolumeSegmentation",
    "stack_segmentation": "vesalius.tasks.stacks:StackSegmentation",
    "slice_segmentation": "vesalius.tasks.slices:SliceSegmentation",
    "prompted_volume_segmentation": "vesalius.tasks.prompted_volumes:PromptedVolumeSegmentation",
}


def task(name: str) -> type[nn.Module]:
    """The class of a task.

    Raises:
        ConfigError: there is none of that name; the message has the nearest.

    >>> task("segmentation").__name__
    'Segmenter'
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}", remedy=nearest(name, TASKS))
    module, attribute = TASKS[name].split(":")
    return getattr(import_module(module), attribute)
