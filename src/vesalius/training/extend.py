"""The verb `extend`: a run of the Universal Model learns a class more, and says what became of those that it had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from vesalius.data.abdomen import TEMPLATE
from vesalius.data.class_tables import ClassEntry, ClassTable
from vesalius.data.progress import track
from vesalius.errors import ConfigError, VesaliusError, WeightsError
from vesalius.files import write_text
from vesalius.nn.class_text import HASHED, class_embeddings
from vesalius.nn.language_head import LanguageDriven
from vesalius.pretrain.extension import Extension, changed_tensors, old_classes_only
from vesalius.pretrain.universal import PRESETS, UniversalConfig, score_case
from vesalius.published.card import Card
from vesalius.published.load import load_weights, save_weights
from vesalius.tasks.volume_dice import VolumeDice
from vesalius.training.backbones import override
from vesalius.training.common import Data, cache_folder, open_training, read_splits, say, train_options
from vesalius.training.loop import fit, load_best
from vesalius.training.provenance import read_seen, write_seen
from vesalius.training.runs import RunFolder, is_first_process

EPOCHS, WARMUP = 101, 15
"""Of the published extension."""


def extend_run(
    run: str | Path,
    *,
    class_: str,
    data: Data,
    out: str | Path,
    organs: Sequence[str] = (),
    classes: str | Path | None = None,
    text: str | None = None,
    pseudo_labels: bool = False,
    old_data: Sequence[str | Path] = (),
    lr: float | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **training: Any,
) -> dict[str, Any]:
    """Add a class to a run of the Universal Model, and compare the old classes' Dice before and after.

    Only the new class's head is trained, so that the others stay as they are to the last bit; that needs a run with a
    controller a class (--model.controller per_class). With pseudo_labels all weights are trained, as published.

    Args:
        run: the run folder, or a weights file with its card.
        class_: name of the new class, as the masks or the class table call it.
        data: one or several tables (.parquet) whose masks have it.
        out: the new run's folder.
        organs: that it lies in, if it is a tumour.
        classes: a class table (classes.yaml) that describes it and what datasets call it; the old classes stay.
        text: where its embedding comes from, as of pretrain; by default hashed if the old ones are.
        pseudo_labels: train all weights, with the old network's guesses where old classes are not labelled.
        old_data: tables on whose validation cases the old classes are scored, too; by default those of the run.
        lr: peak learning rate; by default the run's.
        cache: folder of prepared volumes; by default "cache" beside the run's folder.
        resume: continue this run.
        progress: show a progress bar.
        training: fields of `TrainConfig`: steps, batch_size, seed, precision, devices, ...

    Returns:
        step, loss, val, history of the training curve, the run folder's path, and old: class -> before, after, cases.

    Raises:
        VesaliusError: the run is not a Universal Model, has the class already or one controller for all, or no
            training case has the class.
    """
    network, card = _open(run)
    config = _config(run, card)
    lr = config.lr if lr is None else lr
    config = replace(config, lr=lr, epochs=EPOCHS, warmup=WARMUP, controller=network.head.controller_kind)
    known = ClassTable.from_dict(card.extra["classes"]) if "classes" in card.extra else TEMPLATE
    if known.names != network.classes:
        raise WeightsError(
            "its card does not describe its classes", path=run, remedy="give a run of pretrain universal"
        )
    table = _with_class(known, class_, organs, classes)
    entry = table.classes[-1]
    text = text or (HASHED if card.extra.get("text", "").startswith(HASHED) else None)
    if text is None:
        raise ConfigError(f"no embedding of {class_!r}", remedy="say with --text where it comes from, as for the run")
    embeddings, note = class_embeddings(text, [entry.name], table.prompts[-1:])
    torch.manual_seed(training.get("seed") or 0)
    module = Extension(config, network, table=table, embeddings=embeddings, pseudo_labels=pseudo_labels)
    rows, train, val = read_splits(data, task="segmentation")
    train = _with_labels(table, train, entry.name)
    options = train_options(
        training, images=config.volumes, epochs=0 if config.steps else EPOCHS, steps=config.steps, train=len(train)
    )
    old_tables = _old_tables(run, old_data)
    record = {
        "verb": "extend",
        "system": card.system,
        "from": str(Path(run).resolve()),
        "class": entry.name,
        "model": asdict(config),
        "pseudo_labels": pseudo_labels,
        "classes": table.to_dict(),
        "text": note,
        "old_data": old_tables,
    }
    folder = open_training(out, record, rows, options, data, resume=resume)
    if is_first_process():
        write_seen(folder, train=train, val=val, earlier=read_seen(RunFolder(Path(run))))
    place = cache_folder(cache, folder)
    held = None if val.is_empty() else module.samples(val, place, workers=options.workers)
    summary = fit(
        module,
        module.samples(train, place, workers=options.workers),
        folder,
        options,
        val=held,
        monitor=module.monitor,
        resume=resume,
        progress=progress,
    )
    old: dict[str, dict[str, float]] = {}
    if is_first_process():
        load_best(module, folder.path)
        touched = changed_tensors(module.old, module.network)
        if touched and not pseudo_labels:
            raise VesaliusError(f"{touched[0]} was changed", path=folder.path, remedy="please report this as a bug")
        sets = [] if held is None else [held]
        sets += [
            module.samples(part, place, workers=options.workers)
            for part in _old_validation(old_tables, named=bool(old_data))
        ]
        old = _compare(module, sets)
        write_text(folder.path / "extension.json", json.dumps({"class": entry.name, "old": old}, indent=2) + "\n")
        how = "all weights with pseudo labels" if pseudo_labels else "its own head alone"
        save_weights(
            module.network,
            folder.path,
            replace(
                card,
                architecture=module.architecture,
                source=f"{card.source}; {entry.name}: {how}, on {len(train)} volumes, {options.steps} steps",
                classes=table.names,
                notes=(*card.notes, f"Embedding of {entry.name}: {note}"),
                extra={**card.extra, "classes": table.to_dict()},
            ),
        )
        say(folder, summary)
        _show(old)
    return {**summary, "run": str(folder.path), "old": old}


def _open(run: str | Path) -> tuple[LanguageDriven, Card]:
    network = load_weights(run)
    if not isinstance(network, LanguageDriven):
        raise WeightsError("is not a Universal Model", path=run, remedy="give a run of pretrain universal")
    return network, cast(Card, network.card)


def _config(run: str | Path, card: Card) -> UniversalConfig:
    """That of the run, or the published one with the card's volumes."""
    folder = RunFolder(Path(run))
    if folder.config.is_file():
        return cast(UniversalConfig, override(PRESETS["paper"], folder.read_config()["model"]))
    return PRESETS["paper"]


