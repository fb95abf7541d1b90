"""The page that the demo leaves: what came out first, then the pictures, then how it was done."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from vesalius import __version__
from vesalius.adapt.labels import labelled
from vesalius.adapt.networks import load_task
from vesalius.data.datasets import EvalView, ImageDataset, generator
from vesalius.data.sampling import organ_weights
from vesalius.data.table import load_table, select
from vesalius.demo import ARMS, PRETRAINED, TASKS, Plan, labels, scores
from vesalius.files import write_text
from vesalius.images import overlay, read
from vesalius.pretrain import system
from vesalius.pretrain.usfm import PRESETS
from vesalius.report.figures import arms, learning_curves, organ_counts, reconstruction_grid
from vesalius.report.html import Block, Card, Cards, Code, Details, Figure, Gallery, Heading, Page, Table, Text
from vesalius.tasks.metrics import enhancement
from vesalius.training.backbones import override
from vesalius.training.callbacks import AtomicCheckpoints
from vesalius.training.runs import RunFolder, environment

Scores = Mapping[str, Mapping[str, Mapping[str, list[float]]]]
LOWER = {"hd95"}
"""Scores of which less is better."""
CHANCE = {"auroc": 0.5}
SHORT = {"balanced accuracy": "bal. acc.", "PSNR (dB)": "PSNR, dB"}
"""Headings for a table of six columns."""


def demo_page(plan: Plan) -> Path:
    """Write OUT/index.html, and OUT/results.json, from the runs of a finished plan."""
    found = scores(plan)
    table = load_table(plan.table)
    _write_results(plan, found, table)
    blocks: list[Block] = [
        Cards(_cards(found)),
        Text(_summary(found, plan)),
        Heading("Scores on unseen patients"),
        Figure(
            _score_figure(found, labels(plan), CHANCE | _acquired(plan, table)),
            "Each point is a seed: its own pre-training and its own choice of labels. Dotted: guessing (AUROC), the "
            "image as it was acquired (enhancement).",
            wide=True,
        ),
        _score_table(plan, found, labels(plan)),
        Heading("What pre-training sees and restores"),
        *_restorations(plan, table),
        Heading("Learning curves"),
        *_curves(plan),
        Heading("What adaptation gives"),
        *(_masks(plan, table) if "segmentation" in plan.tasks else []),
        *(_enhanced(plan, table) if "enhancement" in plan.tasks else []),
        Heading("The collection"),
        *_collection(table),
        Heading("How it was done"),
        *_method(plan, table),
    ]
    subtitle = (
        f"Pre-trained on {_count(table, 'train')} ultrasound images without labels, adapted to {', '.join(plan.tasks)} "
        f"with {plan.fraction:.0%} of the labels, beside a masked autoencoder and training from scratch"
    )
    page = Page(
        "From a folder of ultrasound images to a foundation model", subtitle, blocks, footer=f"Vesalius {__version__}"
    )
    return page.save(plan.out / "index.html")


def _write_results(plan: Plan, found: Scores, table: pl.DataFrame) -> None:
    """The numbers of the page, for others to read."""
    results = {
        "arms": plan.named,
        "labels": labels(plan),
        "scores": found,
        "setup": {
            "seeds": plan.seeds,
            "pretrain_steps": plan.pretrain_steps,
            "adapt_steps": plan.adapt_steps,
            "fraction": plan.fraction,
            "decoder_width": plan.decoder_width,
            "train": _count(table, "train"),
            "test": _count(table, "test"),
        },
        "environment": environment(),
    }
    text = json.dumps(results, indent=2, default=str)
    write_text(plan.out / "results.json", re.sub(r"\bNaN\b", "null", text) + "\n")


def _cards(found: Scores) -> list[Card]:
    cards = []
    for task in found:
        name, label = next(iter(TASKS[task].items()))
        values, base = np.array(found[task][name]["usfm"]), np.array(found[task][name]["scratch"])
        note = f"{label} of USFM; {_signed(_mean(values - base), name)} against from scratch"
        cards.append(Card(task, _number(_mean(values), name), note))
    return cards


def _summary(found: Scores, plan: Plan) -> str:
    """What came out, in words that the numbers choose."""
    lines = []
    for task in found:
        name, label = next(iter(TASKS[task].items()))
        pairs = [(arm, other) for arm in ("usfm", "deblurring") for other in ("scratch", "mae")]
        for arm, other in (pair for pair in pairs if set(pair) <= set(plan.arms)):
            gain = np.array(found[task][name][arm]) - np.array(found[task][name][other])
            lines.append(f"- **{task}**, {label}, {ARMS[arm]} against {ARMS[other]}: {_verdict(gain, name)}")
    return (
        "\n".join(lines)
        + f"\n\nA difference counts as a gain or a loss if it has the same sign in all {plan.seeds} seeds and its mean "
        "is greater than its standard deviation. These are small data, tiny networks and minutes of training: the page "
        "shows that the path works from files to figures, not what the published models can do."
    )


def _verdict(gain: np.ndarray, name: str) -> str:
    mean, spread = _mean(gain), _spread(gain)
    better = gain < 0 if name in LOWER else gain > 0
    clear = abs(mean) > spread and (better.all() or (~better).all())
    word = ("better" if better.all() else "worse") if clear else "no clear difference"
    return f"{word} ({_signed(mean, name)} ± {_number(spread, name)})"


def _mean(values: np.ndarray) -> float:
    """Over the seeds in which the score is defined (HD95 is not where nothing was found)."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _spread(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def _number(value: float, name: str) -> str:
    return f"{value:.1f}" if name in ("psnr", "hd95") else f"{value:.3f}"


