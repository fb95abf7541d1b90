"""MedFMC: its lists as they come, patients on one side, and the published draws with and without their leak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from vesalius.data.draws import draw
from vesalius.data.entry import Folder
from vesalius.data.index import index
from vesalius.data.layouts import detect
from vesalius.data.medfmc import SETS, published_draws, published_rule
from vesalius.data.table import load_table
from vesalius.errors import ConfigError, VesaliusError

ENDO = "13333_2021.{study:02}_{study:04}_5012{image:04}.png"
COLON = "2019-0{slide}-1-1-1_2019-05-28 23_07_27-lv1-{region}-1-2-3p{image:04}.png"


def endo(study: int, image: int, flags: str = "0 0 0 0") -> str:
    return f"{ENDO.format(study=study, image=image)} {flags}"


def colon(slide: int, region: int, image: int, flag: int) -> str:
    return f"{COLON.format(slide=slide, region=region, image=image)} {flag}"


def chest(image: str, *classes: int) -> str:
    return f"{image}.png {','.join(str(int(number in classes)) for number in range(19))}"


@pytest.fixture
def write(picture, tmp_path) -> Callable[..., Path]:
    """A function that writes a set's lists, and an image for each of their names; and gives its folder."""

    def lists(kind: str, *, at: str = "MedFMC", lists_at: str = "", **named: list[str]) -> Path:
        root = tmp_path / at / kind
        place = tmp_path / lists_at / kind if lists_at else root
        place.mkdir(parents=True, exist_ok=True)
        for name, lines in named.items():
            name = name.replace("_shot", "-shot")
            (place / f"{name}.txt").write_text("\n".join(lines) + "\n")
            for line in lines:
                picture(root / "images" / (line.split(".png")[0] + ".png"))
        return root

    return lists


def indexed(root: Path, output: Path, **options) -> dict[str, dict]:
    index(root, output, **options)
    return {Path(row["path"]).name: row for row in load_table(output).to_dicts()}


@pytest.fixture
def three(write) -> Path:
    """The parent of all three; chest's and endo's lists beneath data_backup."""
    write(
        "chest",
        at="data/MedFMC",
        lists_at="data_backup/MedFMC",
        trainval=[chest("5E0.1", 0, 10), chest("DX.1.2.840", 18), chest("5DF"), chest("CR.9", 3)],
        train_20=[chest("5E0.1", 0, 10), chest("DX.1.2.840", 18), chest("5DF")],
        val_20=[chest("CR.9", 3)],
        test_WithLabel=[chest("5C1", 0)],
        test_WithoutLabel=["5C2.png"],
    )
    write(
        "endo",
        at="data/MedFMC",
        lists_at="data_backup/MedFMC",
        trainval=[endo(7, 1, "1 1 0 0"), endo(7, 2), endo(8, 1, "0 0 0 1")],
        test_WithLabel=[endo(9, 1, "0 0 1 0")],
    )
    return write(
        "colon",
        at="data/MedFMC",
        trainval=[colon(1, 1, 1, 0), colon(1, 1, 2, 0), colon(2, 1, 1, 1)],
        train_20=[colon(1, 1, 1, 0), colon(1, 1, 2, 0)],
        val_20=[colon(2, 1, 1, 1)],
        test_WithLabel=[colon(1, 2, 1, 1)],
    ).parent


