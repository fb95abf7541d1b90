"""Fewer labels: nested, by patient, every class kept; classes that a part does not have."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from vesalius.adapt.labels import class_names, few_labels, is_multilabel, labelled
from vesalius.data.contract import InputContract
from vesalius.data.table import make_table
from vesalius.errors import ConfigError, VesaliusError


@pytest.fixture
def table() -> pl.DataFrame:
    label = ["common"] * 40 + ["rare"] * 4
    return make_table({"path": f"{i}.png", "patient": f"p{i // 2}", "labels": [label[i]]} for i in range(44))


def test_smaller_parts_lie_in_larger_ones_and_patients_stay_whole(table: pl.DataFrame):
    some = few_labels(table, fraction=0.2, seed=1)
    more = few_labels(table, fraction=0.5, seed=1)
    assert set(some["path"]) < set(more["path"])
    assert some["labels"].explode().value_counts(sort=True).rows() == [("common", 8), ("rare", 2)]
    assert some.group_by("patient").len()["len"].unique().to_list() == [2]
    assert few_labels(table, fraction=0.2, seed=2)["path"].to_list() != some["path"].to_list()
    assert few_labels(table).equals(table)


def test_a_patient_of_several_labels_counts_for_each_of_them():
    labels = [["a", "b"], ["a"], ["b"], ["a", "c"], []] * 8
    table = make_table({"path": f"{i}.png", "patient": f"p{i}", "labels": names} for i, names in enumerate(labels))
    of = {name: table.filter(pl.col("labels").list.contains(name)).height for name in "abc"}
    part = few_labels(table, fraction=0.25, seed=3)
    for name, count in of.items():
        assert part.filter(pl.col("labels").list.contains(name)).height >= count / 4
    assert part.filter(pl.col("labels").list.len() == 0).height == 2 and part.height < len(table) / 2
    shots = few_labels(table, shots=1)
    assert set(shots["labels"].explode()) == set("abc") and shots.height <= 3


def test_shots_are_images_of_different_patients(table: pl.DataFrame):
    shots = few_labels(table, shots=2)
    assert shots["labels"].explode().value_counts().sort("labels").rows() == [("common", 2), ("rare", 2)]
    assert shots["patient"].n_unique() == 4
    assert few_labels(table, shots=2, classes=("rare",))["labels"].explode().to_list() == ["rare", "rare"]


@pytest.mark.parametrize("options", [{"fraction": 0.0}, {"fraction": 1.5}, {"shots": 0}, {"shots": 1, "fraction": 0.5}])
def test_senseless_parts_are_refused(options: dict, table: pl.DataFrame):
    with pytest.raises(ConfigError):
        few_labels(table, **options)


def test_a_part_without_a_class_keeps_the_networks_numbering(tmp_path: Path, table: pl.DataFrame):
    Image.new("L", (8, 8), 3).save(tmp_path / "a.png")
    part = make_table([{"path": str(tmp_path / "a.png"), "labels": ["rare"]}])
    classes = class_names(table, "classification")
    assert classes == ("common", "rare")
    contract = InputContract(8, 1, (0.5,), (0.5,))
    assert labelled(part, contract, task="classification", classes=classes)[0]["label"].item() == 1
    with pytest.raises(VesaliusError, match="1 images have several of the classes common, or none"):
        labelled(part, contract, task="classification", classes=("common",))
    with pytest.raises(ConfigError, match="did you mean 'rare'"):
        class_names(table, "classification", ("rar",))


def test_images_of_several_classes_or_none_make_a_table_multilabel(tmp_path: Path):
    Image.new("L", (8, 8), 3).save(tmp_path / "a.png")
    row = {"path": str(tmp_path / "a.png"), "labels": ["cyst"], "annotated": ["cyst", "nodule", "normal"]}
    one, none, several, unseen = (
        make_table([row | changes])
        for changes in ({}, {"labels": []}, {"labels": ["cyst", "nodule"]}, {"labels": [], "annotated": []})
    )
    classes = ("cyst", "nodule")
    assert is_multilabel(none, classes) and is_multilabel(several, classes)
    assert not is_multilabel(one, classes) and not is_multilabel(several, ("cyst",))
    assert not is_multilabel(unseen, classes)  # nobody looked: it may have any

    contract = InputContract(8, 1, (0.5,), (0.5,))
    options = {"task": "classification", "classes": classes}
    assert labelled(one, contract, **options)[0]["label"].item() == 0
    sample = labelled(one, contract, multilabel=True, **options)[0]
    assert sample["label"].tolist() == [1.0, 0.0] and sample["annotated"].tolist() == [True, True]
    assert labelled(none, contract, **options)[0]["label"].tolist() == [0.0, 0.0]
    with pytest.raises(VesaliusError, match="1 images have several of the classes cyst, nodule, or none"):
        labelled(several, contract, multilabel=False, **options)
    with pytest.raises(VesaliusError, match="1 images were not looked at for any of the classes cyst, nodule"):
        labelled(
            pl.concat([none, make_table([row | {"labels": ["other"], "annotated": ["other"]}])]), contract, **options
        )
