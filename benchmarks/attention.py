"""Attention maps of one CT beside the published order of work, from the same files and with the same maps.

    python benchmarks/attention.py [--size 96 96 112] [--full]

Three models' probabilities and entropies of 25 structures lie on disk as the authors keep them (uint8, .nii.gz), of
ellipsoids on which the models agree more or less. Both sides read them, average, clean, and hand out the attention map
of every structure, whose checksums must be equal. The other side follows the released scripts' order of work: all
structures as float64 at once for the average; then, structure by structure, all models as float64, openings by a
structuring element, and every other structure's averaged mask read again. `--full` adds 512 x 512 x 600 voxels for our
side; there the other side's two float64 arrays alone would take 63 GB, which is given in its place.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from vesalius.curate.attention import PUBLISHED_OVERLAP, AttentionConfig, attention_maps
from vesalius.curate.proposals import ENTROPY, Proposal, average_masks
from vesalius.data.abdomen import NAMES
from vesalius.data.label_tables import CONNECTIVITY
from vesalius.tasks.organs import clean

from measure import Row, fresh, interleaved, peak_mb, show

STRUCTURES, MODELS = NAMES[:25], ("swinunetr", "unet", "nnunet")
FULL = (512, 512, 600)
CONFIG = AttentionConfig(as_published=True)
SIDES = ("ours", "published order")
KINDS = ("soft", "entropy")


def write_case(folder: Path, size: Sequence[int]) -> None:
    """Probabilities and entropies of every model and structure."""
    rng = np.random.default_rng(0)
    for structure in STRUCTURES:
        middle, radii = rng.uniform(0.2, 0.8, 3) * size, rng.uniform(0.05, 0.16, 3) * size
        for model in MODELS:
            shift, scale = rng.normal(0, 0.15, 3) * radii, rng.uniform(0.9, 1.15)
            probability = ellipsoid(size, middle + shift, scale * radii)
            for kind, values in zip(KINDS, (probability, ENTROPY[probability]), strict=True):
                save(values, folder / f"{kind}-{model}-{structure}.nii.gz")


def ellipsoid(size: Sequence[int], middle: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """255 x probability, 1 within and 0 without, over a soft rim."""
    volume = np.zeros(size, np.uint8)
    spans = [
        slice(max(int(m - 1.5 * r), 0), min(int(m + 1.5 * r) + 1, side))
        for m, r, side in zip(middle, radii, size, strict=True)
    ]
    axes = [
        ((np.arange(span.start, span.stop) - m) / r).astype(np.float32)
        for span, m, r in zip(spans, middle, radii, strict=True)
    ]
    distance = np.sqrt(sum(axis**2 for axis in np.ix_(*axes)))
    volume[tuple(spans)] = 255 / (1 + np.exp((distance - 1) * 20))
    return volume


def save(values: np.ndarray, path: Path) -> None:
    """As NIfTI of 1 mm voxels."""
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def stored(path: Path) -> np.ndarray:
    """The bytes of a file."""
    return np.asarray(nibabel.load(path).dataobj)


def ours(folder: Path) -> dict[str, int]:
    """Structure by structure, in bytes; returns the maps' checksums."""

    def read(structure: str) -> list[Proposal]:
        files = [[folder / f"{kind}-{model}-{structure}.nii.gz" for kind in KINDS] for model in MODELS]
        return [Proposal(stored(soft), stored(entropy)) for soft, entropy in files]

    masks = average_masks(read, STRUCTURES)
    maps = attention_maps(read, masks, STRUCTURES, spacing=None, config=CONFIG)
    return {one.structure: zlib.crc32(np.ascontiguousarray(one.full("attention"))) for one in maps}


