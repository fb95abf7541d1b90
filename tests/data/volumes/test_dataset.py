"""Volumes reach a network with their masks on them, from a cache that is shared and never wrong."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import nibabel
import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader

from vesalius.data.datasets import Draws, generator
from vesalius.data.index import index
from vesalius.data.sampling import DrawSampler
from vesalius.data.volumes import cache as caching
from vesalius.data.volumes.cache import VolumeCache
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import PatchView, VolumeDataset, WholeView
from vesalius.data.volumes.intensity import Window
from vesalius.errors import ConfigError, VesaliusError
from vesalius.evaluation.sliding import sliding_window

CONTRACT = VolumeContract(("t1", "t2"), spacing=(1, 1, 1), intensity=Window(0, 1000), roi=(6, 6, 4))
CLASSES = ["a", "b", "c", "d"]


@pytest.fixture
def table(tmp_path: Path, volume, labels: np.ndarray) -> pl.DataFrame:
    """Four cases of two channels."""
    rows = ["path,channels,mask,mask_classes"]
    for k in range(4):
        for name in ("t1", "t2"):
            volume(tmp_path / "set" / f"c{k}_{name}.nii.gz")
        volume(tmp_path / "set" / f"c{k}_seg.nii.gz", labels)
        rows.append(f"c{k}_t1.nii.gz;c{k}_t2.nii.gz,t1;t2,c{k}_seg.nii.gz,{';'.join(CLASSES)}")
    (tmp_path / "set" / "index.csv").write_text("\n".join(rows))
    return index(tmp_path / "set", tmp_path / "t.parquet", volumes=True).sort("path")


def samples_equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def test_a_sample_is_the_same_with_and_without_cache(tmp_path, table, capsys):
    plain = VolumeDataset(table, CONTRACT, task="segmentation")
    cached = VolumeDataset(table, CONTRACT, task="segmentation", cache=tmp_path / "cache")
    assert "4 of 4 volumes to prepare, at most" in capsys.readouterr().err
    for k in range(4):
        assert samples_equal(plain[k], cached[k])
    sample = cached[1]
    assert (
        sample["image"].dtype == torch.int16
        and sample["image"].shape == (2, 7, 6, 9)
        and cached.classes == ("a", "b", "c", "d")
    )
    seg = nibabel.load(tmp_path / "set" / "c1_seg.nii.gz").get_fdata()
    assert np.array_equal(sample["mask"][:, :, ::2].numpy(), seg)  # RAS, and 2 mm slices made 1 mm ones
    value, *place = sample["points"][-1].tolist()
    assert sample["mask"][tuple(place)] == value == 4 and sample["annotated"].all()
    whole = WholeView(CONTRACT)(sample)
    assert whole["image"].dtype == torch.float32 and torch.equal(whole["mask"], sample["mask"])
    assert torch.allclose(whole["image"], (sample["image"].float() / 1000).clamp(0, 1))

    capsys.readouterr()
    again = VolumeDataset(table, CONTRACT, task="segmentation", cache=tmp_path / "cache")
    assert capsys.readouterr().err == "" and samples_equal(again[2], cached[2])


def test_the_cache_knows_what_was_done_and_to_what(tmp_path, table, volume, labels):
    folder = tmp_path / "cache"

    def entries() -> set[str]:
        return {path.name for path in folder.iterdir() if path.is_dir() and path.name != "hashes"}

    VolumeDataset(table, CONTRACT, task="segmentation", cache=folder)
    first = entries()
    assert len(first) == 4 and not list(folder.glob(".*"))
    other_roi = VolumeContract(("t1", "t2"), spacing=(1, 1, 1), intensity=Window(0, 1000), roi=(2, 2, 2))
    VolumeDataset(table, other_roi, task="segmentation", cache=folder)
    assert entries() == first
    VolumeDataset(table, CONTRACT, task="segmentation", classes=["b", "a"], cache=folder)
    VolumeDataset(table, CONTRACT, cache=folder)
    assert len(entries()) == 12
    volume(tmp_path / "set" / "c0_seg.nii.gz", labels // 2)
    changed = VolumeDataset(table, CONTRACT, task="segmentation", cache=folder)
    assert len(entries()) == 13 and changed[0]["mask"].max() == 2 and changed[1]["mask"].max() == 4


def get(folder: Path, row: dict, start, out) -> None:
    cache = VolumeCache(folder, CONTRACT, classes=CLASSES)
    count = 0
    whole = caching.prepare

    def counted(*args, **options):
        nonlocal count
        count += 1
        return whole(*args, **options)

    caching.prepare = counted
    start.wait()
    total = int(cache.get(row).image.astype(int).sum())
    out.put((count, total))


def test_two_runs_at_once_prepare_a_case_once(tmp_path, table):
    context = multiprocessing.get_context("fork")
    start, out, row = context.Barrier(3), context.Queue(), table.to_dicts()[0]
    runs = [context.Process(target=get, args=(tmp_path / "cache", row, start, out)) for _ in range(3)]
    for run in runs:
        run.start()
    found = [out.get(timeout=20) for _ in runs]
    for run in runs:
        run.join()
    assert sum(count for count, _ in found) == 1 and len({total for _, total in found}) == 1


def test_several_processes_fill_one_cache_and_name_the_case_that_fails(tmp_path, table):
    plain = VolumeDataset(table, CONTRACT, task="segmentation")
    filled = VolumeDataset(table, CONTRACT, task="segmentation", cache=tmp_path / "cache", workers=2)
    assert len(list((tmp_path / "cache").glob("*/case.json"))) == 4
    assert all(samples_equal(plain[k], filled[k]) for k in range(4))
    bad = table["path"][2].split(";")[1]
    image = nibabel.load(bad)
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine), bad)
    with pytest.raises(VesaliusError, match=r"c2_t.\.nii\.gz: 210 voxels are NaN"):
        VolumeDataset(table, CONTRACT, cache=tmp_path / "other", workers=2)


def test_a_killed_preparation_leaves_no_half_case(tmp_path, table):
    cache, row = VolumeCache(tmp_path / "cache", CONTRACT, classes=CLASSES), table.to_dicts()[0]
    if (child := os.fork()) == 0:
        caching._save = lambda path, write: os._exit(9) if path.name == "mask.npy" else path.write_bytes(b"half")
        cache.get(row)
    os.waitpid(child, 0)
    assert not cache._entry(row).exists() and len(list(cache.folder.glob(".*"))) == 2  # its part and its lock
    assert cache.get(row).mask.max() == 4 and len(list(cache.folder.glob(".*"))) == 0


def test_a_disk_that_is_too_small_is_known_before(tmp_path, table, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        VesaliusError, match=r"4 of 4 volumes to prepare, at most 0.0 MiB \(0.0 MiB free\); choose a fol"
    ):
        VolumeDataset(table, CONTRACT, cache=tmp_path / "cache")


def test_a_mask_lies_by_its_own_affine(tmp_path, table):
    before = VolumeDataset(table, CONTRACT, task="segmentation")[0]["mask"]
    path = tmp_path / "set" / "c0_seg.nii.gz"
    seg = nibabel.load(path)
    turned = seg.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    assert turned.shape != seg.shape
    nibabel.save(turned, path)
    assert torch.equal(VolumeDataset(table, CONTRACT, task="segmentation")[0]["mask"], before)
    away = seg.affine.copy()
    away[0, 3] += 7
    nibabel.save(nibabel.Nifti1Image(np.asarray(seg.dataobj), away), path)
    with pytest.raises(VesaliusError, match=r"c0_seg.nii.gz: lies 7 mm from the image .*c0_t1.nii.gz"):
        VolumeDataset(table, CONTRACT, task="segmentation")[0]
    nibabel.save(nibabel.Nifti1Image(np.asarray(seg.dataobj)[:5], seg.affine), path)
    with pytest.raises(VesaliusError, match=r"c0_seg.nii.gz: has the shape \(5, 6, 5\), the image .*\(5, 6, 7\)"):
        VolumeDataset(table, CONTRACT, task="segmentation")[0]


def test_patches_hold_rare_classes_and_follow_their_draw(table):
    contract = VolumeContract(("t1", "t2"), intensity=Window(0, 1000), roi=(3, 3, 3))
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[:8], mask[15, 15, 15] = 1, 2
    where = np.argwhere(mask)
    sample = {
        "image": torch.from_numpy(np.random.default_rng(0).integers(0, 999, (2, 20, 20, 20)).astype(np.int16)),
        "limits": torch.tensor([[0.0, 1000]] * 2),
        "mask": torch.from_numpy(mask),
        "points": torch.from_numpy(np.column_stack([mask[tuple(where.T)], where]).astype(np.int32)),
        "annotated": torch.tensor([True, True]),
        "row": 7,
    }
    view = PatchView(contract, foreground=1.0)
    patches = [view(sample, generator(0, draw)) for draw in range(60)]
    centres = [int(patch["mask"][1, 1, 1]) for patch in patches]
    assert 15 < centres.count(2) < 45 and centres.count(0) < 5  # a voxel in 8000, and half of the patches
    assert samples_equal(patches[5], view(sample, generator(0, 5))) and not samples_equal(patches[5], patches[6])
    weighted = PatchView(contract, foreground=1.0, class_weights=(0, 1))
    assert all(weighted(sample, generator(0, draw))["mask"][1, 1, 1] == 2 for draw in range(9))
    anywhere = [int(PatchView(contract, foreground=0.0)(sample, generator(0, d))["mask"][1, 1, 1]) for d in range(60)]
    assert anywhere.count(0) > 20 and anywhere.count(2) == 0


def test_image_and_mask_are_turned_alike_and_small_volumes_filled() -> None:
    contract = VolumeContract(("x",), intensity=Window(0, 4), roi=(8, 8, 3))
    mask = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (6, 9, 4)).astype(np.uint8))
    sample = {"image": mask[None].float(), "limits": torch.tensor([[0.0, 4.0]]), "mask": mask, "row": 0}
    view = PatchView(contract, flip=0.5, rot90=0.5)
    seen = set()
    for draw in range(30):
        patch = view(sample, generator(1, draw))
        assert patch["image"].shape == (1, 8, 8, 3) and torch.equal(
            (patch["image"][0] * 4).to(torch.uint8), patch["mask"]
        )
        seen.add(patch["mask"].numpy().tobytes())
    assert len(seen) > 20
    strong = PatchView(contract, scale=0.1, shift=0.1)(sample, generator(1, 0))
    assert not torch.equal(strong["image"], PatchView(contract)(sample, generator(1, 0))["image"])


def test_worker_processes_read_one_cache_and_name_the_case_that_fails(tmp_path, table):
    dataset = VolumeDataset(table, CONTRACT, task="segmentation", cache=tmp_path / "cache")

    def epoch(workers: int) -> list[dict]:
        draws = Draws(dataset, PatchView(CONTRACT), seed=3)
        sampler = DrawSampler(4, seed=0, batch_size=2, total=8)
        return list(DataLoader(draws, batch_sampler=sampler, num_workers=workers))

    here, there = epoch(0), epoch(2)
    assert here[0]["image"].shape == (2, 2, 6, 6, 4) and all(
        samples_equal(a, b) for a, b in zip(here, there, strict=True)
    )
    bare = VolumeDataset(table, CONTRACT)
    (tmp_path / "set" / "c2_t2.nii.gz").write_bytes(b"spoilt")
    with pytest.raises(VesaliusError, match=r"c2_t2.nii.gz"):
        Draws(bare, PatchView(CONTRACT), seed=0)[0, 2]


def test_the_border_without_foreground_is_left_out(tmp_path, volume):
    voxels = np.zeros((12, 10, 9), np.int16)
    voxels[3:7, 2:9, 4:6] = 500
    volume(tmp_path / "set" / "a.nii.gz", voxels)
    table = index(tmp_path / "set", tmp_path / "t.parquet", volumes=True)
    contract = VolumeContract(("CT",), intensity=Window(-100, 900), roi=(4, 4, 4))
    assert VolumeDataset(table, contract, crop=True)[0]["image"].shape == (1, 12, 10, 9)  # 0 HU is not air
    contract = VolumeContract(("CT",), intensity=Window(0, 900), roi=(4, 4, 4))
    assert VolumeDataset(table, contract, crop=True)[0]["image"].shape == (1, 4, 7, 2)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"size": [6, 7]}, {}, "4 of 4 rows are slices or 2-D images; index again with volumes"),
        ({"mask": None}, {"task": "segmentation"}, "4 of 4 volumes have no mask"),
        ({}, {"task": "classification"}, "unknown task 'classification' for volumes"),
        ({}, {"task": "segmentation", "classes": ["aa"]}, "no volume has the class 'aa'; did you mean 'a'"),
    ],
)
def test_a_table_that_cannot_be_learned_from(table, change, options, says):
    columns = [pl.Series(name, [value] * 4, table.schema[name]) for name, value in change.items()]
    with pytest.raises(VesaliusError, match=says):
        VolumeDataset(table.with_columns(columns), CONTRACT, **options)


def test_views_that_make_no_sense():
    with pytest.raises(ConfigError, match="make the first two sides equal"):
        PatchView(VolumeContract(roi=(8, 4, 4)), rot90=0.1)
    with pytest.raises(ConfigError, match="foreground = 2"):
        PatchView(CONTRACT, foreground=2)


def test_a_patch_is_filled_as_the_windows_of_a_prediction_are() -> None:
    contract = VolumeContract(("t1",), intensity=Window(0, 1), roi=(4, 8, 7))
    volume = torch.rand(1, 4, 5, 4)
    patch = PatchView(contract)({"image": volume, "limits": torch.tensor([[0.0, 1.0]])}, torch.Generator())
    seen = []
    sliding_window(lambda window: seen.append(window) or window, volume, roi=contract.roi, title=None)
    assert torch.equal(patch["image"], seen[0][0])
