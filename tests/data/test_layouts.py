"""Every layout, built as the public dataset comes, recognised and read without being told which it is."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from vesalius.data.index import index
from vesalius.data.masks import read_mask
from vesalius.errors import VesaliusError

DISC = (np.hypot(*np.indices((12, 16)) - np.array([6, 8]).reshape(2, 1, 1)) < 4).astype(np.uint8)


@pytest.fixture
def indexed(tmp_path, capsys):
    """A function that indexes ``tmp_path/set``, checks the layout found, and gives rows by file name without suffix."""

    def run(layout: str, **options) -> dict[str, dict]:
        table = index(tmp_path / "set", tmp_path / "t.parquet", **options)
        assert f"layout: {layout} (" in capsys.readouterr().err
        return {row["path"].rsplit("/", 1)[1].split(".")[0]: row for row in table.to_dicts()}

    return run


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


def test_image_folders(picture, root, indexed):
    for name in ("benign/a", "benign/b", "malignant/c", "malignant/d"):
        picture(root / f"{name}.png")
    rows = indexed("image-folders")
    assert rows["c"]["labels"] == ["malignant"] and rows["c"]["annotated"] == ["benign", "malignant"]


def test_image_folders_in_splits(picture, root, indexed):
    for name in ("train/benign/a", "train/benign/b", "Valid/malignant/c", "test/malignant/d", "test/benign/e"):
        picture(root / f"{name}.jpg")
    rows = indexed("image-folders")
    assert [rows[name]["split"] for name in "abcde"] == ["train", "train", "val", "test", "test"]
    assert rows["d"]["labels"] == ["malignant"]


def test_folders_of_organs_are_not_classes(picture, root, indexed):
    for name in ("breast/a", "breast/b", "thyroid_us/c", "thyroid_us/d", "e"):
        picture(root / f"{name}.png")
    rows = indexed("folder", organ="liver")
    assert [rows[name]["organ"] for name in "ace"] == ["breast", "thyroid", "liver"]
    assert all(row["labels"] == [] for row in rows.values())


def test_a_list(picture, root, indexed):
    for name in "abc":
        picture(root / "images" / f"{name}.png")
        picture(root / "masks" / f"m_{name}.png", DISC)
    clean = picture(root / "clean.png")
    (root / "index.csv").write_text(
        "Image Index,Finding Labels,split,mask,Patient ID,organ,pixel_mm,target,age\n"
        "a.png,cyst|nodule,train,masks/m_a.png,7,liver,0.25,clean.png,50\n"  # the name alone, as NIH gives it
        "images/b.png,,test,masks/m_b.png,8,liver,,,51\n"
        "images/c.png,cyst,extra,,7,kidney,,,52\n"
    )
    rows = indexed("list", mask_classes=("head",))
    assert rows["a"] | {"sha256": ""} == {
        "path": str(root / "images" / "a.png"),
        "frame": None,
        "frames": 1,
        "modality": None,
        "organ": "liver",
        "patient": "set/7",
        "study": None,
        "size": [12, 16],
        "spacing": [0.25, 0.25],
        "split": "train",
        "labels": ["cyst", "nodule"],
        "annotated": ["cyst", "nodule", "head"],
        "mask": str(root / "masks" / "m_a.png"),
        "mask_classes": ["head"],
        "target": str(clean),
        "sha256": "",
        "duplicate_of": None,
        "dataset": "set",
        "channels": [],
    }
    assert rows["b"]["labels"] == [] and rows["b"]["annotated"] == ["cyst", "nodule", "head"]
    assert rows["c"]["split"] == "train"  # as its patient's other image


def test_busi(picture, root, indexed):
    left, right = DISC.copy(), DISC.copy()
    left[:, 8:], right[:, :8] = 0, 0
    for name in ("benign/benign (1)", "benign/benign (2)", "normal/normal (1)"):
        picture(root / f"{name}.png")
    picture(root / "benign/benign (1)_mask.png", left * 255)
    picture(root / "benign/benign (1)_mask_1.png", right * 255)
    picture(root / "benign/benign (2)_mask.png", DISC)
    picture(root / "normal/normal (1)_mask.png", DISC * 0)
    rows = indexed("busi", organ="breast")
    assert sorted(rows) == ["benign (1)", "benign (2)", "normal (1)"]
    assert (read_mask(rows["benign (1)"]) == DISC).all() and not read_mask(rows["normal (1)"]).any()
    assert rows["normal (1)"]["labels"] == ["normal"] and rows["normal (1)"]["annotated"][-1] == "lesion"


def test_hc18(picture, root, indexed):
    y, x = np.indices((60, 80))
    radius = np.hypot((x - 40) / 25, (y - 30) / 15)
    for name in ("training_set/010_HC", "training_set/010_2HC", "training_set/011_HC", "test_set/010_HC"):
        picture(root / f"{name}.png", size=(60, 80))
        if name.startswith("training"):
            picture(root / f"{name}_Annotation.png", (abs(radius - 1) < 0.04).astype(np.uint8) * 255)
    header = "filename,pixel size(mm),head circumference (mm)\n"
    (root / "training_set_pixel_size_and_HC.csv").write_text(header + "010_HC.png,0.07,44\n011_HC.png,0.2,80\n")
    (root / "test_set_pixel_size.csv").write_text("filename,pixel size(mm)\n010_HC.png,0.11\n")
    indexed("hc18")
    rows = pl.read_parquet(root.parent / "t.parquet").sort("path").to_dicts()
    assert [row["patient"] for row in rows] == ["set/test_set/010"] + [
        f"set/training_set/{n}" for n in ("010", "010", "011")
    ]
    assert [row["spacing"] for row in rows] == [[0.11] * 2, None, [0.07] * 2, [0.2] * 2]
    assert rows[0]["mask"] is None and rows[0]["annotated"] == []
    filled = read_mask(rows[1] | {"mask": str(root.parent / rows[1]["mask"])})
    assert abs(int(filled.sum()) - int((radius <= 1).sum())) < 20


@pytest.mark.parametrize("form", ["decathlon", "nnunet"])
def test_msd(picture, root, indexed, form):
    rng = np.random.default_rng(0)
    suffix = "_0000" if form == "nnunet" else ""
    for case in ("c_1", "c_2", "c_3"):
        picture(root / f"imagesTr/{case}{suffix}.nii.gz", rng.normal(size=(16, 12, 5)).astype(np.float32))
    for case in ("c_1", "c_2", "c_9"):
        picture(root / f"labelsTr/{case}.nii.gz", rng.integers(0, 3, (16, 12, 5), dtype=np.uint8))
    (root / "imagesTr/._c_1.nii.gz").write_bytes(b"left by macOS")
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    if form == "nnunet":
        labels = {name: int(value) for value, name in labels.items()}
    (root / "dataset.json").write_text(json.dumps({"name": "Liver", "modality": {"0": "CT"}, "labels": labels}))
    indexed("msd")
    rows = pl.read_parquet(root.parent / "t.parquet").filter(pl.col("patient") == "set/c_1").to_dicts()
    assert [row["frame"] for row in rows] == [0, 1, 2, 3, 4] and len({row["split"] for row in rows}) == 1
    assert rows[0]["mask_classes"] == ["Anterior", "Posterior"] and rows[0]["organ"] == "liver"
    assert rows[0]["size"] == [12, 16] and rows[0]["spacing"] == [0.5, 0.5] and rows[0]["modality"] == "CT"
    whole = indexed("msd", volumes=True)
    first, alone = whole[f"c_1{suffix}"], whole[f"c_3{suffix}"]
    assert first["frame"] is None and first["size"] == [5, 12, 16] and first["spacing"] == [2.0, 0.5, 0.5]
    assert alone["mask"] is None and alone["annotated"] == []


def test_usfm(picture, root, indexed):
    for split in ("training_set", "val_set", "test_set"):
        picture(root / split / "image/site image/1.png")
        picture(root / split / "mask/site image/1.png", DISC * 100)
    indexed("usfm")
    rows = pl.read_parquet(root.parent / "t.parquet").to_dicts()
    assert sorted(row["split"] for row in rows) == ["test", "train", "val"]
    assert (read_mask(rows[0] | {"mask": str(root / "test_set/mask/site image/1.png")}) == DISC).all()
    assert rows[0]["mask_classes"] == ["foreground"]


def test_voc(picture, root, indexed):
    for name in ("a", "b"):
        picture(root / f"JPEGImages/{name}.jpg")
        picture(root / f"SegmentationClass/{name}.png", DISC * 4)
    picture(root / "SegmentationClass/b.png", DISC * 2)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("b\n")
    rows = indexed("voc")
    assert (rows["a"]["split"], rows["b"]["split"]) == ("train", "val")
    assert rows["a"]["mask_classes"] == [f"class_{i}" for i in range(1, 5)]
    assert read_mask(rows["b"]).max() == 2


def test_paired_trees(picture, root, indexed):
    for split in ("train", "val", "test"):
        for tree in ("images", "images_gaussian"):
            picture(root / tree / split / f"{split}1.png")
        picture(root / "masks" / split / f"{split}1.png", DISC * 255)
    rows = indexed("paired", mask_classes=("nodule",))
    assert {name: row["split"] for name, row in rows.items()} == {"train1": "train", "val1": "val", "test1": "test"}
    assert rows["val1"]["annotated"] == ["nodule"] and "/images/" in rows["val1"]["path"]


def test_an_unknown_layout_names_the_nearest(picture, root, tmp_path):
    picture(root / "a.png")
    with pytest.raises(VesaliusError, match="unknown layout 'bussi'; did you mean 'busi'"):
        index(root, tmp_path / "t.parquet", layout="bussi")
