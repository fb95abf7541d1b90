"""Cases of several channels are put together by name, or refused in one line; datasets are found as they come."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from vesalius.data.index import index
from vesalius.data.table import load_table, mask_names
from vesalius.data.volumes.cases import case_of, read_case
from vesalius.errors import VesaliusError


def indexed(root: Path, layout: str) -> list[dict]:
    table = index(root, root.parent / "t.parquet", volumes=True)
    names = {row["path"] for row in load_table(root.parent / "t.parquet").to_dicts()}
    assert names == set(table["path"]), layout
    return table.sort("path").to_dicts()


def test_brats_as_it_comes(tmp_path, volume, labels):
    root = tmp_path / "set"
    for case in ("BraTS2021_00000", "BraTS2021_00002"):
        for name in ("t2", "flair", "t1ce", "t1"):
            volume(root / "train" / case / f"{case}_{name}.nii.gz")
        volume(root / "train" / case / f"{case}_seg.nii.gz", labels * (labels != 3))
    for visit in ("000", "001"):
        case = f"BraTS-GLI-00005-{visit}"
        for name in ("t1n", "t1c", "t2w", "t2f"):
            volume(root / case / f"{case}-{name}.nii.gz")
        volume(root / case / f"{case}-seg.nii.gz", np.minimum(labels, 3))
    rows = indexed(root, "brats")
    assert [Path(row["path"].split(";")[0]).parent.name for row in rows] == [
        "BraTS-GLI-00005-000",
        "BraTS-GLI-00005-001",
        "BraTS2021_00000",
        "BraTS2021_00002",
    ]
    new, old = rows[1], rows[2]
    assert new["channels"] == old["channels"] == ["flair", "t1", "t1ce", "t2"]
    assert new["patient"] == rows[0]["patient"] == "set/BraTS-GLI-00005" and old["patient"] == "set/BraTS2021_00000"
    assert old["split"] == "train" and old["size"] == [5, 6, 7] and old["spacing"] == [2, 1, 1]
    # Enhancing tumour is 4 in the old numbering and 3 in the new one: the same name.
    assert old["mask_classes"][3] == new["mask_classes"][2] == "enhancing tumour" and old["mask_classes"][2] == ""
    assert sorted(old["annotated"]) == sorted(new["annotated"]) == ["enhancing tumour", "necrotic core", "oedema"]
    assert len(mask_names(pl.DataFrame(rows))) == 3
    image = case_of(old)
    t1ce = case_of({"path": old["path"].split(";")[2]})
    assert image.channels == ("flair", "t1", "t1ce", "t2") and np.array_equal(image.array[2], t1ce.array[0])

    slices = index(root, tmp_path / "slices.parquet", frames=1)
    assert len(slices) == 16 and slices["channels"].list.len().sum() == 0


def test_cases_named_as_in_brats_may_share_a_folder_and_have_one_channel(tmp_path, volume, labels):
    root = tmp_path / "set"
    for case in ("a", "b"):
        volume(root / f"{case}_t1.nii.gz")
        volume(root / f"{case}_seg.nii.gz", labels * (labels != 3))
    rows = indexed(root, "brats")
    assert [(row["patient"], row["channels"], Path(row["mask"]).name) for row in rows] == [
        ("set/a", ["t1"], "a_seg.nii.gz"),
        ("set/b", ["t1"], "b_seg.nii.gz"),
    ]


def test_atlas_as_it_comes(tmp_path, volume):
    root, lesion = tmp_path / "set", np.zeros((7, 6, 5), np.uint8)
    lesion[2:4, 2:4, 1] = 1
    for part, subject in [("train", "sub-r001s001"), ("train", "sub-r001s002"), ("test", "sub-r009s001")]:
        name = f"{subject}_ses-1_space-MNI152NLin2009aSym"
        anat = root / part / "derivatives" / "ATLAS" / subject / "ses-1" / "anat"
        volume(anat / f"{name}_T1w.nii.gz")
        if part == "train":
            volume(anat / f"{name}_label-L_desc-T1lesion_mask.nii.gz", lesion)
    rows = indexed(root, "atlas")
    assert [row["patient"] for row in rows] == ["set/sub-r009s001", "set/sub-r001s001", "set/sub-r001s002"]
    assert [row["mask_classes"] for row in rows] == [[], ["stroke lesion"], ["stroke lesion"]]
    assert {tuple(row["channels"]) for row in rows} == {("t1",)} and rows[0]["annotated"] == []


def test_decathlon_and_nnunet_channels(tmp_path, volume, labels):
    description = {
        "channel_names": {"0": "T1w", "1": "FLAIR"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "name": "x",
    }
    for root, many in ((tmp_path / "msd", False), (tmp_path / "nnunet", True)):
        for case in ("c_001", "c_002"):
            if many:
                for k in range(2):
                    volume(root / "imagesTr" / f"{case}_{k:04d}.nii.gz")
            else:
                voxels = np.random.default_rng(len(case)).integers(0, 99, (7, 6, 5, 2)).astype(np.int16)
                volume(root / "imagesTr" / f"{case}.nii.gz", voxels)
            volume(root / "labelsTr" / f"{case}.nii.gz", labels % 3)
        (root / "dataset.json").write_text(json.dumps(description))
        rows = indexed(root, "msd")
        assert len(rows) == 2 and all(row["channels"] == ["T1w", "FLAIR"] and row["frame"] is None for row in rows)
        assert len(rows[0]["path"].split(";")) == (2 if many else 1) and rows[0]["mask_classes"] == ["a", "b"]
        assert case_of(rows[0]).array.shape == (2, 5, 6, 7)


def series(folder: Path, uid: str, heights: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, height in enumerate(heights):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"{uid}.{k + 1}"
        data.SeriesInstanceUID, data.StudyInstanceUID, data.PatientID, data.Modality = uid, "1.2", "p1", "CT"
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 5, 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.PixelSpacing = 15, 1, [1, 1]
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, height]
        data.PixelData = np.random.default_rng(k).integers(-99, 99, (4, 5)).astype(np.int16).tobytes()
        data.save_as(folder / f"{uid}_{k}.dcm", enforce_file_format=True)


def test_series_in_plain_folders(tmp_path, volume):
    root = tmp_path / "scans"
    series(root / "liver", "1.2.3", [0, 2, 4])
    series(root / "mixed", "1.2.4", [6, 3, 0, 9])
    series(root / "mixed", "1.2.5", [0, 1])
    series(root / "broken", "1.2.6", [0, 2, 8, 10])
    volume(root / "n.nii.gz")
    rows = {Path(row["path"]).name: row for row in indexed(root, "folder")}
    assert set(rows) == {"liver", "1.2.4_0.dcm", "1.2.5_0.dcm", "n.nii.gz"}
    assert rows["liver"]["size"] == [3, 4, 5] and rows["liver"]["spacing"] == [2, 1, 1]
    assert rows["liver"]["organ"] == "liver" and rows["1.2.4_0.dcm"]["size"] == [4, 4, 5]
    assert case_of(rows["1.2.4_0.dcm"]).size == (4, 4, 5)
    reasons = pl.read_csv(tmp_path / "t.unreadable.csv")
    assert reasons.height == 1 and "slices are missing: 2 between 1.2.6_1.dcm and 1.2.6_2.dcm" in reasons["reason"][0]


def test_a_series_whose_identifiers_were_removed_is_one_case(tmp_path):
    series(tmp_path / "scans" / "liver", "1.2.3", [4, 0, 2])
    for path in (tmp_path / "scans" / "liver").iterdir():
        data = dcmread(path)
        del data.SeriesInstanceUID, data.StudyInstanceUID
        data.save_as(path)
    (row,) = indexed(tmp_path / "scans", "folder")
    assert row["size"] == [3, 4, 5]


def test_a_list_of_cases(tmp_path, volume, labels):
    root = tmp_path / "set"
    for name in ("a_t1", "a_pd"):
        volume(root / f"{name}.nii.gz")
    volume(root / "m.nii.gz", labels)
    (root / "index.csv").write_text("path,channels,mask,mask_classes\na_t1.nii.gz;a_pd.nii.gz,T1;PD,m.nii.gz,a;b;c;d\n")
    (row,) = indexed(root, "list")
    assert row["channels"] == ["T1", "PD"] and case_of(row).array.shape == (2, 5, 6, 7)


def test_tables_of_earlier_versions_are_read(tmp_path, volume):
    volume(tmp_path / "set" / "a.nii.gz")
    table = index(tmp_path / "set", tmp_path / "t.parquet", volumes=True)
    table.drop("channels").write_parquet(tmp_path / "t.parquet")
    assert load_table(tmp_path / "t.parquet")["channels"].to_list() == [[]]


@pytest.mark.parametrize(
    ("others", "channels", "says"),
    [
        (
            {"b": (7, 6, 4)},
            ("T1", "T2"),
            r"b.nii.gz: has the shape \(4, 6, 7\), .*a.nii.gz, of which it is another chan",
        ),
        ({"b": None}, ("T1", "T2"), r"b.nii.gz: lies up to 3 mm from .*a.nii.gz.*; register the channels"),
        ({"b": (7, 6, 5)}, ("T1",), r"1 channel names for 2 files; name every channel"),
        ({}, ("T1", "T2"), r"a.nii.gz: holds one volume, where 2 are meant"),
    ],
)
def test_channels_that_do_not_fit(tmp_path, volume, others, channels, says):
    paths = [volume(tmp_path / "a.nii.gz")]
    for name, shape in others.items():
        affine = None if shape else np.array([[1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
        paths.append(volume(tmp_path / f"{name}.nii.gz", np.ones(shape or (7, 6, 5), np.int16), affine))
    with pytest.raises(VesaliusError, match=says) as caught:
        read_case(paths, channels)
    assert "\n" not in str(caught.value)


def test_four_axes_where_three_are_meant(tmp_path, volume):
    path = volume(tmp_path / "a.nii.gz", np.ones((7, 6, 5, 3), np.int16))
    with pytest.raises(VesaliusError, match=r"is 4-D, with 3 volumes, where 1 is meant; name its channels"):
        read_case([path])
    assert read_case([path], ("x", "y", "z")).channels == ("x", "y", "z")
