"""From a weights file to a network that is known to hold it, and back to a file that says what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
from safetensors.torch import save_file
from timm.layers import Attention
from torch import Tensor, nn

from vesalius.errors import ConfigError, WeightsError, nearest
from vesalius.files import atomic, sha256
from vesalius.nn.encoder import Encoder
from vesalius.published import brainsegfounder, deblurring, ept, sam, sam3d, transunet, universal, usfm, vit
from vesalius.published.card import Card, Contract
from vesalius.published.checkpoint import LoadReport, fill, read_state
from vesalius.published.keys import Hints, Keys, Request
from vesalius.published.networks import (
    ENCODERS,
    PROMPTABLE,
    SLICES,
    VOLUME_TRUNKS,
    Architecture,
    Hollow,
    build,
    trunk_config,
)

WEIGHTS, CARD = "weights.safetensors", "card.json"
OWN = "vesalius.published.load.load_weights reads runs and converted files"
FLAT = "give weights for 2-D images, or take it with vesalius.published.volumes.load_volume_trunk"


@dataclass(frozen=True)
class Family:
    """The files of one system: its parts, its key map, and what its card says.

    `contract` takes the image size and channels of a 2-D network, the part and channels of a 3-D one.
    """

    parts: tuple[str, ...]
    network: Callable[[Keys, Request], dict[str, Any]]
    contract: Callable[..., Contract]
    licence: str
    citation: str


FAMILIES = {
    "usfm": Family(usfm.PARTS, usfm.network, usfm.contract, usfm.LICENCE, usfm.CITATION),
    "deblurring": Family(
        deblurring.PARTS, deblurring.network, deblurring.contract, deblurring.LICENCE, deblurring.CITATION
    ),
    "mae": Family(
        deblurring.PARTS, deblurring.network, deblurring.mae_contract, deblurring.LICENCE, deblurring.MAE_CITATION
    ),
    "brainsegfounder": Family(
        brainsegfounder.PARTS,
        brainsegfounder.network,
        brainsegfounder.contract,
        brainsegfounder.LICENCE,
        brainsegfounder.CITATION,
    ),
    "universal": Family(universal.PARTS, universal.network, universal.contract, universal.LICENCE, universal.CITATION),
    "vit": Family(vit.PARTS, vit.network, vit.contract, vit.LICENCE, vit.CITATION),
    "ept": Family(ept.PARTS, ept.network, usfm.imagenet, ept.LICENCE, ept.CITATION),
    "sam": Family(sam.PARTS, sam.network, sam.contract, sam.LICENCE, sam.CITATION),
    **{
        size: Family(sam.PARTS, partial(sam.network, preset=size), sam.contract, sam.LICENCE, sam.CITATION)
        for size in sam.PUBLISHED
    },
    "sam3d": Family(sam3d.PARTS, sam3d.network, sam3d.contract, sam3d.LICENCE, sam3d.CITATION),
    "transunet": Family(transunet.PARTS, transunet.network, transunet.contract, transunet.LICENCE, transunet.CITATION),
}


def load(
    system: str,
    path: str | Path,
    *,
    part: str | None = None,
    image_size: int | None = None,
    in_channels: int | None = None,
    as_published: bool = False,
    hints: Hints | None = None,
) -> nn.Module:
    """Load an authors' file; the network's shape is read from its keys.

    Args:
        system: whose file it is: usfm, deblurring, mae (vanilla MAE and ConvMAE), vit (timm's), ept (mmcls's ViT,
            plain or with the prompts of EPT or VPT), brainsegfounder, universal, or sam (of any size; sam_vit_b,
            sam_vit_l and sam_vit_h refuse another).
        path: a torch or safetensors file.
        part: None for the system's first: backbone (an `Encoder` as downstream networks use it), encoder (as
            pre-training left it: final norm, shared table, stage fusion), pretrain (with the decoder),
            classification, pyramid or segmentation; of 3-D systems a `VolumeTrunk` instead of an `Encoder`. Of SAM
            promptable (the whole network) or encoder.
        image_size: pixels of the side; position tables are interpolated from the file's.
        in_channels: 1 to sum the RGB filters, which on a grey image equals repeating it.
        as_published: resize relative tables with the published code's transposition.
        hints: what a file's keys cannot tell, where it differs from the published networks.

    Returns:
        The network in eval mode, with its `Card` as ``card`` and what became of every tensor as ``report``.

    Raises:
        WeightsError: the file is unsafe, of another layout, or holds weights that would not be used.

    >>> import tempfile, torch
    >>> from timm.models.vision_transformer import VisionTransformer
    >>> file = Path(tempfile.mkdtemp()) / "vit.pth"
    >>> published = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=3)
    >>> torch.save(published.state_dict(), file)
    >>> backbone = load("vit", file, image_size=48, in_channels=1)
    >>> backbone(torch.zeros(1, 1, 48, 48)).pooled.shape, backbone.report.share
    (torch.Size([1, 64]), 1.0)
    """
    if system not in FAMILIES:
        raise ConfigError(f"unknown system {system!r}", remedy=nearest(system, FAMILIES))
    family = FAMILIES[system]
    part = part or family.parts[0]
    if part not in family.parts:
        raise ConfigError(f"{system} has no part {part!r}", remedy=nearest(part, family.parts))
    if Path(path).is_dir():
        raise WeightsError("is a folder, not an authors' file", path=path, remedy=OWN)
    state = read_state(path)
    keys = Keys(state)
    try:
        what = family.network(keys, Request(part, image_size, in_channels, as_published, hints or Hints()))
        module, report = _assemble(what, keys)
    except WeightsError as error:
        fits = [name for name in recognise(state) if name != f"{system} {part}"]
        remedy = f"its keys fit {', '.join(fits)}" if fits else error.remedy
        raise WeightsError(f"does not load as {system}, part {part}: {error.what}", path=path, remedy=remedy) from error
    shape = trunk_config(encoder_of(what))
    if image_size is not None and "image_size" not in shape:
        raise ConfigError(f"image_size = {image_size} for a 3-D network, which takes any", remedy="leave it out")
    digest = sha256(path)
    notes = [str(report), *(f"Changed on the way: {reason}" for reason in sorted(set(report.reshaped.values())))]
    if system == "usfm":
        same = "is" if digest == usfm.RELEASED_SHA256 else "is not"
        notes.append(f"By its SHA-256 this {same} the released USFM_latest.pth")
    card = Card(
        system=system,
        part=part,
        architecture=what,
        contract=family.contract(shape.get("image_size", part), shape["in_channels"]),
        source=Path(path).name,
        sha256=digest,
        licence=family.licence,
        citation=family.citation,
        classes=tuple(names) if isinstance(names := what["config"].get("classes"), list) else (),
        notes=tuple(notes),
    )
    return _finish(module, card, report)


def load_backbone(
    spec: str | Path,
    *,
    part: str = "backbone",
    image_size: int | None = None,
    in_channels: int | None = None,
    download: bool = False,
) -> Encoder:
    """A 2-D encoder from wherever it is; `vesalius.published.volumes.load_volume_trunk` does the same in 3-D.

    Args:
        spec: a run folder or a ``.safetensors`` file with its card; ``system:file`` for an authors' file; or a timm
            name (``timm:vit_small_patch16_224``), whose weights are random unless they are downloaded.
        part: of an authors' file: "backbone", or "encoder" to continue pre-training.
        image_size, in_channels: as of `load`; None for the file's own.
        download: let timm fetch the pre-trained weights of its name.

    Raises:
        WeightsError: nothing is there, or it has no encoder.
    """
    text = str(spec)
    system, _, file = text.partition(":")
    if file and system in FAMILIES:
        module = load(system, file, part=part, image_size=image_size, in_channels=in_channels)
    elif (file and system == "timm") or timm.is_model(text):
        module = _from_timm(file or text, image_size, in_channels, download)
    elif Path(text).exists():
        module = _from_card(Path(text), image_size, in_channels)
    else:
        raise WeightsError(
            "no such run folder, weights file or timm model",
            path=text,
            remedy=f"give a run folder, a .safetensors file, or SYSTEM:FILE with SYSTEM one of {', '.join(FAMILIES)}",
        )
    if not isinstance(module, Encoder):
        raise WeightsError("is a network that reads volumes", path=text, remedy=FLAT)
    return module


def load_weights(path: str | Path) -> nn.Module:
    """The whole network that `save_weights` wrote, with its card and report."""
    weights, card = _with_card(Path(path))
    module, report = _assemble(card.architecture, _renamed(read_state(weights)))
    return _finish(module, card, report)


def save_weights(module: nn.Module, path: str | Path, card: Card) -> Path:
    """Write a network's tensors as safetensors, and its card beside them.

    Args:
        path: a folder (weights.safetensors and card.json in it), or a ``.safetensors`` file (NAME.json beside it).

    Returns:
        The weights file.
    """
    weights, beside = _places(Path(path))
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    with atomic(weights) as temporary:
        save_file(tensors, temporary, metadata={"system": card.system, "part": card.part, "licence": card.licence})
    card.save(beside)
    return weights


def convert(
    system: str,
    path: str | Path,
    out: str | Path,
    *,
    part: str | None = None,
    image_size: int | None = None,
    in_channels: int | None = None,
    as_published: bool = False,
) -> Path:
    """Write an authors' file as safetensors with a card (source, SHA-256, licence, input contract).

    Args:
        system, path, part, image_size, in_channels, as_published: as of `load`.
        out: a folder (weights.safetensors and card.json in it), or a ``.safetensors`` file.

    Returns:
        The weights file; `load_backbone` and `load_weights` read it.

    Raises:
        WeightsError: as of `load`.

    >>> import tempfile, torch
    >>> from timm.models.vision_transformer import VisionTransformer
    >>> folder = Path(tempfile.mkdtemp())
    >>> published = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=0)
    >>> torch.save(published.state_dict(), folder / "vit.pth")
    >>> convert("vit", folder / "vit.pth", folder / "converted").name, load_backbone(folder / "converted").depth
    ('weights.safetensors', 1)
    """
    module = load(system, path, part=part, image_size=image_size, in_channels=in_channels, as_published=as_published)
    return save_weights(module, out, cast(Card, module.card))


def recognise(state: Mapping[str, Tensor]) -> list[str]:
    """The systems and parts whose key map accounts for every tensor, as "system part"."""
    fits = []
    for system, family in FAMILIES.items():
        for part in family.parts:
            keys = Keys(state)
            with suppress(WeightsError, ConfigError):  # a shape that the network cannot have is no fit either
                family.network(keys, Request(part))
                if not keys.left:
                    fits.append(f"{system} {part}")
    return fits


def encoder_of(what: Mapping[str, Any]) -> Mapping[str, Any]:
    """The encoder's architecture within a network's."""
    while what["name"] not in {*ENCODERS, *VOLUME_TRUNKS, *PROMPTABLE, *SLICES}:
        if "encoder" not in what.get("config", {}):
            raise WeightsError(f"the network {what['name']!r} has no encoder that can be taken out")
        what = what["config"]["encoder"]
    return what


def _assemble(what: Mapping[str, Any], keys: Keys) -> tuple[nn.Module, LoadReport]:
    """Build `what` without values, fill it, and check that nothing was lost."""
    with Hollow():
        module = build(what)
    report = fill(
        module, keys.ours, start=keys.start, unexpected=keys.left, dropped=keys.dropped, reshaped=keys.reshaped
    )
    return module, report.check()


def _finish(module: nn.Module, card: Card, report: LoadReport) -> nn.Module:
    module.card, module.report = card, report  # type: ignore[assignment]
    return module.eval()


def _renamed(state: Mapping[str, Tensor]) -> Keys:
    """Tensors that have the network's names already."""
    keys = Keys({})
    keys.ours = dict(state)
    return keys


