from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vesalius.data.splits import Groups, split_by_group
from vesalius.errors import ConfigError


def collection(patients: int = 200, seed: int = 0) -> tuple[list[str], list[str]]:
    """Patients of 1 to 4 images, 10 % of them malignant."""
    rng = np.random.default_rng(seed)
    groups, labels = [], []
    for patient in range(patients):
        label = "malignant" if rng.random() < 0.1 else "benign"
        for _ in range(rng.integers(1, 5)):
            groups.append(f"p{patient}")
            labels.append(label)
    return groups, labels


def test_patients_stay_whole_and_labels_keep_their_proportions():
    groups, labels = collection()
    splits = split_by_group(groups, labels, [None] * len(groups), val=0.2, test=0.2)
    assert max(Counter(group for group, _ in set(zip(groups, splits, strict=True))).values()) == 1
    for label in ("benign", "malignant"):
        counts = Counter(split for split, one in zip(splits, labels, strict=True) if one == label)
        total = counts.total()
        assert abs(counts["val"] - 0.2 * total) <= 4 and abs(counts["test"] - 0.2 * total) <= 4


def test_the_split_depends_on_seed_and_names_not_on_order():
    groups, labels = collection()
    none = [None] * len(groups)
    order = np.random.default_rng(1).permutation(len(groups))
    once = split_by_group(groups, labels, none)
    shuffled = split_by_group([groups[i] for i in order], [labels[i] for i in order], none)
    assert [once[i] for i in order] == shuffled
    assert once != split_by_group(groups, labels, none, seed=1)


def test_many_strata_of_one_patient_are_shared_out():
    names = [f"p{i}" for i in range(20)]
    counts = Counter(split_by_group(names, names, [None] * 20, val=0.2, test=0.2))
    assert counts == {"train": 12, "val": 4, "test": 4}


def test_nothing_goes_where_nothing_is_wanted():
    names = [f"p{i}" for i in range(7)]
    assert set(split_by_group(names, ["x"] * 7, [None] * 7, val=0.0, test=0.3)) == {"train", "test"}
    with pytest.raises(ConfigError, match=r"val = 0\.5 and test = 0\.5"):
        split_by_group(names, names, [None] * 7, val=0.5, test=0.5)


def test_groups_join_transitively():
    groups = Groups()
    groups.join("c", "b")
    groups.join("d", "c")
    groups.join("a", "d")
    assert {groups.find(name) for name in "abcd"} == {"a"} and groups.find("e") == "e"
