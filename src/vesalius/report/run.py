"""The page of one run, made from nothing but the files in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vesalius.data.contract import InputContract
from vesalius.errors import VesaliusError, WeightsError
from vesalius.evaluation.results import Result
from vesalius.published.card import Card as WeightsCard
from vesalius.report.figures import learning_curves
from vesalius.report.html import Block, Card, Cards, Code, Details, Figure, Heading, Page, Table, Text, Value
from vesalius.training.runs import RunFolder

NAMES = {
    "CF1": "F1 of CP and CR",
    "CP": "Precision, mean over classes (CP)",
    "CR": "Recall, mean over classes (CR)",
    "OF1": "F1 over all decisions (OF1)",
    "OP": "Precision over all decisions (OP)",
    "OR": "Recall over all decisions (OR)",
    "accuracy": "Accuracy",
    "annotated": "Annotated",
    "ap": "AP",
    "auroc": "AUROC",
    "balanced_accuracy": "Balanced accuracy",
    "dice": "Dice",
    "ece": "Calibration error",
    "f1": "F1",
    "foreground_dice": "Foreground Dice",
    "hd95": "HD95",
    "iou": "IoU",
    "loss": "Loss",
    "lr": "Learning rate",
    "mAP": "mAP",
    "mae": "Mean absolute error",
    "n": "Images",
    "psnr": "PSNR",
    "ssim": "SSIM",
}
STAGES = {"train": "training", "val": "validation"}
MOST_CARDS = 4
MOST_PANELS = 6


def run_report(run: str | Path, *, extra: Sequence[Block] = ()) -> Path:
    """Write ``report.html`` into a run's folder: scores, learning curves, the weights' card, the configuration.

    A run that is not finished, or not evaluated, gets a page of what there is so far.

    Args:
        run: the folder, with at least ``config.yaml``.
        extra: blocks to show after the scores (pictures, which the folder does not hold).

    Returns:
        The page's path.

    Raises:
        VesaliusError: the folder holds no run, a file in it is damaged, or it cannot be written.

    >>> import tempfile
    >>> from vesalius import index, phantom, pretrain_system
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = phantom("ultrasound", folder / "us", n=6, size=32)
    >>> _ = index(folder / "us", folder / "us.parquet")
    >>> options = {"steps": 1, "batch_size": 2, "progress": False}
    >>> run = pretrain_system("usfm", data=folder / "us.parquet", out=folder / "usfm", **options)
    /...
    >>> run_report(run["run"]).name
    'report.html'
    """
    folder = RunFolder(Path(run))
    config = folder.read_config()
    curve = _read_curve(folder.metrics)
    result = Result.load(folder.results) if folder.results.exists() else None
    environment = _read_json(folder.environment)
    card = _read_card(folder)

    score_cards = [] if result is None else _score_cards(result)
    blocks: list[Block] = [Heading("Summary"), Cards([*score_cards, *_run_cards(config, curve)])]
    if card is None:
        blocks.append(Text("**This run is not finished**: it has left no weights yet. `--resume` continues it."))
    if result is not None:
        blocks += _score_blocks(result)
    blocks += extra
    blocks += _curve_blocks(curve)
    if card is not None:
        blocks += [Heading("Weights"), Text(_card_text(card))]
    blocks.append(Heading("How it was made"))
    blocks.append(Details("Configuration", [Code(folder.config.read_text(encoding="utf-8").rstrip())]))
    for name, values in (("Provenance of the scores", _provenance(result)), ("Environment", environment)):
        if values:
            blocks.append(Details(name, [Table(["", "value"], [[key, text] for key, text in _flat(values)])]))
    page = Page(
        title=folder.path.resolve().name,
        subtitle=_subtitle(config, card),
        sections=blocks,
        footer=f"Written by Vesalius from the files beside this page · code {environment.get('code', 'unknown')}",
    )
    return page.save(folder.path / "report.html")


def _subtitle(config: Mapping[str, Any], card: WeightsCard | None) -> str:
    if card is not None:
        network = card.architecture.get("name", "network")
        c = card.contract
        size = f"{c.size} px" if isinstance(c, InputContract) else f"{' x '.join(map(str, c.roi))} voxels"
        return f"{card.system}, {card.part}: {network} at {size}"
    return ", ".join(str(config[key]) for key in ("system", "task", "preset") if config.get(key))


def _read_curve(path: Path) -> pl.DataFrame:
    """metrics.csv as numbers, a row that was cut off being passed over; no rows where it is not there."""
    if not path.is_file() or not path.stat().st_size:
        return pl.DataFrame({"step": []}, schema={"step": pl.Float64})
    try:
        table = pl.read_csv(path, infer_schema=False, truncate_ragged_lines=True)
        return table.select(pl.all().cast(pl.Float64, strict=False)).filter(pl.col("step").is_not_null())
    except pl.exceptions.PolarsError as error:
        raise VesaliusError(f"is not a training curve ({error})", path=path, remedy="restore or delete it") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise VesaliusError(f"is not valid JSON ({error})", path=path, remedy="restore or delete it") from error


def _read_card(folder: RunFolder) -> WeightsCard | None:
    try:
        return WeightsCard.load(folder.path / "card.json")
    except WeightsError:
        if folder.weights.exists():
            raise
        return None


def _card_text(card: WeightsCard) -> str:
    return card.markdown().partition("\n\n")[2]


def _numbers(result: Result) -> dict[str, float]:
    """The scores that are single defined numbers, counts aside."""
    return {key: value for key, value in result.metrics.items() if isinstance(value, float) and isfinite(value)}


def _score_cards(result: Result) -> list[Card]:
    cards = []
    for key, value in list(_numbers(result).items())[: MOST_CARDS - 1]:
        interval = result.intervals.get(key)
        note = f"95 % interval {_range(interval)}" if interval else f"{result.images} images"
        cards.append(Card(_name(key), f"{value:.3f}", note))
    return cards


def _run_cards(config: Mapping[str, Any], curve: pl.DataFrame) -> list[Card]:
    train = config.get("train", {})
    step = int(curve["step"].max() or 0) if len(curve) else 0  # type: ignore[arg-type]
    cards = [Card("Steps", f"{step:,}".replace(",", "\u2009"), f"of {train['steps']}" if "steps" in train else "")]
    images = step * train.get("batch_size", 0) * train.get("accumulate", 1) * train.get("devices", 1)
    if images:
        cards.append(Card("Images seen", f"{images:,}".replace(",", "\u2009"), "with repeats"))
    for column in ("val/loss", "train/loss"):
        if column in curve.columns and (values := curve[column].drop_nulls()).len():
            stage = STAGES[column.partition("/")[0]]
            cards.append(Card(f"Last {stage} loss", f"{values[-1]:.4g}", f"first {values[0]:.4g}"))
            break
    return cards


def _score_blocks(result: Result) -> list[Block]:
    """Tables of all scores, of each class's, and of confusions."""
    rows: list[list[Value]] = []
    for key, value in _numbers(result).items():
        unit, interval = result.metrics.get(f"{key}_unit"), result.intervals.get(key)
        rows.append([f"{_name(key)} ({unit})" if unit else _name(key), value, _range(interval) if interval else None])
    how = "" if result.protocol == "task" else f", {_name(result.protocol)}"
    caption = f"**{result.images} images of {result.patients} patients**, split {result.split}{how}."
    if seen := result.leakage.get("backbone"):
        caption += f" The backbone was pre-trained, without labels, on {seen} of these patients."
    if result.counted:
        caption += f" {result.counted}."
    blocks: list[Block] = [Heading("Scores"), Table(["score", "value", "95 % interval"], rows, caption)]
    per_class = result.metrics.get("per_class")
    if per_class:
        columns = list(dict.fromkeys(key for values in per_class.values() for key in values))
        classes = [[name, *(values.get(key) for key in columns)] for name, values in per_class.items()]
        caption = "Every class by itself, with the number of images that hold it. A dash: not defined."
        blocks.append(Table(["class", *map(_name, columns)], classes, caption))
        if confusion := result.metrics.get("confusion"):
            counts = [[name, *row] for name, row in zip(per_class, confusion, strict=True)]
            caption = "**Confusions**: rows are the truth, columns what was predicted."
            blocks.append(Table(["", *per_class], counts, caption))
    return blocks