def _places(path: Path) -> tuple[Path, Path]:
    """Where the weights and their card are."""
    if path.suffix == ".safetensors":
        beside = path.with_name(CARD) if path.name == WEIGHTS else path.with_suffix(".json")
        return path, beside
    return path / WEIGHTS, path / CARD


def _with_card(path: Path) -> tuple[Path, Card]:
    weights, beside = _places(path)
    if not weights.is_file():
        raise WeightsError(
            "no weights.safetensors here",
            path=path,
            remedy="give a finished run, or resume the one that was broken off",
        )
    return weights, Card.load(beside)


def _from_card(path: Path, image_size: int | None, in_channels: int | None) -> nn.Module:
    """The encoder of a run or a converted file; another size or channel count goes through the key map."""
    weights, card = _with_card(path)
    if "trunk" in card.extra:
        raise WeightsError(
            f"holds what {card.extra['method']['name']} trained, without the trunk",
            path=path,
            remedy=f"start from the trunk, {card.extra['trunk']['spec']}",
        )
    what = encoder_of(card.architecture)
    if what["name"] in VOLUME_TRUNKS:
        raise WeightsError(f"holds a {card.part} that reads volumes", path=path, remedy=FLAT)
    state = read_state(weights)
    prefix = "encoder." if any(name.startswith("encoder.") for name in state) else ""
    keys = Keys({})
    for name, tensor in state.items():
        if name.startswith(prefix):
            keys.ours[name.removeprefix(prefix)] = tensor
        else:
            keys.dropped[name] = "not part of the encoder"
    config = trunk_config(what)
    have = config["in_channels"], config["image_size"]
    want = in_channels or have[0], image_size or have[1]
    if want != have:
        changed = {**config, "in_channels": want[0], "image_size": want[1]}
        _refit(keys, config, changed)
        what = _with_config(what, changed)
    module, report = _assemble(what, keys)
    size, channels = want[1], want[0]
    contract = replace(card.image_contract, size=size)
    if channels != card.image_contract.channels:
        mean, std = (_channels(values, channels) for values in (card.image_contract.mean, card.image_contract.std))
        contract = replace(contract, channels=channels, mean=mean, std=std)
    card = replace(card, part="backbone", architecture=dict(what), contract=contract, classes=())
    return _finish(module, card, report)