def _with_class(known: ClassTable, name: str, organs: Sequence[str], path: str | Path | None) -> ClassTable:
    """The table with a class more: described in another one, or by its name and organs."""
    there = known.resolve(name)
    if there is not None:
        raise ConfigError(f"the run has the class {there!r} already", remedy="choose another name")
    if path is None:
        kind, rule = ("tumor", "inside") if organs else ("organ", "")
        return known.extended(ClassEntry(name, kind=kind, organs=tuple(organs), rule=rule))
    described = ClassTable.load(path)
    found = described.resolve(name)
    if found is None:
        raise ConfigError(f"{path} does not describe {name!r}", remedy="name it under classes")
    table = known.extended(described.entry(found))
    own = {
        dataset: {called: meant for called, meant in meanings.items() if not meant or table.resolve(meant)}
        for dataset, meanings in described.datasets.items()
    }
    return replace(table, datasets={**known.datasets, **own})


def _with_labels(table: ClassTable, rows: Any, name: str) -> Any:
    """The rows that are annotated for the class."""
    named, _ = table.translate(rows)
    kept = rows.filter(named["annotated"].list.contains(name))
    if kept.is_empty():
        raise ConfigError(
            f"no training case is annotated for {name!r}", remedy="say in a class table what it is called"
        )
    return kept


def _old_tables(run: str | Path, given: Sequence[str | Path]) -> list[str]:
    """The tables that are given, or those that the run, and the runs that it extends, were trained with."""
    folder = RunFolder(Path(run))
    if given or not folder.config.is_file():
        return [str(Path(path).resolve()) for path in given]
    config = folder.read_config()
    return [*config.get("data", []), *config.get("old_data", [])]


def _old_validation(tables: Sequence[str], *, named: bool) -> list[Any]:
    """Their validation rows; none where they are not there any more, unless they were named."""
    try:
        _, _, val = read_splits(tables, task="segmentation")
    except VesaliusError as error:
        if named:
            raise
        said = f"old classes are scored on the new cases alone: {error}"
        Console(stderr=True, soft_wrap=True).print(said, highlight=False, markup=False)
        return []
    return [] if val.is_empty() else [val]


def _compare(module: Extension, sets: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Dice of every old class on the validation cases that are annotated for it, before and after."""
    module.eval()
    before, after = VolumeDice(len(module.classes)), VolumeDice(len(module.classes))
    cases = [(samples, index) for samples in sets for index in range(len(samples))]
    for samples, index in track(cases, len(cases), "old classes before and after"):
        case = old_classes_only(module.val_view(samples[index], torch.Generator()), module.known)
        for network, dice in ((module.old, before), (module.network, after)):
            score_case(network, case, dice, members=module.members, roi=module.contract.roi)
    values = zip(module.classes, before.compute().tolist(), after.compute().tolist(), after.cases.tolist(), strict=True)
    return {name: {"before": one, "after": other, "cases": count} for name, one, other, count in values if count}


def _show(old: dict[str, dict[str, float]]) -> None:
    table = Table("old class", "Dice before", "after", "change", "cases", box=SIMPLE)
    for name, row in old.items():
        change = row["after"] - row["before"]
        table.add_row(name, f"{row['before']:.4f}", f"{row['after']:.4f}", f"{change:+.4f}", f"{row['cases']:.0f}")
    Console().print(table if old else "no validation case is annotated for an old class")
