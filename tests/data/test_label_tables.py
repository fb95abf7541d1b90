"""Labels of different datasets become channels by name, and go back."""

from __future__ import annotations

import numpy as np
import pytest

from vesalius.data.abdomen import CLASSES, DATASETS, NAMES, dataset_of
from vesalius.data.label_tables import LabelTable, left_side, paint
from vesalius.errors import ConfigError


def _row(values):
    return np.array(values).reshape(-1, 1, 1)


def test_a_tumour_is_also_its_organ_and_sides_are_split_with_it():
    table = DATASETS["05"]  # KiTS: kidney 1, tumour 2, cyst 3, no sides
    masks, labelled = table.channels(_row([1, 2, 0, 0, 1, 1, 3]), NAMES)
    channel = {name: masks[row].ravel().tolist() for row, name in enumerate(NAMES)}
    assert channel["kidney_left"] == [1, 1, 0, 0, 0, 0, 0]
    assert channel["kidney_right"] == [0, 0, 0, 0, 1, 1, 1]
    assert channel["kidney_tumor"] == [0, 1, 0, 0, 0, 0, 0]
    assert {NAMES[row] for row in np.flatnonzero(labelled)} == set(table.labelled)


def test_components_beyond_two_stay_right():
    both = _row([1, 1, 1, 0, 1, 0, 1, 1]).astype(bool)
    assert left_side(both).ravel().tolist() == [True, True, True, False, False, False, False, False]
    assert not left_side(_row([0, 1, 1]).astype(bool)).any()


@pytest.mark.parametrize("key", [key for key, table in DATASETS.items() if table.values and not table.within])
def test_values_survive_a_round_trip(key):
    table = DATASETS[key]
    apart = _row([number for value in table.values for number in (value, 0)])
    masks, _ = table.channels(apart, NAMES)
    np.testing.assert_array_equal(paint(masks, table.export, NAMES), apart)


def test_tables_name_known_classes_only():
    assert len(CLASSES) == 32
    for table in DATASETS.values():
        assert {*table.labelled, *(name for name, _ in table.export)} <= set(NAMES)
    with pytest.raises(ConfigError, match="'spleem' is not labelled; did you mean 'spleen'"):
        LabelTable({1: "spleem"}, ("spleen",))
    with pytest.raises(ConfigError, match="no label table"):
        dataset_of("99_Unknown/label/x")
