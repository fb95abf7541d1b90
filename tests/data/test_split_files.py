"""Pickled splits are read, not run; what they do not name is left out."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from vesalius.data.entry import Entry, Folder
from vesalius.data.split_files import read_pickle, with_split
from vesalius.errors import ConfigError, VesaliusError

ROOT = Path("/data/kits")
FOLDS = [
    {"train": {"case_00000": ["old/case_00000/imaging.nii.gz", "x"]}, "val": {}, "test": {"case_00001": ["y", "z"]}},
    {"train": {"case_00001": ["y", "z"]}, "val": {"case_00000": ["y", "z"]}, "test": {}},
]


class Exploit:
    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


def entries(*cases: str) -> list[Entry]:
    return [Entry(ROOT / case / "imaging.nii.gz", patient=case, masks=(ROOT / case / "m.nii.gz",)) for case in cases]


def write(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_values_and_arrays_are_read(tmp_path: Path, protocol: int):
    value = [{"train": {"a": ("x", 1)}, "n": np.float64(2), "cases": np.array(["b", "c"], dtype=object)}]
    found = read_pickle(write(tmp_path / "s.pkl", value, protocol))
    assert found[0]["train"] == {"a": ("x", 1)}
    assert (found[0]["n"], list(found[0]["cases"])) == (2, ["b", "c"])


def test_anything_else_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "s.pkl", [{"train": {"a": Exploit()}}])
    with pytest.raises(VesaliusError, match=r"asks for .*was not run"):
        read_pickle(path)
    assert not Path("owned").exists()
    path.write_bytes(b"\x80\x04")
    with pytest.raises(VesaliusError, match="not a pickle of plain values"):
        read_pickle(path)


def test_a_fold_gives_each_case_its_part(tmp_path: Path):
    path, folder = write(tmp_path / "split.pkl", FOLDS), Folder(ROOT, ())
    found = with_split(entries("case_00000", "case_00001", "case_00002"), path, 0, folder)
    assert [(entry.patient, entry.split) for entry in found] == [("case_00000", "train"), ("case_00001", "test")]
    assert folder.notes == ["1 images are not in the split and left out: case_00002/imaging.nii.gz"]
    assert with_split(entries("case_00000"), path, 1, folder)[0].split == "val"
    with pytest.raises(ConfigError, match="2 folds"):
        with_split(entries("case_00000"), path, 2, folder)
    with pytest.raises(VesaliusError, match="names none of the 1 images"):
        with_split(entries("patient_7"), path, 0, folder)


def test_a_file_name_that_two_parts_have_tells_nothing(tmp_path: Path):
    folds = [{"train": {"1": ["/home/them/a/scan.nii.gz", ""]}, "test": {"2": ["/home/them/b/scan.nii.gz", ""]}}]
    path, folder = write(tmp_path / "s.pkl", folds), Folder(ROOT, ())
    images = [Entry(ROOT / folder / "scan.nii.gz", patient="?") for folder in "abc"]
    found = with_split(images, path, 0, folder)
    assert [(entry.path.parent.name, entry.split) for entry in found] == [("a", "train"), ("b", "test")]
    write(path, [{"train": {"1": ["a/x", ""]}, "test": {"1": ["b/x", ""]}}])
    with pytest.raises(VesaliusError, match="case 1 in two parts"):
        with_split(images, path, 0, folder)


@pytest.mark.parametrize(("name", "test"), [("masam", 6), ("transunet", 12)])
def test_splits_of_btcv_by_name(name: str, test: int):
    numbers = [*range(1, 11), *range(21, 41)]
    cases = [Entry(ROOT / f"img{n:04}.nii.gz", patient=f"img{n:04}", masks=(ROOT / "m",)) for n in numbers]
    unlabelled = Entry(ROOT / "img0061.nii.gz", patient="img0061")
    found = with_split([*cases, unlabelled], name, 0, Folder(ROOT, ()))
    assert [entry.split for entry in found].count("test") == test
    assert len(found) == 30
    with pytest.raises(ConfigError, match="masam"):
        with_split(cases, "masan", 0, Folder(ROOT, ()))