def _with_config(what: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder's architecture with another configuration of its trunk; prompts keep the grid that they are for."""
    if what["name"] != "prompted":
        return {"name": what["name"], "config": config}
    return {
        "name": "prompted",
        "config": {**what["config"], "encoder": _with_config(what["config"]["encoder"], config)},
    }


def _refit(keys: Keys, have: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Carry an encoder's own tensors from the trunk's configuration to one of another image size or channel count."""
    patch = have.get("patch_size", 16)
    grids = tuple((c["image_size"] // patch,) * 2 for c in (have, config))
    source = Keys(keys.ours)
    for name in list(source.left):
        if name in ("patch_embed.proj.weight", "patch_embed1.proj.weight"):
            vit.embedding(source, name, name, config["in_channels"])
        elif name == "pos_embed":
            vit.absolute(source, name, name, grids)  # type: ignore[arg-type]
        elif name.startswith("relative.") and name.endswith("table"):
            vit.table_to(source, name, name, grids, Request("backbone"))  # type: ignore[arg-type]
        else:
            source.move(name, name)
    keys.ours, keys.reshaped = source.ours, source.reshaped


def _channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return (sum(values) / len(values),) if channels == 1 else values * channels


def _from_timm(name: str, image_size: int | None, in_channels: int | None, download: bool) -> nn.Module:
    """A plain vision transformer of timm: random, with weights from a file as ``vit:FILE``, or downloaded if asked."""
    if not timm.is_model(name):
        raise WeightsError(
            f"unknown timm model {name!r}", remedy=nearest(name, timm.list_models("vit_*", module="vision_transformer"))
        )
    try:
        model = timm.create_model(name, pretrained=download)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"timm's {name} cannot be downloaded ({reason})",
            remedy="give its file as vit:FILE, or leave out --download",
        ) from error
    heads = next((m.num_heads for m in model.modules() if isinstance(m, Attention)), None)
    keys = Keys(model.state_dict())
    try:
        what = vit.network(keys, Request("backbone", image_size, in_channels, hints=Hints(heads=heads)))
        module, report = _assemble(what, keys)
    except WeightsError as error:
        raise WeightsError(
            f"timm's {name} is not a plain vision transformer ({error.what})",
            remedy="choose one such as vit_small_patch16_224",
        ) from error
    shape = what["config"]
    contract = vit.contract(shape["image_size"], shape["in_channels"])
    trained_on: Any = model.pretrained_cfg
    if download and contract.channels == len(trained_on["mean"]):
        contract = replace(contract, mean=tuple(trained_on["mean"]), std=tuple(trained_on["std"]))
    card = Card(
        system="vit",
        part="backbone",
        architecture=what,
        contract=contract,
        source=f"timm {timm.__version__} {name}, {'pre-trained' if download else 'random'} weights",
        licence=vit.LICENCE,
        citation=vit.CITATION,
    )
    return _finish(module, card, report)
