"""Attention maps and averages: what counts, what vanishes, what is left out; slabs and boxes change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from vesalius.curate import proposals as module
from vesalius.curate.attention import AttentionConfig, _opened, attention_maps
from vesalius.curate.proposals import ENTROPY, Proposal, average_masks
from vesalius.data.class_tables import ClassTable
from vesalius.errors import ConfigError, VesaliusError
from vesalius.images import read_volume

SHAPE = (24, 20, 16)
TABLE = ClassTable.from_dict(
    {
        "classes": [
            "liver",
            "spleen",
            {"name": "liver_tumor", "kind": "tumor", "organs": ["liver"], "rule": "inside"},
            {"name": "lung_right", "rule": "sides"},
            {"name": "lung_left", "rule": "sides"},
        ],
        "pairs": {"lung": ["lung_right", "lung_left"]},
    }
)


def box(*bounds):
    mask = np.zeros(SHAPE, np.bool_)
    mask[tuple(slice(*pair) for pair in bounds)] = True
    return mask


def reader(**masks):
    return lambda name: [Proposal.from_mask(mask) for mask in masks.get(name, ())]


def maps_of(read, names, **options):
    masks = average_masks(read, names, table=TABLE)
    options = {"spacing": (1.0, 1.0, 1.0), "table": TABLE, **options}
    return {maps.structure: maps for maps in attention_maps(read, masks, names, **options)}


def test_disagreement_that_is_thick_enough_is_marked_and_no_other():
    small, thick = box((2, 12), (2, 12), (2, 12)), box((2, 12), (2, 18), (2, 12))
    rim = small | box((12, 14), (2, 12), (2, 12))  # two voxels thick
    maps = maps_of(reader(liver=[small, thick], spleen=[small, rim]), ["liver", "spleen"])
    assert np.array_equal(maps["liver"].full("inconsistency") > 0, thick & ~small)
    assert set(np.unique(maps["liver"].inconsistency)) == {0, 127}  # std .5
    assert maps["liver"].full("attention").max() == 255
    assert not maps["spleen"].inconsistency.any()
    assert maps["spleen"].summary()["overlap"] == small.sum()  # both hold the same voxels
    coarse = maps_of(reader(spleen=[small, rim]), ["spleen"], spacing=(6.0, 6.0, 6.0))["spleen"]
    assert coarse.summary()["mm3"] == 200 * 216  # two voxels are 12 mm here


def test_a_structure_without_attention_has_no_map_and_no_division_by_zero():
    liver = box((2, 12), (2, 12), (2, 12))
    maps = maps_of(reader(liver=[liver, liver], spleen=[liver & False] * 2), ["liver", "spleen"])
    assert maps["liver"].summary() | {"average": 0} == maps["spleen"].summary()
    assert not maps["spleen"].full("attention").any() and maps["spleen"].full("attention").shape == SHAPE


def test_doubt_counts_only_of_models_that_say_how_sure_they_are():
    liver = box((4, 16), (4, 16), (4, 12))
    doubtful = np.where(liver, 200, 0).astype(np.uint8)
    sure = Proposal.from_mask(liver)
    unsure = Proposal.from_probability(doubtful, liver)
    assert ENTROPY[[0, 94, 255]].tolist() == [0, 93, 0]
    both = maps_of(lambda name: [unsure, sure], ["liver"])["liver"]
    alone = maps_of(lambda name: [unsure], ["liver"])["liver"]
    assert np.array_equal(both.full("uncertainty"), alone.full("uncertainty"))
    assert both.full("uncertainty").max() == ENTROPY[200]


def test_what_a_model_cleaned_away_is_zero_but_its_doubt_stays():
    liver, speck = box((4, 12), (4, 12), (4, 12)), box((20, 22), (16, 18), (12, 14))
    proposal = Proposal.from_probability(np.where(liver | speck, 180, 20).astype(np.uint8), liver)
    assert proposal.soft[21, 17, 13] == 0
    assert proposal.soft[3, 4, 4] == 20 and proposal.soft[2, 4, 4] == 0  # one voxel around the mask
    assert proposal.entropy[21, 17, 13] == ENTROPY[180]


def test_a_tumour_may_lie_in_its_organ_and_a_model_without_a_class_has_no_vote():
    liver, tumour = box((2, 14), (2, 14), (2, 14)), box((4, 10), (4, 10), (4, 10))
    read = reader(liver=[liver] * 3, liver_tumor=[tumour])
    maps = maps_of(read, ["liver", "liver_tumor", "spleen"])
    assert sorted(maps) == ["liver", "liver_tumor"]
    assert not any(one.attended.any() for one in maps.values())
    assert np.array_equal(maps["liver_tumor"].full("average") > 0, tumour)


def test_averages_are_the_majority_cleaned_in_their_place():
    left, right = box((1, 9), (2, 18), (2, 14)), box((13, 23), (2, 18), (2, 14))
    speck, far = box((11, 12), (0, 1), (0, 1)), box((22, 24), (18, 20), (14, 16))
    read = reader(
        liver=[left | speck, left | speck, right], lung_right=[left] * 2, lung_left=[right] * 2, liver_tumor=[far] * 2
    )
    masks = average_masks(read, TABLE.names, table=TABLE)
    assert np.array_equal(masks["liver"], left)
    assert np.array_equal(masks["lung_right"], right) and np.array_equal(masks["lung_left"], left)
    assert not masks["liver_tumor"].any()  # far from the liver
    raw = average_masks(read, TABLE.names, table=None)
    assert np.array_equal(raw["liver"], left | speck) and raw["liver_tumor"].any()


def test_opening_is_that_of_a_box_with_nothing_beyond_the_volume():
    mask = np.random.default_rng(0).random((13, 14, 15)) < 0.9
    for widths in ((2, 2, 2), (0, 1, 2), (9, 0, 0)):
        element = np.ones([2 * width + 1 for width in widths], bool)
        assert np.array_equal(_opened(mask, widths), ndimage.binary_opening(mask, element)), widths


@pytest.mark.parametrize("order", ["C", "F"])
def test_slabs_and_order_in_memory_change_nothing(monkeypatch, order):
    rng = np.random.default_rng(1)
    fields = [ndimage.gaussian_filter(rng.standard_normal((3, *SHAPE)), (0, 2, 2, 2)) for _ in range(2)]
    chances = [(255 / (1 + np.exp(-40 * field))).astype(np.uint8) for field in fields]
    names = ["liver", "spleen"]

    def run(order="C"):
        laid = [np.asarray(chance, order=order) for chance in chances]
        return maps_of(
            lambda name: [Proposal.from_probability(p, p > 127) for p in laid[names.index(name)]],
            names,
            config=AttentionConfig(weights=(1.0, 2.0, 0.5), opening=3.0),
        )

    whole = run()
    monkeypatch.setattr(module, "SLAB", 2 * SHAPE[1] * SHAPE[2] + 7)
    for name, maps in run(order).items():
        assert maps.summary() == pytest.approx(whole[name].summary())
        for kind in ("average", "inconsistency", "uncertainty", "overlap", "attention"):
            assert np.array_equal(maps.full(kind), whole[name].full(kind))
            assert maps.full(kind).any(), kind


def test_weights_and_the_heat_of_the_sum():
    one, other = box((2, 12), (2, 12), (2, 8)), box((2, 12), (2, 12), (2, 14))
    read = reader(liver=[one, other], spleen=[other, other])
    maps = maps_of(read, ["liver"], config=AttentionConfig(weights=(2.0, 1.0, 0.0)))["liver"]
    assert maps.strength == pytest.approx(2 * 0.5 * (other & ~one).sum())


def test_errors_say_what_to_do():
    mask = box((2, 12), (2, 12), (2, 12))
    with pytest.raises(ConfigError, match="as_published"):
        maps_of(reader(liver=[mask]), ["liver"], spacing=None)
    with pytest.raises(VesaliusError, match="different shapes"):
        average_masks(lambda name: [Proposal.from_mask(mask), Proposal.from_mask(mask[1:])], ["liver"])


def test_five_models_of_a_glioma(shared_data):
    folder = shared_data("mri_brain_glioma") / "TCGA-FG-6692"
    tumours = [read_volume(path).array[0] > 0 for path in sorted(folder.glob("seg_*-20.nii.gz"))]
    assert len(tumours) == 5
    masks = average_masks(lambda name: [Proposal.from_mask(one) for one in tumours], ["tumour"], table=TABLE)
    read = reader(tumour=tumours)
    (maps,) = attention_maps(read, masks, ["tumour"], spacing=(1.0, 1.0, 1.0), table=TABLE)
    disputed = np.any(tumours, axis=0) & ~np.all(tumours, axis=0)
    thick = ndimage.binary_opening(disputed, np.ones((5, 5, 5), bool))
    assert 0 < thick.sum() < disputed.sum() / 2
    assert np.array_equal(maps.full("attended") > 0, thick)
    assert np.array_equal(masks["tumour"], np.sum(tumours, axis=0) >= 3)
