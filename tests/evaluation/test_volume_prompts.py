"""Clicks and boxes mean the same place in voxels, in DICOM's mm and in NIfTI's."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

from vesalius.errors import ConfigError, UnreadableImage
from vesalius.evaluation.volume_prompts import Prompts, check_prompts, simulated, wanted
from vesalius.images import Image, read_volume

CLICKED, BOXED, NEITHER = SimpleNamespace(prompted=True), SimpleNamespace(boxes=True), SimpleNamespace(boxes=False)


def image(affine: np.ndarray | None) -> Image:
    return Image(np.zeros((1, 5, 6, 7), np.int16), ("gray",), affine=affine)


def test_the_same_place_in_three_spaces(tmp_path):
    turn = np.array([[0.0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, -3.0, 40], [0, 0, 0, 1]])  # RAS, as NIfTI has it
    nibabel.save(nibabel.Nifti1Image(np.zeros((7, 6, 5), np.int16), turn), tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    place = turn @ [3, 2, 4, 1]
    ras = Prompts.parse([",".join(map(str, place[:3]))], space="ras")
    lps = Prompts.parse([",".join(map(str, place[:3] * [-1, -1, 1]))], space="lps")
    for given in (ras, lps):
        assert np.allclose(given.on(volume).points, [[3, 2, 4]])
    assert Prompts.parse(["3,2,4"]).on(volume).points == ((3, 2, 4),)
    # two opposite corners, of which the mm of some axes run backwards
    low, high = turn @ [1, 2, 0, 1], turn @ [4, 5, 3, 1]
    box = ",".join(map(str, [*np.minimum(low, high)[:3], *np.maximum(low, high)[:3]]))
    assert Prompts.parse(boxes=[box], space="ras").on(volume).boxes == ((1, 2, 0, 4, 5, 3),)


def test_mm_without_an_affine_and_words_that_are_no_numbers():
    with pytest.raises(UnreadableImage, match="give them in voxels"):
        Prompts.parse(["1,2,3"], space="lps").on(image(None))
    for points, boxes in ((["1,2"], []), (["a,b,c"], []), ([], ["1,2,3"])):
        with pytest.raises(ConfigError, match=r"give \d numbers"):
            Prompts.parse(points, boxes=boxes)
    for labels in ([1, 0], [2]):
        with pytest.raises(ConfigError, match="1 or 0 for each"):
            Prompts.parse(["1,2,3"], labels)


def test_what_a_task_wants():
    assert [wanted(task) for task in (CLICKED, BOXED, NEITHER)] == ["points", "boxes", None]
    click, box = Prompts.parse(["1,2,3"]), Prompts.parse(boxes=["0,0,0,1,1,1"])
    for task, right, wrong in ((CLICKED, click, box), (BOXED, box, click), (NEITHER, Prompts(), click)):
        check_prompts(task, right)
        for given in (wrong, Prompts()) if task is not NEITHER else (wrong,):
            with pytest.raises(ConfigError, match="this run"):
                check_prompts(task, given)


def test_prompts_from_the_truth():
    truth = np.zeros((5, 6, 7), bool)
    truth[1:3, 2:5, 6] = True
    found = simulated(CLICKED, truth, clicks=8, generator=torch.Generator().manual_seed(0))
    assert found is not None
    assert len(set(found.points)) > 2
    assert all(truth[int(z), int(y), int(x)] for x, y, z in found.points)
    assert simulated(CLICKED, truth, clicks=8, generator=torch.Generator().manual_seed(0)) == found
    boxed = simulated(BOXED, truth, clicks=1, generator=torch.Generator())
    assert boxed is not None
    assert boxed.boxes == ((6, 2, 1, 6, 4, 2),)
    assert simulated(BOXED, truth & False, clicks=1, generator=torch.Generator()) is None
