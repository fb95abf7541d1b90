"""A Universal Model's predictions on files: one answer in every orientation, scores against partial labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius.data.class_tables import ClassTable
from vesalius.data.phantoms.volume_files import write_nifti
from vesalius.data.table import make_table
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Window
from vesalius.evaluation.volume_tasks import load_volume_task
from vesalius.evaluation.volumes import Case, predict_case, score_volumes
from vesalius.images import read_volume
from vesalius.nn.language_head import LanguageDriven
from vesalius.nn.unet3d import SegResNet, SegResNetConfig
from vesalius.pretrain.universal import PRESETS, Universal
from vesalius.published.card import Card
from vesalius.published.load import save_weights
from vesalius.tasks.volume_language import LanguageSegmentation

TABLE = ClassTable.from_dict(
    {
        "classes": [
            "kidney_right",
            "kidney_left",
            {"name": "cyst", "kind": "cyst", "organs": ["kidney_right", "kidney_left"]},
            {"name": "bone", "rule": "keep"},
        ],
        "pairs": {"kidney": ["kidney_right", "kidney_left"]},
    }
)
CONTRACT = VolumeContract(("CT",), intensity=Window(0, 100), roi=(16, 16, 16))


@pytest.fixture
def task(monkeypatch):
    """A network that knows classes by their brightness, and left from right by place."""
    network = LanguageDriven(SegResNet(SegResNetConfig(width=8)), classes=TABLE.names)

    def by_brightness(volume, classes):
        organ, cyst, bone = volume > 0.25, volume > 0.55, volume > 0.85
        left = torch.arange(volume.shape[2]).view(1, 1, -1, 1, 1) < 8
        every = {"kidney_right": organ & ~bone & ~left, "kidney_left": organ & ~bone & left}
        every |= {"cyst": cyst & ~bone, "bone": bone}
        return torch.cat([20.0 * every[name] - 10 for name in classes], dim=1)

    monkeypatch.setattr(network, "forward", by_brightness)
    return LanguageSegmentation(network, TABLE).eval()


@pytest.fixture
def case(tmp_path):
    """``volume, mask [D, H, W]`` in LPS: a kidney each side, a cyst in the left one, bone; and the table's row."""
    volume, mask = np.zeros((2, 16, 16, 16), np.uint8)
    volume[4:8, 4:8, 2:5], mask[4:8, 4:8, 2:5] = 40, 1  # few columns: right in LPS
    volume[4:9, 4:8, 11:15], mask[4:9, 4:8, 11:15] = 40, 1
    volume[5:7, 5:7, 12:14], mask[5:7, 5:7, 12:14] = 70, 2
    volume[12:14, 8:12, 6:10] = 100
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    write_nifti(volume.astype(np.int16), affine, tmp_path / "ct.nii.gz")
    write_nifti(mask, affine, tmp_path / "mask.nii.gz", orientation="RAS")
    row = {"path": str(tmp_path / "ct.nii.gz"), "mask": str(tmp_path / "mask.nii.gz"), "size": [16, 16, 16]}
    names = ["Kidney", "cyst"]
    return volume, affine, make_table([{**row, "spacing": [2.0, 1.0, 1.0], "mask_classes": names, "annotated": names}])


def test_sides_and_tumours_are_scored_and_what_nobody_labelled_is_not(task, case):
    *_, rows = case
    metrics, cases, _ = score_volumes(task, CONTRACT, rows, groups=["a"], draws=10)
    for name in ("kidney_right", "kidney_left", "cyst"):
        assert metrics["per_class"][name]["dice"] == 1.0
    assert metrics["per_class"]["bone"]["unannotated"] == 1
    assert cases["dice bone"] == [None]


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SAR", "IPL"])
def test_one_answer_in_every_orientation(task, case, tmp_path, orientation):
    volume, affine, _ = case
    expected = np.zeros(volume.shape, np.uint8)
    expected[volume == 40] = 1
    expected[..., 8:][volume[..., 8:] == 40] = 2
    expected[volume == 70], expected[volume == 100] = 3, 4
    write_nifti(volume.astype(np.int16), affine, tmp_path / "turned.nii.gz", orientation=orientation)
    write_nifti(expected, affine, tmp_path / "expected.nii.gz", orientation=orientation)
    source = Case((tmp_path / "turned.nii.gz",), (), Path("turned"))
    (row,) = predict_case(task, CONTRACT, source, tmp_path / "out", formats=["nifti"], overlays=False)
    written = read_volume(tmp_path / "out" / "turned.nii.gz")
    assert np.array_equal(written.array, read_volume(tmp_path / "expected.nii.gz").array)
    assert row["cyst_ml"] == pytest.approx(8 * 2 / 1000)


def test_a_run_is_loaded_with_its_own_table(tmp_path):
    torch.manual_seed(0)
    module = Universal(PRESETS["tiny"], table=TABLE)
    card = Card("universal", module.PART, module.architecture, module.contract, extra=module.extra)
    save_weights(module.network, tmp_path, card)
    task, _ = load_volume_task(tmp_path)
    assert isinstance(task, LanguageSegmentation)
    assert task.table == TABLE