def test_the_three_sets_come_as_one_table(three, tmp_path, capsys):
    rows = indexed(three, tmp_path / "t.parquet")
    shown = capsys.readouterr().err
    assert "layout: medfmc" in shown and len(rows) == 14
    first = rows["5E0.1.png"]
    assert first["labels"] == ["pleural_effusion", "TB"] and first["annotated"] == list(SETS["chest"].classes)
    assert first["patient"] is None and first["modality"] == "DX" and first["organ"] == "chest"
    assert rows["5DF.png"]["labels"] == [] and len(rows["5DF.png"]["annotated"]) == 19
    assert rows["5C2.png"]["labels"] == [] and rows["5C2.png"]["annotated"] == []
    splits = {name: rows[f"{name}.png"]["split"] for name in ("5DF", "CR.9", "5C1", "5C2")}
    assert splits == {"5DF": "train", "CR.9": "val", "5C1": "test", "5C2": "test"}

    both = rows[ENDO.format(study=7, image=1)]
    assert both["labels"] == ["ulcer", "erosion"] and both["annotated"] == ["ulcer", "erosion", "polyp", "tumor"]
    assert both["patient"] == "MedFMC/13333_2021.07_0007" and both["study"] == "13333_2021.07_0007"
    region = rows[COLON.format(slide=1, region=1, image=2)]
    assert region["labels"] == ["negative"] and region["split"] == "train"
    assert region["patient"] == "MedFMC/2019-01-1-1-1_2019-05-28 23_07_27-lv1-1-1-2-3"
    assert "1 of 2 slides have regions (MedFMC's patients) in more than one split: 2019-01-1-1-1_2019" in shown
    assert "pleural_effusion 2" in shown and "nodule 0" in shown and "(2 images have several, 2 none)" in shown
    assert "no image in test has the label TB, aortic_calcification, atelectasis and " in shown


def test_one_set_is_enough_and_others_folders_are_left_alone(three, picture, tmp_path):
    for kind, count in (("chest", 6), ("endo", 4), ("colon", 4)):
        assert detect(Folder.walk(three / kind)).name == "medfmc"
        assert len(indexed(three / kind, tmp_path / f"{kind}.parquet")) == count
    picture(tmp_path / "other/chest/images/a.png")
    assert detect(Folder.walk(tmp_path / "other/chest")).name == "folder"  # without lists
    (tmp_path / "other/chest/trainval.txt").write_text("a 1 1 2\n")  # of another dataset
    assert detect(Folder.walk(tmp_path / "other/chest")).name == "folder"
    with pytest.raises(VesaliusError, match="holds no folder chest, colon, endo with images and lists"):
        index(tmp_path / "other/chest/images", tmp_path / "t.parquet", layout="medfmc")


def test_lists_that_part_a_patient_are_mended_and_say_so(write, tmp_path, capsys):
    trainval = [endo(study, image, "1 0 0 0") for study in (1, 2, 3) for image in range(4)]
    root = write(
        "endo",
        trainval=trainval,
        val_20=[trainval[0], *trainval[4:7]],  # one of study 1, three of study 2
        train_20=[*trainval[1:4], *trainval[7:]],
        test_WithLabel=[endo(3, 9, "0 0 1 0"), endo(4, 1)],
        test_WithoutLabel=[ENDO.format(study=1, image=8), ENDO.format(study=5, image=1)],
    )
    rows = indexed(root, tmp_path / "t.parquet")
    splits = {row["study"]: row["split"] for row in rows.values()}
    assert [splits[f"13333_2021.{n:02}_{n:04}"] for n in range(1, 6)] == ["train", "val", "test", "test", "test"]
    shown = capsys.readouterr().err
    assert "2 patients are in train_20 and in val_20, and go whole to one of them: 13333_2021.01" in shown
    assert "4 images for training left out, whose patients are in test_WithLabel: 13333_2021.03" in shown
    assert "1 images of test_WithoutLabel left out, whose patients are for training: 13333_2021.01" in shown
    assert len(rows) == 8 + 2 + 1


def test_files_without_a_line_and_lines_without_a_file_are_told(write, picture, tmp_path, capsys):
    root = write("colon", trainval=[colon(1, 1, 1, 0), colon(2, 1, 1, 1), colon(2, 1, 1, 1)])
    picture(root / "images/more.png")
    (root / "images" / COLON.format(slide=1, region=1, image=1)).unlink()
    assert list(indexed(root, tmp_path / "t.parquet")) == [COLON.format(slide=2, region=1, image=1)]
    shown = capsys.readouterr().err
    assert "1 images of the lists are not there: 2019-01" in shown
    assert "1 images are in no list, and left out: more.png" in shown


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("endo", "13333_2021.07_0007_50120001.png 0 0 1", r"trainval.txt: line 2 is no file name with 4 flags"),
        ("endo", "13333_2021.07_0007_50120001.png 0 0 1 0 1", "line 2 is no file name with 4 flags"),
        ("endo", "13333_2021.07_0007_50120001.png 0,0,1,0", "line 2 is no file name with 4 flags"),
        ("endo", endo(7, 2, "0 1 0 0"), "line 2 gives 13333_2021.07_0007_50120002.png other labels than a line before"),
        ("colon", "2019-1 23_07_27p0001.png 2", "line 2 is no file name with one flag"),
        ("chest", "5E0.png 0,1", "line 2 is no file name with 19 flags"),
    ],
)
def test_a_malformed_line_is_named(write, tmp_path, kind, line, message):
    good = {"endo": endo(7, 2), "colon": colon(1, 1, 1, 0), "chest": chest("a", 1)}[kind]
    root = write(kind, trainval=[good, line])
    with pytest.raises(VesaliusError, match=message) as error:
        index(root, tmp_path / "t.parquet")
    assert "trainval.txt" in str(error.value)