def published_order(folder: Path) -> dict[str, int]:
    """Everything in float64, all structures at once where the released scripts have them so."""

    def floats(name: str) -> np.ndarray:
        return np.asarray(nibabel.load(folder / f"{name}.nii.gz").get_fdata())

    size = nibabel.load(folder / f"soft-{MODELS[0]}-{STRUCTURES[0]}.nii.gz").shape
    total, votes = np.zeros((2, len(STRUCTURES), *size))
    for row, structure in enumerate(STRUCTURES):
        for model in MODELS:
            total[row] += floats(f"soft-{model}-{structure}") / 255
            votes[row] += np.ones(size)
    averages = clean(total / votes > 0.5, STRUCTURES, rules="atlas")
    for structure, average in zip(STRUCTURES, averages, strict=True):
        save(average.astype(np.uint8), folder / f"average-{structure}.nii.gz")
    del total, votes, averages

    checksums = {}
    for structure in STRUCTURES:
        probabilities, doubt, overlap = np.zeros((len(MODELS), *size)), np.zeros(size), np.zeros(size)
        own = floats(f"average-{structure}")
        for row, model in enumerate(MODELS):
            probabilities[row] = floats(f"soft-{model}-{structure}") / 255
            doubt += floats(f"entropy-{model}-{structure}") / 255
        heat = thick(np.std(probabilities, axis=0), CONFIG.inconsistency)
        heat += thick(doubt / len(MODELS), CONFIG.uncertainty)
        for other in sorted(PUBLISHED_OVERLAP - {structure}):
            overlap += own + floats(f"average-{other}") > 1
        heat += overlap > 0
        heat = heat / heat.max() if heat.max() else heat  # the scripts divide by zero here
        checksums[structure] = zlib.crc32(np.ascontiguousarray((heat * 255).astype(np.uint8)))
    return checksums


def thick(values: np.ndarray, cut: float) -> np.ndarray:
    """The values where they are above `cut` in a region of five voxels."""
    return np.where(ndimage.binary_opening(values > cut, CONNECTIVITY, iterations=2), values, 0)


RUN: dict[str, Callable[[Path], dict[str, int]]] = dict(zip(SIDES, (ours, published_order), strict=True))


def main() -> None:
    """Write a case, compare, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=(96, 96, 112))
    parser.add_argument("--full", action="store_true", help="our side on 512 x 512 x 600 too: minutes")
    parser.add_argument("--threads", type=int, default=1, help="nothing here has threads")
    parser.add_argument("--repeats", type=int, default=15, help="the sides take turns a fifth as often")
    parser.add_argument("--only", choices=SIDES)
    parser.add_argument("--folder", type=Path, help="of --only: a case that was written")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.only:
        imports, start = peak_mb(), time.perf_counter()
        RUN[options.only](options.folder)
        print(json.dumps([{"mb": peak_mb() - imports, "s": time.perf_counter() - start}]))
        return

    rows = []
    with tempfile.TemporaryDirectory() as name:
        write_case(Path(name), options.size)
        checksums = {side: run(Path(name)) for side, run in RUN.items()}
        if checksums[SIDES[0]] != checksums[SIDES[1]]:
            raise RuntimeError("the two sides' maps differ")
        repeats = max(options.repeats // 5, 1)
        seconds = interleaved({side: lambda run=run: run(Path(name)) for side, run in RUN.items()},
                              repeats=repeats, warmup=0)  # fmt: skip
        memory = {side: fresh(__file__, "--only", side, "--folder", name)[0]["mb"] for side in SIDES}
    work = f"{' x '.join(map(str, options.size))} voxels, {len(MODELS)} models, {len(STRUCTURES)} structures"
    rows.append(Row(work, "published order of work", "s", *(seconds[side] for side in SIDES), repeats))
    rows.append(Row(f"{work}: peak memory", "published order of work", "MB", *(memory[side] for side in SIDES), 1))
    if options.full:
        with tempfile.TemporaryDirectory() as name:
            write_case(Path(name), FULL)
            found = fresh(__file__, "--only", SIDES[0], "--folder", name)[0]
        least = 2 * 8 * len(STRUCTURES) * prod(FULL) / 1e6
        work = f"{' x '.join(map(str, FULL))} voxels, {found['s']:.0f} s: peak memory"
        rows.append(Row(work, "two float64 arrays, by arithmetic", "MB", found["mb"], least, 1))
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
