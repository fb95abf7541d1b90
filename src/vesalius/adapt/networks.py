"""An adapted network as files: the weights with a card from which it is built again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vesalius.data.contract import InputContract
from vesalius.errors import WeightsError
from vesalius.published.card import Card
from vesalius.published.checkpoint import read_state
from vesalius.published.load import CARD, WEIGHTS, save_weights
from vesalius.published.networks import architecture, build
from vesalius.tasks import TASKS
from vesalius.tasks import task as task_class


def save_task(task: Any, path: str | Path, *, contract: InputContract, backbone: Card, source: str) -> Card:
    """Write a task's network and its card, which keeps the licence and citation of the backbone that it grew from.

    Args:
        task: a head on an encoder.
        path: the run folder.
        contract: the pixels that it expects.
        backbone: the card of the backbone.
        source: where the backbone came from.
    """
    config = {"encoder": architecture(task.encoder), **task.config}
    card = replace(
        backbone,
        part=task.TASK,
        architecture={"name": task.TASK, "config": config},
        contract=contract,
        source=source,
        sha256="",
        classes=tuple(getattr(task, "classes", ())),
        notes=(),
    )
    save_weights(task, path, card)
    return card


def load_task(path: str | Path) -> tuple[Any, Card]:
    """An adapted network in evaluation mode, and its card.

    Args:
        path: a run folder, or a ``.safetensors`` file with its card beside it.

    Raises:
        WeightsError: there is none, it is a backbone without a task, or the weights are not those of the card.
    """
    path = Path(path)
    weights = path / WEIGHTS if path.suffix != ".safetensors" else path
    beside = weights.with_name(CARD) if weights.name == WEIGHTS else weights.with_suffix(".json")
    if not weights.is_file():
        raise WeightsError("no weights here", path=path, remedy="give a finished run, or resume a broken-off one")
    card = Card.load(beside)
    name = card.architecture["name"]
    if name not in TASKS:
        raise WeightsError(f"holds a {card.part}, not a task", path=path, remedy="adapt it to a task first")
    config = dict(card.architecture["config"])
    module = task_class(name)(build(config.pop("encoder")), **config)
    try:
        module.load_state_dict(read_state(weights))
    except RuntimeError as error:
        what = str(error).splitlines()[0]
        raise WeightsError(f"does not fit its card ({what})", path=weights, remedy="restore both files") from error
    return module.eval(), card
