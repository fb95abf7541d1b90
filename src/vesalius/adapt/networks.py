"""An adapted network as files: what was trained, with a card from which the whole is built again.

A fine-tuned network is stored whole. A method for few labels stores what it trained (prompts and a head are about a
megabyte) and the name and hash of the trunk that it stands on; loading finds that trunk, checks it, and puts the
trained parts into it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vesalius.adapt.ept import collapse
from vesalius.adapt.methods import CHANGES_TRUNK, install, settings
from vesalius.errors import WeightsError
from vesalius.files import atomic, output_folder, sha256, write_text
from vesalius.nn.encoder import Encoder
from vesalius.published.card import Card, Contract
from vesalius.published.checkpoint import read_state
from vesalius.published.load import CARD, FAMILIES, WEIGHTS, load_backbone, save_weights
from vesalius.published.networks import Hollow, architecture, build
from vesalius.tasks import TASKS
from vesalius.tasks import task as task_class


@dataclass(frozen=True)
class Trunk:
    """The network that a method was put into.

    Args:
        spec: where it comes from, as of `load_backbone`; files with their absolute path.
        sha256: of its file; '' for a network of timm.
        tensors: SHA-256 of its tensors.
        seed: that a random network of timm was made with.
        image_size: pixels of the side that it was built for.
        download: timm fetched its weights.
    """

    spec: str
    sha256: str
    tensors: str
    seed: int
    image_size: int
    download: bool = False

    @classmethod
    def of(cls, encoder: Encoder, spec: str, *, seed: int, download: bool = False) -> Trunk | None:
        """The trunk of an encoder in which nothing is installed yet; None where it could not be found again."""
        if spec.startswith("random:"):
            return None
        system, _, name = spec.partition(":")
        digest = ""
        if file := _file(spec):
            digest, where = sha256(file), Path(name if system in FAMILIES and name else spec).resolve()
            spec = f"{system}:{where}" if system in FAMILIES and name else str(where)
        return cls(spec, digest, tensor_hash(encoder), seed, encoder.image_size, download)

    def open(self, elsewhere: str | None = None) -> Encoder:
        """The encoder.

        Args:
            elsewhere: where it lies now.

        Raises:
            WeightsError: it is not there, or another one is.
        """
        spec = elsewhere or self.spec
        remedy = "say where it is now with --trunk"
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                encoder = load_backbone(spec, image_size=self.image_size, download=self.download)
        except WeightsError as error:
            raise WeightsError(f"its trunk cannot be loaded: {error.what}", path=spec, remedy=remedy) from error
        file = _file(spec)
        same = sha256(file) == self.sha256 if self.sha256 and file else tensor_hash(encoder) == self.tensors
        if not same:
            raise WeightsError("is not the trunk that was adapted (its hash differs)", path=spec, remedy=remedy)
        return encoder


def tensor_hash(encoder: Encoder, names: Iterable[str] | None = None) -> str:
    """SHA-256 of an encoder's tensors with their names.

    Args:
        names: those that count; with an adapted encoder, the trunk's own, by which it is seen to be untouched.
    """
    state = own_tensors(encoder.state_dict())
    digest = hashlib.sha256()
    for name in sorted(state if names is None else names):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def own_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same under a trunk's own names: PEFT moves a layer's tensors to its ``base_layer``."""
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items()}


def save_task(
    task: Any,
    path: str | Path,
    *,
    contract: Contract,
    backbone: Card,
    source: str,
    method: str = "full",
    config: Any = None,
    trunk: Trunk | None = None,
    notes: tuple[str, ...] = (),
) -> Card:
    """Write a task's network and its card, which keeps the licence and citation of the backbone that it grew from.

    Args:
        task: a head on an encoder.
        path: the run folder.
        contract: the pixels, or voxels, that it expects.
        backbone: the card of the backbone.
        source: where the backbone came from.
        method, config: what was installed in the encoder.
        trunk: what it was installed in; then only what is not the trunk's own is stored.
        notes: of the card.
    """
    what = {"encoder": architecture(task.encoder), **task.config}
    extra: dict[str, Any] = {}
    if method != "full":
        extra["method"] = {"name": method, "settings": asdict(config)}
    if trunk is not None:
        extra["trunk"] = asdict(trunk)
    card = replace(
        backbone,
        part=task.TASK,
        architecture={"name": getattr(task, "NAME", task.TASK), "config": what},
        contract=contract,
        source=source,
        sha256="",
        classes=tuple(getattr(task, "classes", ())),
        notes=notes,
        extra=extra,
    )
    if trunk is None:
        save_weights(task, path, card)
        return card
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in trained(task, method).items()}
    with atomic(Path(path) / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"system": card.system, "part": card.part, "licence": card.licence})
    card.save(Path(path) / CARD)
    return card


