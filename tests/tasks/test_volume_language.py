"""The Universal Model's task computes what was asked for and what its rules need, cleans it, and paints it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vesalius.data.class_tables import ClassTable
from vesalius.errors import ConfigError
from vesalius.images import Image, read
from vesalius.nn.language_head import LanguageDriven
from vesalius.nn.unet3d import UNet3D, UNet3DConfig
from vesalius.tasks.volume_language import LanguageSegmentation

TABLE = ClassTable.from_dict(
    {
        "classes": [
            "liver",
            {"name": "tumor", "kind": "tumor", "organs": ["liver"], "rule": "inside"},
            {"name": "lung_right", "rule": "sides"},
            {"name": "lung_left", "rule": "sides"},
        ],
        "pairs": {"lung": ["lung_right", "lung_left"]},
    }
)


@pytest.fixture
def task():
    torch.manual_seed(0)
    return LanguageSegmentation(LanguageDriven(UNet3D(UNet3DConfig(width=4)), classes=TABLE.names), TABLE).eval()


@pytest.mark.parametrize(
    ("asked", "classes", "computed"),
    [
        ([], TABLE.names, TABLE.names),
        (["Tumour"], ("tumor",), ("tumor", "liver")),
        (["lung"], ("lung_right", "lung_left"), ("lung_right", "lung_left")),
        (["lung_left", "liver"], ("lung_left", "liver"), ("lung_left", "liver", "lung_right")),
    ],
)
def test_only_what_is_needed_is_computed(task, asked, classes, computed):
    assert task.choose(asked).classes == classes
    assert task.computed == computed
    with torch.no_grad():
        assert task(torch.rand(1, 1, 16, 16, 16)).shape[1] == len(computed)


def test_a_class_that_is_not_known_is_named(task):
    with pytest.raises(ConfigError, match="did you mean 'liver'"):
        task.choose(["livr"])


def test_a_tumour_is_cut_to_its_organ_and_painted_over_it(task):
    found = np.zeros((2, 16, 8, 8), np.uint8)
    found[1, :6], found[1, 15, 7, 7] = 1, 1  # liver, and a speck of it
    found[0, 4:6], found[0, 12:14] = 1, 1  # a tumour in it, and one beyond
    task.choose(["tumor"])
    masks = task.masks(found)
    assert masks.shape == (1, 16, 8, 8)
    assert np.flatnonzero(masks[0].any((1, 2))).tolist() == [4, 5]
    task.choose(["tumor", "liver"])
    label = task.finish(found)
    assert label[:, 0, 0].tolist() == [2] * 4 + [1] * 2 + [0] * 10


def test_a_file_comes_with_its_classes(task, tmp_path):
    image = Image(np.zeros((1, 4, 4, 4), np.int16), ("gray",), spacing=(1, 1, 1), affine=np.eye(4))
    paths = task.choose(["liver"]).write(np.ones((4, 4, 4), np.uint8), image, tmp_path, "case", ["nifti"])
    assert [path.name for path in paths] == ["case.nii.gz", "case_classes.json"]
    assert json.loads(paths[1].read_text()) == {"1": "liver"}
    assert read(paths[0]).array.max() == 1