def test_the_published_draws_lose_their_leak(write):
    studies = {number: [endo(number, image, "1 0 0 1") for image in range(3)] for number in range(1, 4)}
    lists = {}
    for number in range(1, 6):
        lists[f"endo_1_shot_train_exp{number}"] = [*studies[1][:2], *studies[1][:2]]  # drawn for two classes
        lists[f"endo_1_shot_val_exp{number}"] = [*studies[1], *studies[2], *studies[3][: number % 3]]
    root = write("endo", lists_at="data_backup", **lists)
    draws = published_draws(root, shots=1)
    assert len(draws) == 5
    for number, (train, val) in enumerate(draws, start=1):
        assert train == [line.split(" ")[0] for line in studies[1][:2]]
        assert val == [line.split(" ")[0] for line in [*studies[2], *studies[3][: number % 3]]]
    train, val = published_draws(root, shots=1, as_published=True)[0]
    assert len(train) == 4 and len(set(train)) == 2 and set(train) < set(val)
    with pytest.raises(VesaliusError, match=r"endo_5-shot_train_exp1\.txt: this list of MedFMC is missing"):
        published_draws(root, shots=5)
    with pytest.raises(ConfigError, match="did you mean 'colon'"):
        published_draws(root.parent / "colo", shots=1)


def test_colon_names_keep_their_spaces(write):
    lines = [colon(1, region, image, region % 2) for region in range(3) for image in range(2)]
    named = {f"colon_5_shot_{part}_exp{n}": lines for part in ("train", "val") for n in range(1, 6)}
    train, val = published_draws(write("colon", **named), shots=5)[0]
    assert train[0] == COLON.format(slide=1, region=0, image=0) and val == []


def test_the_published_rule_draws_patients_not_images():
    names = [endo(study, image).split(" ")[0] for study in range(9) for image in range(3)]
    flags = [[1, 0, int(number % 3 == 0), 0] for number in range(27)]
    ulcer, erosion, polyp, _ = published_rule(names, flags, kind="endo", shots=2, seed=1)
    assert len(ulcer) == 6 and ulcer == sorted(ulcer) and len({row // 3 for row in ulcer}) == 2
    assert erosion == [] and len(polyp) == 2 and all(row % 3 == 0 for row in polyp)
    assert published_rule(names, flags, kind="endo", shots=2, seed=2) != [ulcer, erosion, polyp, []]


def test_draws_of_an_indexed_set_leave_no_patient_on_both_sides(write, tmp_path):
    flags = ("1 0 0 0", "0 1 0 0", "0 0 1 1", "1 1 1 0")
    trainval = [endo(study, image, flags[(study + image) % 4]) for study in range(12) for image in range(3)]
    root = write("endo", trainval=trainval, val_20=trainval[:9], test_WithLabel=[endo(20, 1, flags[0])])
    table = pl.DataFrame(list(indexed(root, tmp_path / "t.parquet").values()))
    train = table.filter(pl.col("split") == "train")
    support = draw(train, classes=SETS["endo"].classes, shots=2, number=0, unit="study", images="all")
    others = table.filter(pl.col("split") != "train")
    assert not set(support["patient"]) & set(others["patient"])
    assert set(support["labels"].explode()) == set(SETS["endo"].classes)
