"""Names of several datasets meet in one class, sides are told, tumours count as organs, and mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from vesalius.data.abdomen import DATASETS, NAMES, TEMPLATE
from vesalius.data.class_tables import ClassEntry, ClassTable, Sides
from vesalius.data.masks import IGNORE
from vesalius.data.table import make_table
from vesalius.errors import ConfigError


def _table(**options):
    classes = ["liver", {"name": "liver_tumor", "kind": "tumor", "organs": ["liver"]}, "kidney_right", "kidney_left"]
    pairs = {"kidney": ["kidney_right", "kidney_left"]}
    return ClassTable.from_dict({"classes": classes, "pairs": pairs, **options})


@pytest.mark.parametrize("folder", ["04_LiTS", "05_KiTS", "07_WORD", "12_CT-ORG", "Task08_HepaticVessel"])
def test_the_template_says_what_the_published_code_does(folder):
    """Through names and sides, as through the authors' tables of values."""
    published = next(table for key, table in DATASETS.items() if _FOLDERS[folder] == key)
    raw = np.random.default_rng(0).choice([0, 0, 0, *published.values], size=(12, 6, 5)).astype(np.uint8)
    expected, labelled = published.channels(raw, NAMES)
    names = [f"class_{value}" for value in range(1, max(published.values) + 1)]
    rows = make_table([{"path": "a", "dataset": folder, "mask_classes": names, "annotated": names}])
    row = TEMPLATE.translate(rows)[0].to_dicts()[0]
    numbers = np.zeros(256, np.uint8)
    for value, name in enumerate(row["mask_classes"], start=1):
        numbers[value] = TEMPLATE.sources.index(name) + 1 if name else 0
    told = Sides(TEMPLATE)(numbers[raw], row)
    masks = np.moveaxis(TEMPLATE.members[told], -1, 0)
    assert np.array_equal(TEMPLATE.labelled(row["annotated"]), labelled)
    assert np.array_equal(masks[labelled], expected[labelled])


_FOLDERS = {"04_LiTS": "04", "05_KiTS": "05", "07_WORD": "07", "12_CT-ORG": "12", "Task08_HepaticVessel": "10_08"}


def test_names_of_several_sets_become_one(tmp_path):
    table = _table(datasets={"msd": {"cancer": "liver_tumor"}, "org": {1: "liver", "bone": None}})
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(table.to_dict()), encoding="utf-8")
    table = ClassTable.load(tmp_path / "classes.yaml")
    rows = make_table(
        [
            {"path": "a", "dataset": "msd", "mask_classes": ["Liver", "cancer"], "annotated": ["Liver", "cancer"]},
            {"path": "b", "dataset": "org", "mask_classes": ["class_1", "bone"], "annotated": ["class_1", "bone"]},
        ]
    )
    translated, left_out = table.translate(rows)
    assert translated["mask_classes"].to_list() == [["liver", "liver_tumor"], ["liver", ""]]
    assert translated["annotated"].to_list() == [["liver", "liver_tumor"], ["liver"]]
    assert left_out == {"org": ["bone"]}
    assert table.labelled(["kidney"]).tolist() == [False, False, True, True]


def test_a_tumour_belongs_to_the_nearer_side():
    table = ClassTable.from_dict(
        {
            "classes": [
                "kidney_right",
                "kidney_left",
                {"name": "tumor", "kind": "tumor", "organs": ["kidney_right", "kidney_left"]},
            ],
            "pairs": {"kidney": ["kidney_right", "kidney_left"]},
        }
    )
    mask = np.array([2, 2, 3, 0, 0, 0, 3, 1, 1, IGNORE], np.uint8).reshape(10, 1, 1)
    told = Sides(table)(mask, {"annotated": ["kidney_right", "kidney_left", "tumor"]})
    right, left, tumor = np.moveaxis(table.members[told], -1, 0)[:, :, 0, 0].astype(int)
    assert left.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert right.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 0]
    assert tumor.tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert told[-1, 0, 0] == IGNORE


def test_a_tumour_need_not_count_as_its_organ():
    table = ClassTable((ClassEntry("vessel"), ClassEntry("clot", kind="tumor", organs=("vessel",), counts=False)))
    assert table.members[2].tolist() == [False, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pairs": {"kidney": ["kidney_right", "kidny_left"]}}, "did you mean 'kidney_left'"),
        ({"datasets": {"a": {1: "livr"}}}, "did you mean 'liver'"),
        ({"classes": ["liver", {"name": "Liver"}]}, "names 'liver', too"),
        ({"classes": [{"name": "liver", "rule": "largst"}]}, "did you mean 'largest'"),
        ({"classes": []}, "without classes"),
    ],
)
def test_mistakes_are_named(changes, said):
    values = changes if "classes" in changes else _table().to_dict() | changes
    with pytest.raises(ConfigError, match=said):
        ClassTable.from_dict(values)


def test_a_set_without_any_class_is_an_error():
    rows = make_table([{"path": "a", "dataset": "brain", "mask_classes": ["oedema"], "annotated": ["oedema"]}])
    with pytest.raises(ConfigError, match="say under datasets what brain calls them"):
        _table().translate(rows)
