"""`vesalius segment`: masks lie on their image, prompts are checked, and everything is found once."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from vesalius.cli import main
from vesalius.errors import ConfigError
from vesalius.evaluation.automatic_masks import (
    AutomaticConfig,
    automatic_masks,
    cut_by_edge,
    decode_runs,
    encode_runs,
    without_specks,
)
from vesalius.evaluation.segment import segment
from vesalius.nn.sam import SAM_PRESETS
from vesalius.nn.sam_decoder import Sam
from vesalius.tasks.prompted import SamPredictor

BASE = "random:sam_tiny"


@pytest.fixture
def picture(tmp_path):
    pixels = np.zeros((48, 64), dtype=np.uint8)
    pixels[10:30, 20:50] = 200
    Pillow.fromarray(pixels).save(tmp_path / "square.png")
    return tmp_path / "square.png"


@pytest.fixture
def volume(tmp_path):
    values = np.random.default_rng(0).normal(0, 300, (24, 20, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2, 5, 1])), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def test_a_click_from_the_command_line(picture, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        main(
            ["segment", str(picture), "--base", BASE, "--point", "30,20", "5,5", "--label", "1", "0", "--out", str(out)]
        )
        == 0
    )
    assert "object: " in capsys.readouterr().out
    assert np.asarray(Pillow.open(out / "square.png")).shape == (48, 64)
    assert (out / "square_overlay.png").is_file()
    report = json.loads((out / "square.json").read_text())
    assert report["points"] == [[30.0, 20.0], [5.0, 5.0]]
    assert report["labels"] == [1, 0]
    assert report["masks"][0]["pixels"] == int((np.asarray(Pillow.open(out / "square.png")) == 1).sum())


def test_the_mask_of_a_slice_lies_in_its_volume(volume, tmp_path):
    result = segment(volume, base=BASE, out=tmp_path / "out", box=["2,2,15,18"], frame=4, window=(40, 400))
    written = nibabel.load(tmp_path / "out" / "ct.nii.gz")
    assert written.shape == (24, 20, 6)
    assert np.allclose(written.affine, np.diag([2.0, 2, 5, 1]))
    values = np.asarray(written.dataobj)
    assert int(values[:, :, 4].sum()) == result["masks"][0]["pixels"]
    assert not values[:, :, [0, 1, 2, 3, 5]].any()
    assert result["masks"][0]["mm2"] == 4 * result["masks"][0]["pixels"]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ({}, "what should be segmented"),
        ({"point": ["1,2"], "automatic": True}, "what should be segmented"),
        ({"point": ["1;2"]}, "give 2 numbers"),
        ({"point": ["70,20"]}, "64 columns and 48 rows"),
        ({"box": ["30,30,20,40"]}, "x0 < x1"),
        ({"point": ["1,2"], "label": [1, 0]}, "2 labels for 1 points"),
        ({"point": ["1,2"], "window": (1.0,)}, "its centre and its width"),
    ],
)
def test_prompts_that_cannot_be_meant(picture, tmp_path, prompt, says):
    with pytest.raises(ConfigError, match=says):
        segment(picture, base=BASE, out=tmp_path / "out", **prompt)
    assert not (tmp_path / "out").exists()


def test_everything_is_found_and_drawn(picture, tmp_path, monkeypatch):
    config = AutomaticConfig(points=3, iou=-10, stability=0, nms=1.0)
    monkeypatch.setattr("vesalius.evaluation.segment.AutomaticConfig", lambda **options: config)
    result = segment(picture, base=BASE, out=tmp_path / "out", automatic=True, overlays=False)
    report = json.loads((tmp_path / "out" / "square.json").read_text())
    assert len(report["masks"]) == len(result["masks"]) > 1
    first = report["masks"][0]
    assert decode_runs(np.array(first["counts"]), tuple(first["size"])).sum() == first["pixels"]
    assert [Path(path).name for path in result["outputs"]] == ["square.png", "square.json"]


def test_runs_are_the_mask():
    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    for one in (mask, ~mask, np.zeros((7, 5), bool), np.ones((7, 5), bool)):
        assert np.array_equal(decode_runs(encode_runs(one), (7, 5)), one)
        assert encode_runs(one)[1::2].sum() == one.sum()


def test_a_crop_edge_cuts_but_an_image_edge_does_not():
    crop, image = (50, 0, 150, 100), (0, 0, 200, 100)
    boxes = torch.tensor([[2.0, 30, 60, 70], [40, 0, 60, 99], [40, 40, 60, 60]])
    assert cut_by_edge(boxes, crop, image).tolist() == [True, False, False]


def test_specks_go_and_an_unchanged_mask_stays(picture):
    torch.manual_seed(0)
    predictor = SamPredictor(Sam(SAM_PRESETS["sam_tiny"]))
    config = AutomaticConfig(points=2, iou=-10, stability=0, nms=1.0)
    found = automatic_masks(predictor, np.zeros((3, 40, 40), np.uint8), config, progress=False)[0]
    clean = np.zeros((40, 40), bool)
    clean[5:35, 5:35] = True
    speckled = clean.copy()
    speckled[20, 20] = False
    speckled[0, 0] = True
    whole, spotted = (
        type(found)(**{**vars(found), "runs": encode_runs(m), "box": (5, 5, 34, 34)}) for m in (clean, speckled)
    )
    kept = without_specks([spotted, whole], 4, 0.7)
    assert len(kept) == 1
    assert kept[0] is whole
    assert np.array_equal(without_specks([spotted], 4, 0.7)[0].mask, clean)