def _signed(value: float, name: str) -> str:
    return ("+" if value >= 0 else "−") + _number(abs(value), name)


def _acquired(plan: Plan, table: pl.DataFrame) -> dict[str, float]:
    """PSNR and SSIM of the test images as they are: what an enhancement has to beat."""
    if "enhancement" not in plan.tasks:
        return {}
    _, card = load_task(plan.adapted("enhancement", "usfm", 0))
    images = labelled(
        select(table, split="test", task="enhancement"), card.image_contract, task="enhancement", classes=()
    )
    samples = [images[i] for i in range(len(images))]
    untouched = enhancement([sample["image"] for sample in samples], [sample["target"] for sample in samples])
    return {name: untouched[name] for name in TASKS["enhancement"]}


def _score_figure(found: Scores, names: Mapping[str, str], without: Mapping[str, float]) -> Any:
    """Every arm and seed; `without`: score -> its value without learning."""
    panels, chance = {}, {}
    for task in found:
        for name in TASKS[task]:
            title = f"{task}: {names[name]}" + (" (lower is better)" if name in LOWER else "")
            panels[title] = {ARMS[arm]: values for arm, values in found[task][name].items()}
            if name in without:
                chance[title] = without[name]
    return arms(panels, chance=chance, columns=2)


def _score_table(plan: Plan, found: Scores, names: Mapping[str, str]) -> Table:
    scored = [(task, name) for task in found for name in TASKS[task]]
    columns = [SHORT.get(names[name], names[name]) for _, name in scored]
    rows = []
    for arm, title in plan.named.items():
        cells = []
        for task, name in scored:
            values = np.array(found[task][name][arm])
            cells.append((_mean(values), _spread(values)))
        rows.append([title, *cells])
    best = {label: "min" if name in LOWER else "max" for label, (_, name) in zip(columns, scored, strict=True)}
    return Table(
        ["arm", *columns], rows, "Mean ± standard deviation over seeds; the best of a column is marked.", best, digits=2
    )


def _restorations(plan: Plan, table: pl.DataFrame) -> list[Block]:
    """Validation images, corrupted as in pre-training, and what each network makes of them, and their spectra."""
    words = {
        "usfm": "**USFM**: blocks of pixels take the image's mean and rings of the spectrum are stopped (the dark "
        "rings); the network fills both.",
        "deblurring": "**Deblurring MIM**: the image is blurred, three quarters of the patches are dropped, and the "
        "sharp image is restored everywhere.",
        "mae": "**Masked autoencoder**: three quarters of the patches are dropped; the spectrum is not looked at.",
    }
    rows = select(table, split="val").unique("organ", keep="first", maintain_order=True)[:3]
    blocks: list[Block] = []
    for arm in plan.pretrained:
        module = _module(plan, arm)
        blurs = module.contract.blur is not None
        images = ImageDataset(rows, module.contract, sharp=blurs)
        views = [module.view(images[i], generator(0, i)) for i in range(len(images))]
        batch = {name: torch.stack([view[name] for view in views]) for name in views[0]}
        panels = {name: value.numpy() for name, value in module.panels(batch).items()}
        samples = [tuple(panels[k][i] for k in ("original", "corrupted", "restored")) for i in range(len(images))]
        blocks.append(Figure(reconstruction_grid(samples), words[arm], wide=True))
    return blocks


def _module(plan: Plan, arm: str) -> Any:
    """The whole pre-training network of seed 0, decoder included: it is in the run's last checkpoint."""
    name, changes = PRETRAINED[arm]
    kind = system(name)
    module = kind(override(import_module(kind.__module__).PRESETS["tiny"], changes))
    checkpoint = AtomicCheckpoints().load_checkpoint(RunFolder(plan.backbone(arm, 0)).last)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()


