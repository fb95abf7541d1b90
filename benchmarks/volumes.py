"""Whole volumes in windows beside MONAI's and nnU-Net's, and epochs out of our cache beside MONAI's two.

    python benchmarks/volumes.py [--data FOLDER] [--full]

All sides of the sliding window have the same network, windows, overlap and Gaussian weights, and must find the same
labels, but for ties in the half precision in which nnU-Net adds up; it takes part where nnunetv2 is installed. The
caches hold the same cases (RAS, percentiles, cropped to the foreground) and an epoch takes one patch around a voxel of
a class from each: of brain phantoms, and of a folder such as the hippocampi of the Medical Segmentation Decathlon
(`--data`, or what VESALIUS_SHARED names). Memory is measured with caches that are already filled, as far as they are on
disk. It all takes a few minutes; `--full` has larger volumes and more of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import torch
from monai import transforms as mt
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from vesalius.data.datasets import generator
from vesalius.data.index import index
from vesalius.data.phantoms.brain import brain
from vesalius.data.table import MASK_SEPARATOR, load_table, mask_names, save_table, select
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import PatchView, VolumeDataset
from vesalius.data.volumes.intensity import Percentiles
from vesalius.evaluation.sliding import sliding_window
from vesalius.nn.unet3d import UNet3D, UNet3DConfig
from vesalius.tasks.volume_segmentation import VolumeSegmentation

from measure import Row, fresh, interleaved, peak_mb, show

WINDOW, CLASSES = (64, 64, 64), 14
NETWORKS = ("U-Net", "one convolution")  # the second shows what the windows cost by themselves
WINDOWS = {"sliding_window": "ours", "sliding_window_inference": "MONAI", "nnUNetPredictor": "nnU-Net"}
TIES = {"MONAI": 1e-3, "nnU-Net": 5e-2}
"""Share of the voxels that may differ."""
SIZES = {False: {"U-Net": (96, 96, 128), "one convolution": (128, 128, 160)}, True: dict.fromkeys(NETWORKS, (256,) * 3)}
"""Voxels of the CT, without and with --full."""
CACHES = ("VolumeCache", "PersistentDataset", "CacheDataset")
PATCH = (32, 32, 32)

Run = Callable[[], object]


def windows(side: str, name: str, size: Sequence[int]) -> Callable[[], np.ndarray]:
    """A CT of `size` and a network, and what makes a label map of them."""
    torch.manual_seed(0)
    volume = torch.randint(-1000, 1000, (1, *size), dtype=torch.int16)
    names = [f"organ {k}" for k in range(1, CLASSES)]
    network: nn.Module = nn.Conv3d(1, CLASSES, 1)
    if name == "U-Net":
        network = VolumeSegmentation(UNet3D(UNet3DConfig(width=4)), names)
    network.eval()

    def unit(part: Tensor) -> Tensor:
        return ((part.float() + 175) / 425).clamp(0, 1)

    def ours() -> np.ndarray:
        return sliding_window(network, volume, roi=WINDOW, prepare=unit, title=None)

    @torch.inference_mode()
    def monai() -> np.ndarray:
        scores = sliding_window_inference(unit(volume)[None], WINDOW, 1, network, overlap=0.5, mode="gaussian")
        return scores[0].argmax(0).to(torch.uint8).numpy()

    def nnunet() -> np.ndarray:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        with contextlib.redirect_stdout(io.StringIO()):  # it says that there is no GPU
            predictor = nnUNetPredictor(
                use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
            )
        predictor.network, predictor.allowed_mirroring_axes = network, None
        predictor.configuration_manager = SimpleNamespace(patch_size=WINDOW)
        predictor.label_manager = SimpleNamespace(num_segmentation_heads=CLASSES)
        scores = predictor.predict_sliding_window_return_logits(unit(volume))
        return scores.argmax(0).to(torch.uint8).numpy()

    return dict(zip(WINDOWS, (ours, monai, nnunet), strict=True))[side]


def cached(side: str, table: pl.DataFrame, folder: Path) -> Run:
    """A dataset with its cache, filled where it is not, and what goes through it once."""
    return cached_by_us(table, folder) if side == CACHES[0] else cached_by_monai(side, table, folder)


def cached_by_us(table: pl.DataFrame, folder: Path) -> Run:
    """`VolumeDataset` and `PatchView`."""
    channels = tuple(table["channels"][0]) or ("mr",)
    contract = VolumeContract(channels, spacing=None, intensity=Percentiles(nonzero=False), roi=PATCH)
    view, draws = PatchView(contract), itertools.count()
    with contextlib.redirect_stderr(io.StringIO()):  # it says how much disk it takes
        dataset = VolumeDataset(table, contract, task="segmentation", cache=folder, crop=True)
    return lambda: [view(dataset[i], generator(0, next(draws)))["image"].sum() for i in range(len(dataset))]


def cached_by_monai(side: str, table: pl.DataFrame, folder: Path) -> Run:
    """MONAI's transforms in the order of its fast training guide: all that is not random, and where classes are."""
    cases = [{"image": row["path"].split(MASK_SEPARATOR), "label": row["mask"]} for row in table.to_dicts()]
    classes, both = len(mask_names(table)) + 1, ["image", "label"]
    steps = mt.Compose(
        [
            mt.LoadImaged(both, ensure_channel_first=True),
            mt.Orientationd(both, axcodes="RAS", labels=None),
            mt.CropForegroundd(both, source_key="image", allow_smaller=True),
            mt.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True, channel_wise=True),
            mt.SpatialPadd(both, PATCH),
            mt.ClassesToIndicesd("label", num_classes=classes, max_samples_per_class=4096),
            mt.RandCropByLabelClassesd(
                both,
                label_key="label",
                spatial_size=PATCH,
                ratios=[(classes - 1) / 2, *[1] * (classes - 1)],  # a class in two of three patches, as ours
                num_classes=classes,
                num_samples=1,
                indices_key="label_cls_indices",
                warn=False,
            ),
        ]
    )
    dataset: Dataset = (
        PersistentDataset(cases, steps, cache_dir=folder)
        if side == CACHES[1]
        else CacheDataset(cases, steps, num_workers=0, progress=False)
    )
    return lambda: [dataset[i][0]["image"].sum() for i in range(len(dataset))]


