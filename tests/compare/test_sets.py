"""Who is in which set."""

from __future__ import annotations

from dataclasses import replace

import pytest
from setups import SETUP

from vesalius.compare.sets import Study, rows_for
from vesalius.data.table import load_table, make_table
from vesalius.errors import VesaliusError


def test_support_sets_come_from_the_training_split_and_validation_is_the_same_for_all(table):
    study = Study(load_table(table), SETUP)
    for number in range(3):
        rows = study.support(2, number)
        assert set(rows["split"]) == {"train"} and len(rows) == 6
        assert study.validation(2, number).equals(study.split("val"))
    with pytest.raises(VesaliusError, match="no val images"):
        Study(study.rows.filter(study.rows["split"] != "val"), SETUP).validation(1, 0)


def test_published_lists_decide_instead_with_their_leaks_only_if_asked(tmp_path):
    names = [f"p{number} {image:08d}.png" for number in range(6) for image in range(2)]  # names hold spaces
    labels = {name: number % 2 for number, name in enumerate(names)}
    table = make_table(
        {
            "path": f"/images/{name}",
            "patient": name.split()[0],
            "labels": [("negative", "positive")[labels[name]]],
            "split": "test" if name.startswith("p5") else "train",
        }
        for name in names
    )
    folder = tmp_path / "colon"
    folder.mkdir()
    lists = {"train": names[:2], "val": [*names[:1], *names[4:8]]}
    for number in range(1, 6):
        for part, members in lists.items():
            text = "".join(f"{name} {labels[name]}\n" for name in members)
            (folder / f"colon_1-shot_{part}_exp{number}.txt").write_text(text)
    setup = replace(SETUP, classes=("negative", "positive"), published=True)
    study = Study(rows_for(table, "classification", setup.classes), setup, str(folder))
    assert [path.rpartition("/")[2] for path in study.support(1, 2)["path"]] == names[:2]
    assert [path.rpartition("/")[2] for path in study.validation(1, 2)["path"]] == names[4:8]
    leaky = Study(study.rows, replace(setup, as_published=True), str(folder))
    assert [path.rpartition("/")[2] for path in leaky.validation(1, 2)["path"]] == lists["val"]
    with pytest.raises(VesaliusError, match="5 draws"):
        study.support(1, 5)
    with pytest.raises(VesaliusError, match="does not have"):
        Study(study.rows[4:], setup, str(folder)).support(1, 0)


def test_rows_of_other_classes_are_left_out():
    table = make_table(
        {"path": f"{name}.png", "labels": labels, "annotated": looked_for}
        for name, labels, looked_for in (
            ("one", ["a"], []),
            ("other", ["c"], []),
            ("none", [], ["a", "b"]),
            ("several", ["a", "b"], []),
            ("unlabelled", [], []),
        )
    )
    assert rows_for(table, "classification", ("a", "b"))["path"].to_list() == ["one.png", "none.png", "several.png"]
    single = table[:2]
    assert rows_for(single, "classification", ("a",))["path"].to_list() == ["one.png"]
