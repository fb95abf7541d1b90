from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from vesalius.data.index import index
from vesalius.data.table import check_splits, load_table
from vesalius.errors import VesaliusError


@pytest.fixture
def scans(picture, tmp_path) -> Path:
    """Eight images of four patients, named in the files."""
    for patient in range(4):
        for number in range(2):
            picture(tmp_path / "scans" / f"{patient}_{number}.png")
    return tmp_path / "scans"


def unreadable(output: Path) -> dict[str, str]:
    return {Path(path).name: reason for path, reason in pl.read_csv(output.with_name("t.unreadable.csv")).iter_rows()}


def test_bad_files_are_listed_with_the_reason_and_the_rest_goes_on(picture, scans, tmp_path, capsys):
    picture(scans / "constant.png", np.full((9, 9), 7, np.uint8))
    picture(scans / "nan.nii.gz", np.where(np.arange(60).reshape(3, 4, 5) == 7, np.nan, 1.0))
    cut = picture(scans / "cut.png").read_bytes()
    (scans / "cut.png").write_bytes(cut[: len(cut) // 2])
    (scans / "notes.txt").write_text("not an image")
    table = index(scans, tmp_path / "t.parquet")
    assert len(table) == 8
    reasons = unreadable(tmp_path / "t.parquet")
    assert reasons.keys() == {"constant.png", "nan.nii.gz", "cut.png"}
    assert "every pixel is 7" in reasons["constant.png"] and "1 of 60 pixels are NaN" in reasons["nan.nii.gz"]
    shown = capsys.readouterr().err
    assert "3 could not be used" in shown and "constant.png" in shown
    for name in reasons:
        (scans / name).unlink()
    index(scans, tmp_path / "t.parquet")
    assert not (tmp_path / "t.unreadable.csv").exists()


def test_patients_are_found_by_expression_or_said_to_be_unknown(scans, tmp_path, capsys):
    table = index(scans, tmp_path / "t.parquet", group=r"^(\d)_", val=0.25, test=0.25)
    assert table["patient"].n_unique() == 4 and table["patient"][0] == "scans/0"
    assert table.group_by("patient").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 4
    assert dict(table["split"].value_counts().rows()) == {"train": 4, "val": 2, "test": 2}
    assert "no patient is named" not in capsys.readouterr().err
    index(scans, tmp_path / "t.parquet")
    assert "no patient is named for 8 of 8 files" in capsys.readouterr().err
    with pytest.raises(VesaliusError, match="found in no path"):
        index(scans, tmp_path / "t.parquet", group="patient")


def test_duplicates_share_a_split(scans, tmp_path):
    for number in range(4):  # the copies join patients 0-1, 1-2, 2-3
        shutil.copy(scans / f"{number}_0.png", scans / f"{(number + 1) % 4}_copy.png")
    table = index(scans, tmp_path / "t.parquet", group=r"^(\d)_", val=0.25, test=0.25)
    assert table["split"].n_unique() == 1
    copies = table.filter(pl.col("duplicate_of").is_not_null())
    assert len(copies) == 4
    assert all(
        Path(a).read_bytes() == Path(b).read_bytes() for a, b in copies.select("path", "duplicate_of").iter_rows()
    )
    assert len(index(scans, tmp_path / "t.parquet", keep_duplicates=False)) == 8


def test_labels_join_by_path_name_or_stem(scans, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text(
        "file;label;patient\n0_0.png;cyst;A\n0_1;;A\nelsewhere/1_0.png;nodule;B\nx;;\n"
    )
    rows = index(scans, tmp_path / "t.parquet", labels=tmp_path / "labels.csv").to_dicts()
    assert [row["labels"] for row in rows[:4]] == [["cyst"], [], ["nodule"], []]
    assert [row["patient"] for row in rows[:4]] == ["scans/A", "scans/A", "scans/B", None]
    assert rows[0]["annotated"] == ["cyst", "nodule"] and rows[1]["annotated"] == []
    assert "1 rows of labels.csv name no file: x" in capsys.readouterr().err
    (tmp_path / "labels.csv").write_text("file,label\nq.png,cyst\n")
    with pytest.raises(VesaliusError, match=r"none of its 1 rows names a file in .* \(the first: q\.png\)"):
        index(scans, tmp_path / "t.parquet", labels=tmp_path / "labels.csv")


def test_a_leaking_split_is_refused_and_can_be_replaced(scans, tmp_path):
    lines = [f"{p}_{n}.png,{p},{'train' if n else 'test'}" for p in range(4) for n in range(2)]
    (scans / "index.csv").write_text("\n".join(["path,patient,split", *lines]))
    with pytest.raises(VesaliusError, match="4 patients are in more than one split: scans/0"):
        index(scans, tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()
    check_splits(index(scans, tmp_path / "t.parquet", resplit=True))


def test_masks_and_pairs_must_fit_their_image(picture, scans, tmp_path):
    picture(tmp_path / "scans" / "masks" / "big.png", size=(24, 16))
    (scans / "index.csv").write_text("path,mask,target\n0_0.png,masks/big.png,\n0_1.png,,gone.png\n1_0.png,,1_1.png\n")
    assert [Path(path).name for path in index(scans, tmp_path / "t.parquet")["path"]] == ["1_0.png"]
    reasons = unreadable(tmp_path / "t.parquet")
    assert "big.png: has the shape (24, 16)" in reasons["0_0.png"] and "gone.png" in reasons["0_1.png"]


def test_frames(picture, tmp_path):
    volume = np.random.default_rng(0).normal(size=(6, 5, 9)).astype(np.float32)
    volume[:, :, 7] = 3
    picture(tmp_path / "set" / "v.nii.gz", volume)

    def frames(**options):
        return index(tmp_path / "set", tmp_path / "t.parquet", **options)["frame"].to_list()

    assert frames() == list(range(9))
    assert frames(frames=1) == [4] and frames(frames=3) == [1, 4, 7]
    assert frames(volumes=True) == [None]
    assert frames(check=True) == [0, 1, 2, 3, 4, 5, 6, 8]
    assert unreadable(tmp_path / "t.parquet")["v.nii.gz"].startswith("frame 7: constant image")
    with pytest.raises(VesaliusError, match="frames = 0"):
        frames(frames=0)


@pytest.mark.parametrize(
    ("folder", "output", "message"),
    [
        ("none", "t.parquet", "there is no such folder"),
        ("scans/0_0.png", "t.parquet", "is a file, not a folder"),
        ("empty", "t.parquet", "holds no images"),
        ("bad", "t.parquet", "none of its 1 images can be used"),
        ("scans", "t.csv", "ends in .parquet"),
        ("scans", "scans/0_0.png/t.parquet", "cannot be written"),
    ],
)
def test_hopeless_requests_leave_nothing(scans, tmp_path, folder, output, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.dcm").write_bytes(b"DICM")
    with pytest.raises(VesaliusError, match=message) as error:
        index(tmp_path / folder, tmp_path / output)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.parquet"))


def test_the_table_does_not_depend_on_the_number_of_workers(scans, tmp_path):
    one = index(scans, tmp_path / "t.parquet", workers=1)
    assert one.equals(index(scans, tmp_path / "u.parquet", workers=4))
    assert one.equals(load_table(tmp_path / "t.parquet"))


@pytest.mark.parametrize(
    ("name", "rows", "split"),
    [("us_breast_busi", 220, {"train": 132, "val": 45, "test": 43}), ("us_fetal_hc18", 44, None)],
)
def test_real_ultrasound_lists(shared_data, tmp_path, name, rows, split):
    table = index(shared_data(name), tmp_path / "t.parquet")
    assert len(table) == rows and table["modality"].unique().to_list() == ["US"]
    assert table["patient"].null_count() == 0 and table["mask"].null_count() == 0
    assert split is None or dict(table["split"].value_counts().rows()) == split
    assert load_table(tmp_path / "t.parquet").equals(table)


def test_a_real_decathlon_task(shared_data, tmp_path):
    table = index(shared_data("mri_hippocampus"), tmp_path / "t.parquet", volumes=True)
    assert len(table) == 130 and table["mask_classes"][0].to_list() == ["Anterior", "Posterior"]
    assert table["spacing"][0].to_list() == [1.0, 1.0, 1.0]


def test_real_hostile_dicom(shared_data, tmp_path):
    table = index(shared_data("dicom_zoo"), tmp_path / "t.parquet", layout="folder", check=True)
    rows = {(Path(row["path"]).name, row["frame"]): row for row in table.to_dicts()}
    assert len([name for name, _ in rows if name == "emri_small.dcm"]) == 10
    assert rows["US1_UNCI.dcm", None]["modality"] == "US" and rows["US1_UNCI.dcm", None]["study"]
    reasons = unreadable(tmp_path / "t.parquet")
    assert reasons["liver.dcm"] == "is a segmentation (SEG), not a picture"
    assert reasons.keys() == {"liver.dcm", "liver_nonbyte_aligned_rle.dcm"}


def test_a_truncated_dicom_is_listed(shared_data, tmp_path):
    for name in ("US1_UNCI.dcm", "color-px.dcm"):
        whole = (shared_data("dicom_zoo") / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2] if name == "US1_UNCI.dcm" else whole)
    assert [Path(path).name for path in index(tmp_path, tmp_path / "t.parquet")["path"]] == ["color-px.dcm"]
    assert unreadable(tmp_path / "t.parquet").keys() == {"US1_UNCI.dcm"}
