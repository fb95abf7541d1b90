"""A Segment Anything that volumes are adapted with, as files: where the base is, and what was trained on top of it.

A run of MA-SAM or 3DSAM-adapter stores what it trained, and the name and hash of the base that it stands on: the
adapters of a ViT-H are a seventh of it. A tensor belongs to the base if nothing trained it and it is the base's own,
bit for bit. On a base that is no file (random weights) the whole network is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from vesalius.adapt.sam_shapes import STEPS, pretrain_shapes
from vesalius.errors import ConfigError, WeightsError, nearest
from vesalius.files import atomic, sha256
from vesalius.nn.masam import MaSam, StackAdapters
from vesalius.nn.sam import SAM_PRESETS, SamConfig
from vesalius.nn.sam3d import Sam3D, Sam3DShape
from vesalius.nn.sam_decoder import Sam
from vesalius.published import sam as published
from vesalius.published.card import Card
from vesalius.published.checkpoint import read_state
from vesalius.published.load import CARD, WEIGHTS, load, load_weights, save_weights
from vesalius.tasks.prompted_volumes import PromptedVolumeSegmentation
from vesalius.tasks.stacks import StackSegmentation

FRESH = ("random", "shapes")
"""What may stand before a preset's name: untrained, and trained for a minute on random shapes (`sam_shapes`)."""
TINY_WIDTH = 256
"""Narrower bases are adapted with the "tiny" preset."""


@dataclass(frozen=True)
class SamBase:
    """A base that can be found again.

    Args:
        spec: its file, or a folder with its weights and card; absolute.
        sha256: of the weights.
    """

    spec: str
    sha256: str

    def open(self, elsewhere: str | None = None) -> Sam:
        """The base.

        Args:
            elsewhere: where it lies now.

        Raises:
            WeightsError: it is not there, or another one is.
        """
        spec, remedy = elsewhere or self.spec, "say where it is now with --trunk"
        file = _weights(Path(spec))
        if not file.is_file():
            raise WeightsError("the base that was adapted is not there", path=spec, remedy=remedy)
        if sha256(file) != self.sha256:
            raise WeightsError("is not the base that was adapted (its hash differs)", path=spec, remedy=remedy)
        return _load(Path(spec))[0]


def open_base(spec: str, *, beside: Path, seed: int = 0, progress: bool = True) -> tuple[Sam, Card, SamBase | None]:
    """A SAM, its card, and how it is found again (None for random weights).

    Args:
        spec: an authors' file (or transformers' layout of it), a ``.safetensors`` file or folder with its card;
            ``random:PRESET`` for fresh weights, ``shapes:PRESET`` for ones that have learnt to segment random shapes,
            with a preset of `vesalius.nn.sam.SAM_PRESETS`.
        beside: folder in which the weights of shapes are kept.
        seed: of fresh weights, and of shapes.
        progress: show a bar.

    Raises:
        WeightsError: there is no SAM.
        ConfigError: no such preset.

    >>> sam, card, base = open_base("random:sam_tiny", beside=Path("."))
    >>> sam.config.width, card.source, base
    (96, 'random weights', None)
    """
    kind, _, name = spec.partition(":")
    if kind not in FRESH:
        sam, card = _load(Path(spec))
        return sam, card, SamBase(str(Path(spec).resolve()), sha256(_weights(Path(spec))))
    if name not in SAM_PRESETS:
        raise ConfigError(f"there is no SAM called {name!r}", remedy=nearest(name, SAM_PRESETS))
    kept = beside / f"{name}-shapes-{seed}.safetensors"
    if kind == "random" or not kept.is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sam = Sam(SAM_PRESETS[name])
        if kind == "random":
            return sam.eval(), _card(sam, "random weights"), None
        pretrain_shapes(sam, seed=seed, progress=progress)
        save_weights(sam, kept, _card(sam, f"trained {STEPS} steps on random shapes, seed {seed}"))
    return open_base(str(kept), beside=beside)


def preset_of(base: str) -> str:
    """The preset for a base as the command line names it: "tiny" for the small one, without reading weights.

    >>> preset_of("shapes:sam_tiny"), preset_of("sam_vit_b_01ec64.pth")
    ('tiny', 'paper')
    """
    kind, _, name = base.partition(":")
    if kind in FRESH and name in SAM_PRESETS:
        return "tiny" if SAM_PRESETS[name].width < TINY_WIDTH else "paper"
    card = _beside(Path(base))
    small = card.is_file() and Card.load(card).architecture["config"].get("width", TINY_WIDTH) < TINY_WIDTH
    return "tiny" if small else "paper"


def stack_segmentation(sam: Sam, config: Mapping[str, Any]) -> StackSegmentation:
    """MA-SAM on a base; `config` is that of the task, with ``adapters``."""
    options = dict(config)
    network = MaSam.on(sam, len(options["classes"]), StackAdapters(**options.pop("adapters")))
    return StackSegmentation(network, **options)


