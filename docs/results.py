"""Put measured numbers into the pages of the systems, from the files that the commands leave.

    python docs/results.py claim claims/usfm docs/systems/usfm.md
    python docs/results.py methods compare/busi "Breast ultrasound (BUSI)" docs/systems/ept.md
    python docs/results.py comparison demo-hc18 "Fetal heads (HC18)" docs/systems/usfm.md docs/systems/deblurring.md

The text between ``<!-- claim -->`` (or ``<!-- methods NAME -->``, ``<!-- comparison NAME -->``) and ``<!-- end -->`` is
replaced, and a claim's figure is copied beside the page.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path


def main(words: list[str]) -> None:
    """Fill the pages named on the command line."""
    if words[0] == "claim":
        folder, page = Path(words[1]), Path(words[2])
        fill(page, "claim", claim(folder, page))
    else:
        folder, title, pages = Path(words[1]), words[2], [Path(word) for word in words[3:]]
        text = methods(folder, title) if words[0] == "methods" else comparison(folder, title)
        for page in pages:
            fill(page, f"{words[0]} {title}", text)


def fill(page: Path, marker: str, text: str) -> None:
    """Replace what stands between a marker and the next end."""
    start = re.escape(f"<!-- {marker} -->")
    new, count = re.subn(rf"({start}\n).*?(<!-- end -->)", lambda m: m[1] + text + m[2], page.read_text(), flags=re.S)
    if count != 1:
        raise SystemExit(f"{page} has no <!-- {marker} --> ... <!-- end -->")
    page.write_text(new)


def claim(folder: Path, page: Path) -> str:
    """Verdicts, scores and figure of a claim."""
    results = json.loads((folder / "results.json").read_text())
    metrics, seeds = results["metrics"], results["seeds"]
    lines = [f"Measured over seeds {', '.join(map(str, seeds))} on {results['setup']['data']}.", ""]
    lines += ["| | statement | measured by | gain | verdict |", "|---|---|---|---|---|"]
    for verdict in results["verdicts"]:
        error = verdict.get("se")  # over draws, where there are draws
        gain = spread(verdict["mean"], verdict["sd"] if error is None else error, signed=True)
        label = metrics[verdict["metric"]]["label"]
        lines.append(f"| {verdict['name']} | {verdict['statement']} | {label} | {gain} | **{verdict['verdict']}** |")
    lines += ["", results["rule"], ""]
    names = [name for name in metrics if any(name in scores for scores in results["summary"].values())]
    groups = [[n for n in names if "organ" not in n], [n for n in names if "organ" in n]]
    for group in groups:
        arms = [arm for arm, scores in results["summary"].items() if any(name in scores for name in group)]
        if not arms:
            continue
        lines += [
            "| arm | " + " | ".join(metrics[name]["label"] for name in group) + " |",
            "|---" * (len(group) + 1) + "|",
        ]
        for arm in arms:
            scores = results["summary"][arm]
            cells = [spread(scores[n]["mean"], scores[n]["sd"]) if n in scores else "–" for n in group]
            lines.append(f"| {results['arms'][arm]} | " + " | ".join(cells) + " |")
        lines.append("")
    for number, figure in enumerate(sorted(folder.glob("scores_*.png")), start=1):
        name = f"claim_{page.stem}_{number}.png"
        (page.parent / "figures").mkdir(exist_ok=True)
        shutil.copy(figure, page.parent / "figures" / name)
        lines += [f"![Every arm and seed of the claim](figures/{name})", ""]
    minutes = sum(sum(values) for values in results["seconds"].values()) / 60 / len(seeds)
    machine = results["environment"]
    lines += [
        f"{results['method']} Machine: {machine['cpu']}, {machine['cores']} cores; "
        f"{minutes:.0f} minutes of worker time a seed.",
        "",
    ]
    return "\n".join(lines)


def methods(folder: Path, title: str) -> str:
    """The tables of ``vesalius compare``, as it left them."""
    return f"**{title}**\n\n{(folder / 'table.md').read_text()}"


def comparison(folder: Path, title: str) -> str:
    """Scores of all arms on a table of real images."""
    results = json.loads((folder / "results.json").read_text())
    setup, machine = results["setup"], results["environment"]
    lines = [
        f"**{title}**: {setup['train']} training and {setup['test']} test images; {setup['pretrain_steps']} steps of "
        f"pre-training, {setup['adapt_steps']} of adaptation on the labels of {setup['fraction']:.0%} of the training "
        f"patients, {setup['seeds']} seeds, the tiny presets (64 px), segmentation decoders of "
        f"{setup['decoder_width']} channels. Mean ± standard deviation over seeds.",
        "",
    ]
    columns = [(task, name) for task, names in results["scores"].items() for name in names]
    lines += [
        "| arm | " + " | ".join(f"{task}: {results['labels'][name]}" for task, name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for arm, label in results["arms"].items():
        cells = []
        for task, name in columns:
            values = [value for value in results["scores"][task][name][arm] if value is not None]
            mean = sum(values) / len(values) if values else math.nan
            sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan
            cells.append(spread(mean, sd))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Machine: {machine['cpu']}, {machine['cores']} cores.", ""])


def spread(mean: float | None, sd: float | None, *, signed: bool = False) -> str:
    """Mean ± standard deviation, as text."""
    if mean is None or math.isnan(mean):
        return "–"
    digits = 3 if abs(mean) < 10 else 1
    text = f"{mean:{'+' if signed else ''}.{digits}f}"
    return text if sd is None or math.isnan(sd) else f"{text} ± {sd:.{digits}f}"


if __name__ == "__main__":
    main(sys.argv[1:])