def window_rows(sizes: dict[str, Sequence[int]], repeats: int, words: tuple[str, ...]) -> list[Row]:
    """Time and memory of the sliding windows, whose labels must be the same."""
    rows = []
    known = [side for side in WINDOWS if side != "nnUNetPredictor" or find_spec("nnunetv2")]
    for name, size in sizes.items():
        runs = {side: windows(side, name, size) for side in known}
        found = {side: run() for side, run in runs.items()}
        for side in known[1:]:
            if (found[known[0]] != found[side]).mean() > TIES[WINDOWS[side]]:
                raise RuntimeError(f"{side} finds other labels")
        seconds = interleaved(runs, repeats=repeats, warmup=0)
        asked = (*words, "--size", *map(str, size), "--network", name)
        memory = {side: fresh(__file__, *asked, "--only", side)[0]["mb"] for side in known}
        work = f"{' x '.join(map(str, size))} voxels, {CLASSES} classes, {name}"
        for side in known[1:]:
            pair = known[0], side
            rows.append(Row(work, WINDOWS[side], "s", *(seconds[one] for one in pair), repeats))
            rows.append(Row(f"{work}: peak memory", WINDOWS[side], "MB", *(memory[one] for one in pair), 1))
    return rows


def cache_rows(what: str, path: Path, folder: Path, repeats: int, words: tuple[str, ...]) -> list[Row]:
    """First and later epochs of the three caches, their memory, and what two of them leave on disk."""
    table = load_table(path)
    first = {side: epoch_with_nothing(side, table, folder) for side in CACHES}
    cold = interleaved(first, repeats=1, warmup=0)
    places = {side: folder / side for side in CACHES}
    warm = interleaved({side: cached(side, table, place) for side, place in places.items()}, repeats=repeats)
    memory = {
        side: fresh(__file__, *words, "--only", side, "--table", str(path), "--cache", str(place))[0]["mb"]
        for side, place in places.items()
    }
    disk = {
        side: sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 1e6
        for side, place in places.items()
    }
    work, n, rows = f"{len(table)} {what}", len(table), []
    for peer in CACHES[1:]:
        rows.append(Row(f"{work}, first epoch", peer, "s", cold[CACHES[0]], cold[peer], 1))
        speeds = (n / warm[CACHES[0]], n / warm[peer])
        rows.append(Row(f"{work}, later epochs", peer, "patches/s", *speeds, repeats))
        rows.append(Row(f"{work}: peak memory", peer, "MB", memory[CACHES[0]], memory[peer], 1))
        if disk[peer]:
            rows.append(Row(f"{work}: on disk", peer, "MB", disk[CACHES[0]], disk[peer], 1))
    return rows


def epoch_with_nothing(side: str, table: pl.DataFrame, folder: Path) -> Run:
    """The first epoch, with an empty cache, which it leaves filled."""

    def run() -> None:
        shutil.rmtree(folder / side, ignore_errors=True)
        (folder / side).mkdir(parents=True)
        cached(side, table, folder / side)()

    return run


def main() -> None:
    """Generate, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("VESALIUS_SHARED", "../shared"))
    parser.add_argument("--data", type=Path, default=shared / "data/mri_hippocampus", help="volumes with labels")
    parser.add_argument("--brains", type=int, default=4, help="phantoms, of 64 voxels a side (96 with --full)")
    parser.add_argument("--cases", type=int, default=40, help="of --data at most (all with --full)")
    parser.add_argument("--full", action="store_true", help="larger volumes, and more of them")
    parser.add_argument("--size", type=int, nargs=3, help="voxels of the sliding windows' CT")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15, help="of an epoch; windows take turns a fifth as often")
    parser.add_argument("--only", choices=(*WINDOWS, *CACHES))
    parser.add_argument("--network", choices=NETWORKS, default=NETWORKS[0])
    parser.add_argument("--table", type=Path, help="of --only with a cache")
    parser.add_argument("--cache", type=Path, help="of --only with a cache")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        imports = peak_mb()
        if options.only in WINDOWS:
            windows(options.only, options.network, options.size)()
        else:
            epoch = cached(options.only, load_table(options.table), options.cache)
            for _ in range(2):
                epoch()
        print(json.dumps([{"mb": peak_mb() - imports}]))
        return

    words = ("--threads", str(options.threads))
    sizes = dict.fromkeys(NETWORKS, options.size) if options.size else SIZES[options.full]
    rows = window_rows(sizes, max(options.repeats // 5, 1), words)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        brain(folder / "brains", n=options.brains, size=(96 if options.full else 64,))
        sets = {"brain phantoms": folder / "brains"}
        if options.data.is_dir():
            sets[f"cases of {options.data.name}"] = options.data
        for what, source in sets.items():
            path = folder / f"{source.name}.parquet"
            labelled = select(index(source, path, volumes=True), task="segmentation")
            save_table(labelled if options.full else labelled.head(options.cases), path)
            rows += cache_rows(what, path, folder / f"{source.name} caches", options.repeats, words)
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