def trained(task: Any, method: str) -> dict[str, Tensor]:
    """The tensors of a task's network that its trunk does not have, or has with other values."""
    plain = _own_names(architecture(task.encoder))
    moved = {name for name, p in task.named_parameters() if p.requires_grad} if method in CHANGES_TRUNK else set()
    state = task.state_dict()
    return {name: state[name] for name in state if name in moved or name.replace(".base_layer.", ".") not in plain}


def load_task(path: str | Path, *, trunk: str | None = None) -> tuple[Any, Card]:
    """An adapted network in evaluation mode, and its card.

    Args:
        path: a run folder, or a ``.safetensors`` file with its card beside it.
        trunk: where the trunk lies now, if it was moved.

    Raises:
        WeightsError: there is none, it is a backbone without a task, the weights are not those of the card, or the
            trunk is not there.
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
    what = config.pop("encoder")
    encoder: Any = Trunk(**card.extra["trunk"]).open(trunk) if "trunk" in card.extra else build(what)
    if "method" in card.extra:
        method = card.extra["method"]
        install(encoder, method["name"], settings(method["name"], method["settings"]), generator=torch.Generator())
    module = task_class(name)(encoder, **config)
    own = _own_names(what) if "trunk" in card.extra else set()
    try:
        missing, unexpected = module.load_state_dict(read_state(weights), strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"does not fit its card ({reason})", path=weights, remedy="restore both files") from error
    wrong = [name for name in missing if name.replace(".base_layer.", ".") not in own] + unexpected
    if wrong:
        raise WeightsError(f"does not fit its card ({wrong[0]})", path=weights, remedy="restore both files")
    return module.eval(), card


def collapse_run(run: str | Path, out: str | Path, *, trunk: str | None = None) -> Path:
    """Fold the prompts of a run of `ept` into one logit a token, which gives the same outputs, and store it.

    Args:
        run: the run folder.
        out: folder of the smaller one.
        trunk: where the trunk lies now, if it was moved.

    Returns:
        The weights file.

    Raises:
        WeightsError: there is no run of ept.
        ConfigError: its prompts depend on the image (scaled_concat).
    """
    task, card = load_task(run, trunk=trunk)
    method = card.extra.get("method", {"name": "full"})
    if method["name"] != "ept":
        raise WeightsError(f"is a run of {method['name']}", path=run, remedy="give a run of ept")
    collapse(task.encoder)
    save_task(
        task,
        output_folder(out),
        contract=card.image_contract,
        backbone=card,
        source=f"{card.source}, collapsed",
        method="ept",
        config=settings("ept", {**method["settings"], "length": 1}),
        trunk=Trunk(**card.extra["trunk"]) if "trunk" in card.extra else None,
    )
    for name in ("config.yaml", "seen.json"):  # whom it learned from
        if (Path(run) / name).is_file():
            write_text(Path(out) / name, (Path(run) / name).read_text(encoding="utf-8"))
    return Path(out) / WEIGHTS


def _own_names(what: Mapping[str, Any]) -> set[str]:
    """The names that a trunk's tensors have within a task's network."""
    with Hollow():
        return {f"encoder.{name}" for name in build(what).state_dict()}


def _file(spec: str) -> Path | None:
    """The weights file that a backbone's name means, if it means one."""
    system, _, name = spec.partition(":")
    path = Path(name) if name and system in FAMILIES else Path(spec)
    return path if path.is_file() else path / WEIGHTS if (path / WEIGHTS).is_file() else None
