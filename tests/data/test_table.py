from __future__ import annotations

import shutil

import polars as pl
import pytest

from vesalius.data.table import COLUMNS, check_splits, load_table, make_table, save_table, select
from vesalius.errors import VesaliusError


@pytest.fixture
def row(picture, tmp_path):
    """A function that gives a row whose image exists."""

    def make(name: str, **values):
        path = picture(tmp_path / "images" / name)
        return {"path": str(path), "frames": 1, "size": [12, 16], "split": "train", "sha256": name, **values}

    return make


def test_a_table_moves_with_its_folder(row, tmp_path):
    mask = row("m.png")["path"]
    table = make_table([row("a.png", mask=f"{mask};{mask}", mask_classes=["lesion"]), row("b.png", spacing=[0.1, 0.2])])
    assert table.schema == COLUMNS
    save_table(table, tmp_path / "t.parquet")
    assert load_table(tmp_path / "t.parquet").equals(table)
    assert pl.read_parquet(tmp_path / "t.parquet")["path"][0] == "images/a.png"
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(tmp_path / "images", moved)
    shutil.move(tmp_path / "t.parquet", moved)
    assert load_table(moved / "t.parquet")["path"][0] == str(moved / "images" / "a.png")


def test_a_patient_in_two_splits_is_named_even_across_tables(row, tmp_path):
    save_table(make_table([row("a.png", patient="P7")]), tmp_path / "a.parquet")
    save_table(make_table([row("b.png", patient="P7", split="test")]), tmp_path / "b.parquet")
    load_table(tmp_path / "a.parquet")
    with pytest.raises(VesaliusError, match=r"1 patient is in more than one split: P7 \(test and train\); index again"):
        load_table([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_a_file_without_patient_is_a_patient_and_content_counts(row):
    frames = make_table([row("a.png", frame=0), row("a.png", frame=1, split="val")])
    with pytest.raises(VesaliusError, match=r"1 patient .*a\.png \(train and val\)"):
        check_splits(frames)
    copies = make_table([row("a.png"), {**row("b.png", split="val"), "sha256": "a.png"}])
    with pytest.raises(VesaliusError, match="image content"):
        check_splits(copies)


def test_names_of_several_datasets_merge_by_spelling(row, tmp_path):
    save_table(make_table([row("a.png", labels=["Fetal head"], organ="Fetus")]), tmp_path / "a.parquet")
    save_table(make_table([row("b.png", labels=["fetal_head", "cyst"], organ="fetus")]), tmp_path / "b.parquet")
    both = load_table([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert both["labels"].to_list() == [["Fetal head"], ["Fetal head", "cyst"]]
    assert both["organ"].to_list() == ["Fetus", "Fetus"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename({"patient": "pacient"}), "unknown column 'pacient'; did you mean 'patient'"),
        (lambda t: t.drop("organ", "mask"), "lacks the columns organ, mask"),
        (lambda t: t.head(0), "has no rows"),
        (lambda t: t.with_columns(path=pl.lit("gone.png")), r"1 of the 1 files it names are not there: .*gone\.png"),
        (lambda t: t.with_columns(split=pl.lit("trian")), "unknown split 'trian'; did you mean 'train'"),
        (lambda t: pl.concat([t, t]), "another row names too"),
    ],
)
def test_a_faulty_table_is_refused_in_one_line(row, tmp_path, change, message):
    change(make_table([row("a.png")])).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(VesaliusError, match=message) as error:
        load_table(tmp_path / "t.parquet")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.parquet", "images", "images/a.png", "broken.parquet"])
def test_what_is_no_table_is_refused(row, tmp_path, name):
    row("a.png")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(VesaliusError, match="index"):
        load_table(tmp_path / name)


def test_select_keeps_what_a_task_learns_from(row):
    table = make_table(
        [
            row("a.png", labels=["benign"], annotated=["benign"]),
            row("b.png", annotated=["benign"], split="val"),  # looked at, nothing found
            row("c.png", mask="m.png", mask_classes=["lesion"], annotated=["lesion"]),
            row("d.png", target="clean.png"),
        ]
    )
    names = {task: [p[-5] for p in select(table, task=task)["path"]] for task in ("classification", "segmentation")}
    assert names == {"classification": ["a", "b"], "segmentation": ["c"]}
    assert len(select(table, task="enhancement", split="train")) == 1
    assert select(table, split="val")["path"][0].endswith("b.png")
