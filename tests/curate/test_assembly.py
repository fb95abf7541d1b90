"""Assembly: who keeps a voxel that two claim, what is listed, and where trust differs by dataset."""

from __future__ import annotations

import numpy as np
import pytest

from vesalius.curate.assembly import Trust, assemble, published_containment, published_label, published_original
from vesalius.data.abdomen import dataset_of
from vesalius.data.class_tables import ClassTable
from vesalius.errors import ConfigError, VesaliusError

TABLE = ClassTable.from_dict(
    {"classes": ["liver", "aorta", "spleen", {"name": "liver_tumor", "kind": "tumor", "organs": ["liver"]}]}
)


def row(text):
    """A volume of one row: ``x`` is set."""
    return np.array([[[letter == "x" for letter in text]]])


def done(masks, **options):
    return assemble(lambda name: masks.get(name, {}), TABLE, **options)


def values(assembled):
    return "".join(map(str, assembled.labels.ravel()))


def test_the_more_trusted_source_keeps_a_voxel_whatever_the_order_of_classes():
    for sources, expected in ((("original", "revised"), "1110"), (("proposal", "revised"), "1122")):
        liver, aorta = sources
        found = done({"liver": {liver: row("xxx.")}, "aorta": {aorta: row("..xx" if liver != "original" else "..x.")}})
        assert values(found) == expected
        assert [conflict.voxels for conflict in found.conflicts] == [1]
    (conflict,) = found.conflicts
    assert (conflict.kept, conflict.lost) == ("aorta", "liver")
    assert (conflict.kept_source, conflict.lost_source) == ("revised", "proposal")


def test_among_equals_the_later_class_wins_and_the_volume_is_told():
    found = done({"liver": {"proposal": row("xxx.")}, "spleen": {"proposal": row(".xxx")}}, spacing=(2, 2, 2))
    assert values(found) == "1333"
    assert [(one.kept, one.voxels, one.mm3) for one in found.conflicts] == [("spleen", 2, 16)]


@pytest.mark.parametrize(("organ", "tumour"), [("original", "proposal"), ("proposal", "original")])
def test_a_tumour_stays_in_its_organ_without_a_conflict(organ, tumour):
    found = done({"liver": {organ: row("xxxx")}, "liver_tumor": {tumour: row(".xx.")}})
    assert values(found) == "1441" and not found.conflicts
    beyond = done({"aorta": {"original": row("xxxx")}, "liver_tumor": {"proposal": row(".xx.")}})
    assert values(beyond) == "2222" and beyond.conflicts[0].lost == "liver_tumor"


def test_a_structure_that_the_public_label_knows_to_be_absent_is_not_invented():
    absent = {"spleen": {"original": row("...."), "proposal": row("xx..")}, "liver": {"proposal": row("..xx")}}
    found = done(absent)
    assert values(found) == "0011"
    assert found.sources == {"spleen": "original", "liver": "proposal"}  # the aorta is not annotated


def test_trust_differs_by_dataset_and_structure():
    trust = Trust(datasets={"FLARE22": {"aorta": ("revised", "proposal"), "*": ("original",)}})
    masks = {"aorta": {"original": row("xxxx"), "proposal": row("x...")}, "liver": {"proposal": row("...x")}}
    assert values(done(masks, dataset="flare22", trust=trust)) == "2000"
    assert values(done(masks, dataset="BTCV", trust=trust)) == "2222"
    with pytest.raises(ConfigError, match="did you mean 'revised'"):
        Trust(datasets={"FLARE22": {"aorta": ("revise",)}})


def test_nothing_to_assemble_and_masks_that_do_not_fit():
    with pytest.raises(VesaliusError, match="no structure"):
        done({})
    with pytest.raises(VesaliusError, match="voxels"):
        done({"liver": {"original": row("xx")}, "aorta": {"original": row("xxx")}})


def test_as_published_the_public_label_overwrites_and_absence_is_not_believed():
    raw = np.zeros((6, 1, 1), np.uint8)
    raw[0], raw[3:5] = 2, 2  # KiTS-like: no sides; AbdomenCT-1K's kidneys
    original = published_original(raw, dataset_of("08_AbdomenCT-1K"))
    assert original.ravel().tolist() == [3, 0, 0, 2, 2, 0]
    pseudo = np.array([6, 6, 3, 3, 1, 1], np.uint8).reshape(6, 1, 1)
    revised = {1: np.array([0, 0, 0, 0, 0, 1], bool).reshape(6, 1, 1)}
    assert published_label(pseudo, revised, original).ravel().tolist() == [3, 6, 0, 2, 2, 1]


def test_published_containment_gives_a_tumour_to_both_kidneys():
    masks = np.zeros((3, 1, 1, 2), np.uint8)
    masks[0, ..., 0] = masks[2, ..., 1] = 1
    parts = {"kidney_right": ["kidney_tumor"], "kidney_left": ["kidney_tumor"]}
    merged = published_containment(masks, ["kidney_right", "kidney_left", "kidney_tumor"], parts)
    assert merged[:, 0, 0].tolist() == [[1, 1], [0, 1], [0, 1]]
