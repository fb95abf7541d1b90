"""Checks that find what is wrong, and nothing in what is right."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vesalius.curate.checks import check_case, map_quality, odd_volumes, piece_sizes
from vesalius.data.abdomen import TEMPLATE
from vesalius.data.phantoms.torso import LABELS, torso_volume


def boxes(**bounds):
    masks = {}
    for name, spans in bounds.items():
        masks[name] = np.zeros((20, 10, 10), bool)
        for start, stop in spans:
            masks[name][start:stop, 2:6, 2:6] = True
    return masks


def findings(masks):
    found, volumes = check_case("ct-1", masks.get, TEMPLATE, spacing=(5.0, 5.0, 5.0))
    return {(one.structure, one.check) for one in found if one.check != "missing"}, volumes


def test_sides_that_are_swapped_and_pieces_apart():
    good = boxes(kidney_right=[(12, 18)], kidney_left=[(2, 8)], liver=[(10, 20)])
    assert findings(good)[0] == set()
    swapped = boxes(kidney_right=[(2, 8)], kidney_left=[(12, 18)], liver=[(2, 8), (12, 14)])
    assert findings(swapped)[0] == {("kidney", "side"), ("liver", "pieces")}
    volumes = findings(good)[1]
    assert volumes["kidney"] == pytest.approx(2 * 6 * 16 * 0.125)
    assert piece_sizes(swapped["liver"]) == [96, 32]


def test_what_is_missing_is_said_and_an_empty_mask_is_no_finding():
    found, volumes = check_case("ct-1", boxes(liver=[]).get, TEMPLATE, spacing=(1, 1, 1))
    assert {one.structure for one in found} == set(TEMPLATE.names) - {"liver"}
    assert {one.check for one in found} == {"missing"} and volumes == {"liver": 0.0}


def test_odd_volumes_need_enough_cases_and_believe_in_none_of_zero():
    volumes = {f"ct-{n}": {"spleen": 180.0 + 10 * n} for n in range(8)} | {
        "odd": {"spleen": 2.0},
        "gone": {"spleen": 0},
    }
    assert [(one.case, one.check) for one in odd_volumes(volumes)] == [("odd", "volume")]
    assert odd_volumes({name: volumes[name] for name in ("ct-0", "ct-1", "odd")}) == []


def test_map_quality_is_undefined_where_nothing_is_wrong():
    nothing = np.zeros((3, 3, 3), bool)
    quality = map_quality(nothing, nothing)
    assert math.isnan(quality["sensitivity"]) and math.isnan(quality["precision"]) and quality["specificity"] == 1


def test_a_phantom_torso_passes():
    volume = torso_volume(3, size=48)
    labels = np.ascontiguousarray(volume["labels"].transpose(2, 1, 0)[::-1, ::-1])  # LPS -> RAS
    names = {"right kidney": "kidney_right", "left kidney": "kidney_left", "spleen": "spleen"}
    masks = {mine: labels == LABELS.index(theirs) + 1 for theirs, mine in names.items() if theirs in LABELS}
    assert len(masks) == 3
    assert findings(masks)[0] == set()
