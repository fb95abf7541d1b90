"""Support sets: K of every class, nested, by patient, and the same whatever the table's order or place."""

from __future__ import annotations

import warnings

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.data.draws import draw, units
from vesalius.data.table import make_table
from vesalius.errors import ConfigError

CLASSES = ("a", "b", "c")


@st.composite
def tables(draw_: st.DrawFn) -> pl.DataFrame:
    """Multi-label images of few patients, some of them unknown, every class with at least one image."""
    count = draw_(st.integers(3, 25))
    patients = draw_(st.lists(st.sampled_from(["p1", "p2", "p3", "p4", None]), min_size=count, max_size=count))
    subsets = st.sets(st.sampled_from(CLASSES))
    labels = draw_(st.lists(subsets, min_size=count, max_size=count))
    for row, name in enumerate(CLASSES):
        labels[row] |= {name}
    return make_table(
        {"path": f"/here/{row:02}.png", "sha256": f"{row:02}", "patient": patient, "labels": sorted(names)}
        for row, (patient, names) in enumerate(zip(patients, labels, strict=True))
    )


options = st.fixed_dictionaries(
    {
        "shots": st.integers(1, 6),
        "number": st.integers(0, 3),
        "seed": st.integers(0, 3),
        "unit": st.sampled_from(["patient", "study", "image"]),
        "images": st.sampled_from(["one", "all"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(table=tables(), chosen=options, order=st.randoms(use_true_random=False))
@pytest.mark.filterwarnings("ignore:class")
def test_a_draw_is_nested_complete_and_a_function_of_names(table, chosen, order):
    support = draw(table, classes=CLASSES, **chosen)
    assert set(support["path"]) <= set(table["path"]) and support["path"].is_unique().all()
    assert set(CLASSES) <= set(support["labels"].explode())

    larger = draw(table, classes=CLASSES, **chosen | {"shots": chosen["shots"] + 1})
    assert set(support["path"]) <= set(larger["path"])

    rows = list(range(len(table)))
    order.shuffle(rows)
    moved = table[rows].with_columns(pl.col("path").str.replace("/here/", "/elsewhere/"))
    again = draw(moved, classes=CLASSES[::-1], **chosen)
    assert [path.split("/")[-1] for path in again["path"]] == [path.split("/")[-1] for path in support["path"]]


@settings(max_examples=60, deadline=None)
@given(table=tables(), chosen=options)
@pytest.mark.filterwarnings("ignore:class")
def test_each_class_gives_as_many_units_as_it_has_up_to_the_shots(table, chosen):
    for name, available in units(table, classes=CLASSES, unit=chosen["unit"]).items():
        support = draw(table, classes=(name,), **chosen)
        assert all(name in labels for labels in support["labels"])
        drawn = units(support, classes=(name,), unit=chosen["unit"])[name]
        assert drawn == min(available, chosen["shots"])
        if chosen["images"] == "one" or chosen["unit"] == "image":
            assert len(support) == drawn
        else:
            key = pl.coalesce("patient", "sha256")
            drawn_for = pl.col("labels").list.contains(name) & key.is_in(support.select(key).to_series().to_list())
            assert set(support["path"]) == set(table.filter(drawn_for)["path"])


@pytest.fixture
def table() -> pl.DataFrame:
    return make_table(
        {"path": f"{i:03}.png", "patient": f"p{i // 3}", "study": str(i % 3), "labels": ["xy"[i % 2]]}
        for i in range(120)
    )


def test_draws_and_seeds_differ(table):
    sets = [
        tuple(draw(table, classes="xy", shots=3, number=number, seed=seed)["path"])
        for number in range(5)
        for seed in range(2)
    ]
    assert len(set(sets)) == 10


def test_every_unit_is_drawn_about_as_often(table):
    drawn = pl.concat(draw(table, classes="xy", shots=10, number=number) for number in range(200))
    counts = drawn["patient"].value_counts()["count"]
    # Each of 40 patients is drawn for x and for y with probability 1/4: 100 times, with a deviation of 9.
    assert len(counts) == 40 and counts.min() > 60 and counts.max() < 140


def test_studies_are_counted_within_their_patient(table):
    assert units(table, classes="xy", unit="patient") == {"x": 40, "y": 40}
    assert units(table, classes="xy", unit="study") == {"x": 60, "y": 60}


def test_exact_copies_of_an_image_are_one_shot():
    table = make_table({"path": f"{i}.png", "sha256": str(i % 3), "labels": ["x"]} for i in range(6))
    assert units(table, classes="x") == {"x": 3}
    assert sorted(draw(table, classes="x", shots=3, number=0)["sha256"]) == ["0", "1", "2"]


def test_a_rare_class_gives_all_it_has_and_says_so():
    table = make_table(
        {"path": f"{i}.png", "patient": str(i), "labels": ["rare" if i < 2 else "common"]} for i in range(9)
    )
    with pytest.warns(UserWarning, match=r"class 'rare' has 2 of 5 shots \(unit: patient\)"):
        support = draw(table, classes=("common", "rare"), shots=5, number=0)
    assert support["labels"].explode().value_counts(sort=True).rows() == [("common", 5), ("rare", 2)]


def test_without_classes_all_rows_are_one(table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(table, classes=(), shots=7, number=0)["patient"].n_unique() == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shots": 0}, "shots = 0"),
        ({"number": -1}, "number = -1"),
        ({"unit": "patients"}, "unknown unit 'patients'; did you mean 'patient'"),
        ({"images": "some"}, "images = 'some'"),
        ({"classes": ("x", "z")}, "no image has the class 'z'"),
    ],
)
def test_senseless_draws_are_refused(table, wrong, message):
    with pytest.raises(ConfigError, match=message):
        draw(table, **{"classes": ("x", "y"), "shots": 1, "number": 0} | wrong)