def _curves(plan: Plan) -> list[Block]:
    def history(folder: Path) -> dict[str, np.ndarray]:
        curve = pl.read_csv(RunFolder(folder).metrics)
        return {name: curve[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in curve.columns}

    pretrained = {ARMS[arm]: history(plan.backbone(arm, 0)) for arm in plan.pretrained}
    names = ["train/loss", "val/loss"]
    blocks: list[Block] = [
        Figure(
            learning_curves(pretrained, names, titles={"train/loss": "training loss", "val/loss": "validation loss"}),
            "Pre-training, seed 0. The two losses are not the same quantity: USFM adds the spectrum's error.",
            wide=True,
        )
    ]
    return blocks


def _masks(plan: Plan, table: pl.DataFrame) -> list[Block]:
    """Test images with the true lesion and what each arm's segmentation (seed 0) says."""
    _, card = load_task(plan.adapted("segmentation", "usfm", 0))
    rows = select(table, split="test", task="segmentation")
    images = labelled(rows, card.image_contract, task="segmentation", classes=card.classes)
    chosen = [i for i in range(len(images)) if images[i]["mask"].any()][:: max(1, len(images) // 12)][:4]
    blocks: list[Block] = [Text("**Segmentation** of unseen patients, seed 0: the truth, then each arm.")]
    for i in chosen:
        image = read(rows["path"][i], rows["frame"][i])
        truth = np.asarray(images[i]["mask"])
        items = [(overlay(image, truth, classes=card.classes), f"{rows['organ'][i]}: truth")]
        for arm, title in plan.named.items():
            network, network_card = load_task(plan.adapted("segmentation", arm, 0))
            view = EvalView(network_card.image_contract)(images[i], generator(0, i))
            mask = network.labels(network.predict(view["image"].unsqueeze(0))[0], truth.shape)
            items.append((overlay(image, mask, classes=card.classes), title))
        blocks.append(Gallery(items, tile=10))
    return blocks


def _enhanced(plan: Plan, table: pl.DataFrame) -> list[Block]:
    """Test images as acquired, enhanced by USFM's adaptation (seed 0), and the compounded truth."""
    network, card = load_task(plan.adapted("enhancement", "usfm", 0))
    rows = select(table, split="test", task="enhancement")
    images = labelled(rows, card.image_contract, task="enhancement", classes=())
    blocks: list[Block] = [Text("**Enhancement** of unseen patients by USFM, seed 0: less speckle, the same anatomy.")]
    for i in range(0, len(images), max(1, len(images) // 2))[:2]:
        view = EvalView(card.image_contract)(images[i], generator(0, i))
        restored = network.predict(view["image"].unsqueeze(0))[0]
        shown = {
            "as acquired": card.image_contract.denormalise(view["image"]),
            "enhanced": restored,
            "target": view["target"],
        }
        items = [(_grey(picture), f"{rows['organ'][i]}: {title}") for title, picture in shown.items()]
        blocks.append(Gallery(items, tile=13))
    return blocks


def _grey(picture: torch.Tensor) -> np.ndarray:
    return (picture.detach().mean(0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _collection(table: pl.DataFrame) -> list[Block]:
    train = table.filter(pl.col("split") == "train")
    organs = train["organ"].fill_null("not stated").to_list()
    counts = {str(row[0]): int(row[1]) for row in train["organ"].fill_null("not stated").value_counts().iter_rows()}
    weights = organ_weights(organs, alpha=PRESETS["tiny"].organ_alpha)
    drawn = {organ: float(weights[[o == organ for o in organs]].sum()) for organ in counts}
    patients = table.group_by("split").agg(pl.col("patient").n_unique(), pl.len()).sort("split")
    return [
        Figure(
            organ_counts(counts, {"share of the draws (USFM)": drawn}),
            "Organs are unequal in number, and drawn evenly.",
        ),
        Table(
            ["split", "patients", "images"],
            [[row[0], row[1], row[2]] for row in patients.iter_rows()],
            "Split by patient: no patient is in two of them.",
        ),
    ]


def _method(plan: Plan, table: pl.DataFrame) -> list[Block]:
    few = round(plan.fraction * table.filter(pl.col("split") == "train")["patient"].n_unique())
    facts = environment()
    return [
        Text(
            f"- Every arm: the same trunk (ViT, 64 px, patches of 8, width 96, depth 4), {plan.pretrain_steps} steps "
            f"of 32 images without labels, then {plan.adapt_steps} steps of 16 images on the labels of about {few} "
            "patients, all weights trained; USFM's trunk learns its positions, the autoencoders' have fixed ones.\n"
            "- From scratch: USFM's trunk with random weights, adapted in the same way.\n"
            f"- {plan.seeds} seeds: each its own pre-training, head, order and choice of labelled patients.\n"
            "- Scores at the images' own size, on patients of the test split."
        ),
        Code(
            "vesalius phantom ultrasound --n 300 --out us\n"
            "vesalius index us -o us.parquet\n"
            "vesalius pretrain usfm --data us.parquet --preset tiny --out runs/usfm\n"
            "vesalius adapt full --backbone runs/usfm --task segmentation --data us.parquet --out runs/seg\n"
            "vesalius evaluate runs/seg --data us.parquet"
        ),
        Details(
            "The machine",
            [
                Table(
                    ["", "value"],
                    [[str(name), str(value)] for name, value in facts.items() if not isinstance(value, dict)],
                )
            ],
        ),
    ]


def _count(table: pl.DataFrame, split: str) -> int:
    return table.filter(pl.col("split") == split).height