def _curve_blocks(curve: pl.DataFrame) -> list[Block]:
    """Learning curves, training and validation of one quantity in one panel."""
    histories: dict[str, dict[str, np.ndarray]] = {}
    for column in curve.columns:
        stage, _, metric = column.rpartition("/")
        if column != "step" and curve[column].is_finite().any():
            history = histories.setdefault(STAGES.get(stage, stage or "training"), {})
            history[metric] = curve[column].to_numpy()
    for history in histories.values():
        history["step"] = curve["step"].to_numpy()
    metrics = list(dict.fromkeys(name for history in histories.values() for name in history if name != "step"))
    metrics.sort(key=lambda name: (name != "loss", name == "lr"))
    if not metrics:
        return []
    shown = metrics[:MOST_PANELS]
    figure = learning_curves(histories, shown, titles={name: _name(name) for name in shown})
    caption = "Faint: every logged step; strong: a running mean."
    alt = f"Learning curves of {', '.join(map(_name, shown))}."
    return [Heading("Learning"), Figure(figure, caption, alt, wide=len(shown) > 1)]


def _provenance(result: Result | None) -> dict[str, Any]:
    """What the scores depend on beside the run's configuration."""
    if result is None:
        return {}
    names = ("run", "protocol", "task", "split", "settings", "seed", "data_hash", "split_hash", "code", "leakage")
    return {name: getattr(result, name) for name in names}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every value, inner keys joined by dots."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif not (isinstance(value, list) and len(value) > 20):  # not one line per image
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _name(key: str) -> str:
    return NAMES.get(key, key.replace("_", " ").capitalize())


def _range(interval: Mapping[str, float | None]) -> str:
    low, high = (interval.get(end) for end in ("low", "high"))
    return "not defined" if low is None or high is None else f"{low:.3f} to {high:.3f}"