def click_segmentation(sam: Sam, config: Mapping[str, Any]) -> PromptedVolumeSegmentation:
    """3DSAM-adapter on a base; `config` is that of the task, with ``network``."""
    options = dict(config)
    network = Sam3D.on(sam.image_encoder, Sam3DShape.from_dict(options.pop("network")))
    return PromptedVolumeSegmentation(network, **options)


BUILD: dict[str, Callable[[Sam, Mapping[str, Any]], Any]] = {
    StackSegmentation.NAME: stack_segmentation,
    PromptedVolumeSegmentation.NAME: click_segmentation,
}
"""A task's name -> the task on a base, from the configuration in its card."""


def own_tensors(sam: Sam) -> dict[str, Tensor]:
    """A copy of a base's tensors, to tell afterwards what is still its own."""
    return {name: tensor.detach().clone() for name, tensor in sam.state_dict().items()}


def save_adapted(
    task: Any,
    path: str | Path,
    *,
    architecture: Mapping[str, Any],
    contract: Any,
    card: Card,
    base: SamBase | None,
    own: Mapping[str, Tensor],
    system: str,
    citation: str,
    source: str,
) -> Card:
    """Write what was trained, and the card that the whole is built from again.

    Args:
        task: the network.
        path: the run folder.
        architecture: the configuration that `BUILD` takes.
        contract: the volumes that it reads.
        card: of the base.
        base: how that is found again; None to store everything.
        own: tensors of the base before the training.
        system, citation: of the adaptation.
        source: what it was trained on.
    """
    made = replace(
        card,
        system=system,
        part=task.TASK,
        architecture={"name": task.NAME, "config": {"sam": card.architecture["config"], **architecture}},
        contract=contract,
        source=source,
        sha256="",
        citation=f"{citation}; {card.citation}",
        classes=tuple(task.classes),
        extra={} if base is None else {"base": asdict(base)},
    )
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in task.state_dict().items()
        if base is None or name in trained or not _is_own(name, tensor, own)
    }
    with atomic(Path(path) / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"system": system, "part": task.TASK, "licence": card.licence})
    made.save(Path(path) / CARD)
    return made


def load_adapted(path: str | Path, *, trunk: str | None = None) -> tuple[Any, Card]:
    """What `save_adapted` wrote, in evaluation mode, and its card.

    Args:
        path: the run folder, or a ``.safetensors`` file with its card.
        trunk: where the base lies now, if it was moved.

    Raises:
        WeightsError: there is none, the base is not there, or the weights are not those of the card.
    """
    place, beside = Path(path), _beside(Path(path))
    weights = _weights(place)
    if not weights.is_file():
        raise WeightsError("no weights here", path=path, remedy="give a finished run, or resume a broken-off one")
    card = Card.load(beside)
    name, config = card.architecture["name"], dict(card.architecture["config"])
    if name not in BUILD:
        raise WeightsError(f"holds a {name}, which stands on no SAM", path=path)
    shape = SamConfig.from_dict(config.pop("sam"))
    sam = SamBase(**card.extra["base"]).open(trunk) if "base" in card.extra else Sam(shape)
    own = own_tensors(sam) if "base" in card.extra else {}
    task = BUILD[name](sam, config)
    try:
        missing, unexpected = task.load_state_dict(read_state(weights), strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"does not fit its card ({reason})", path=weights, remedy="restore both files") from error
    state = task.state_dict()
    wrong = [*unexpected, *(name for name in missing if not _is_own(name, state[name], own))]
    if wrong:
        raise WeightsError(f"does not fit its card ({wrong[0]})", path=weights, remedy="restore both files")
    return task.eval(), card


def is_adapted(card: Card) -> bool:
    """Whether a card is of a task that stands on a SAM."""
    return card.architecture.get("name") in BUILD


def _load(path: Path) -> tuple[Sam, Card]:
    """A SAM from an authors' file, or from one with a card."""
    sam = load_weights(path) if _beside(path).is_file() else load("sam", path, part="promptable")
    if not isinstance(sam, Sam):
        raise WeightsError("is no whole SAM", path=path, remedy="give a file such as sam_vit_b_01ec64.pth")
    return sam, cast(Card, sam.card)


def _card(sam: Sam, source: str) -> Card:
    what = {"name": "sam", "config": asdict(sam.config)}
    return Card("sam", "promptable", what, published.contract(sam.config.image_size, 3), source=source)


def _weights(place: Path) -> Path:
    return place / WEIGHTS if place.is_dir() else place


def _beside(place: Path) -> Path:
    """Where the card of a weights file, or of a folder, would be."""
    if place.suffix == ".safetensors" and place.name != WEIGHTS:
        return place.with_suffix(".json")
    return (place if place.suffix != ".safetensors" else place.parent) / CARD


def _is_own(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> bool:
    """Whether a tensor of a task is one of the base's, under a name that ends in the base's."""
    parts = name.split(".")
    for start in range(len(parts)):
        ending = ".".join(parts[start:])
        for known in (ending, f"image_encoder.{ending}"):
            if known in own:
                return torch.equal(tensor.cpu(), own[known].cpu())
    return False
