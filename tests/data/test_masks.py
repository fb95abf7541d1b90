from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vesalius.data.masks import class_count, fill_ellipse, read_mask
from vesalius.errors import VesaliusError

SHAPE = np.pad(np.ones((4, 6), np.uint8), ((3, 5), (2, 8)))


def row(*masks, classes=("lesion",), size=(12, 16), frame=None):
    return {
        "path": "image.png",
        "frame": frame,
        "size": list(size),
        "mask": ";".join(map(str, masks)),
        "mask_classes": list(classes),
    }


@pytest.mark.parametrize("value", [1, 100, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_any_two_values_are_background_and_class(picture, tmp_path, value, mode):
    if mode == "P":
        coded = Image.fromarray(SHAPE * value, mode="L").convert("P")
        coded.putpalette([0, 0, 0] + [255, 0, 0] * 255)
    else:
        coded = Image.fromarray(SHAPE * (255 if mode == "1" else value)).convert(mode, dither=Image.Dither.NONE)
    coded.save(tmp_path / "m.png")
    assert (read_mask(row(tmp_path / "m.png")) == SHAPE).all()


@pytest.mark.parametrize(("value", "meant"), [(0, 0), (1, 1), (255, 1)])
def test_one_value_everywhere(picture, tmp_path, value, meant):
    path = picture(tmp_path / "m.png", np.full((12, 16), value, np.uint8))
    assert (read_mask(row(path)) == meant).all()


def test_smoothed_masks_are_cut_at_half(picture, tmp_path):
    grey = np.repeat(np.array([0, 3, 127, 128, 250, 255], np.uint8), 32).reshape(12, 16)
    assert (read_mask(row(picture(tmp_path / "m.png", grey))) == (grey > 127)).all()


def test_several_files_are_merged(picture, tmp_path):
    left, right = SHAPE * 0, SHAPE * 0
    left[:, :3], right[:, 5:] = 255, 1
    merged = read_mask(row(picture(tmp_path / "a.png", left), picture(tmp_path / "b.png", right)))
    assert (merged == (left > 0) | (right > 0)).all()


def test_several_classes_keep_their_values(picture, tmp_path):
    labels = SHAPE * 2  # only the second class is in this image
    labels[0] = 255
    path = picture(tmp_path / "m.png", labels)
    assert (read_mask(row(path, classes=("head", "tail"))) == labels).all()
    labels[1] = 3
    with pytest.raises(VesaliusError, match=r"m\.png: has the value 3 but 2 mask classes"):
        read_mask(row(picture(path, labels), classes=("head", "tail")))
    with pytest.raises(VesaliusError, match="only one mask class"):
        read_mask(row(picture(path, np.minimum(labels, 3))))


def test_a_volume_gives_the_rows_slice(picture, tmp_path):
    volume = np.random.default_rng(0).integers(0, 3, (16, 12, 5), dtype=np.uint8)  # x, y, z
    path = picture(tmp_path / "m.nii.gz", volume)
    assert (read_mask(row(path, classes=("a", "b"), frame=3)) == volume[:, :, 3].T).all()
    assert read_mask(row(path, classes=("a", "b"), size=(5, 12, 16))).shape == (5, 12, 16)


def test_another_shape_names_both_files(picture, tmp_path):
    path = picture(tmp_path / "m.png", size=(12, 15))
    with pytest.raises(VesaliusError, match=r"m\.png: has the shape \(12, 15\), .*image\.png .*\(12, 16\)"):
        read_mask(row(path))
    (tmp_path / "broken.png").write_bytes(path.read_bytes()[:60])
    with pytest.raises(VesaliusError, match=r"broken\.png: mask cannot be read"):
        read_mask(row(tmp_path / "broken.png"))


@pytest.mark.parametrize("centre", [(45, 60), (45, 4)])  # the second is cut by the border
def test_an_outlined_ellipse_is_filled(centre):
    y, x = np.indices((90, 120))
    angle = 0.4
    u = (x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)
    v = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
    radius = np.hypot(u / 40, v / 25)
    truth = radius <= 1
    for drawn in (abs(radius - 1) < 0.02, truth):
        assert (fill_ellipse(drawn, "ellipse.png") ^ truth).sum() < 0.02 * truth.sum()


def test_what_is_no_ellipse_is_refused():
    corner = np.zeros((40, 40), bool)
    corner[:, 0] = corner[-1] = True
    for drawn in (corner, corner & False):
        with pytest.raises(VesaliusError, match="not the outline of an ellipse"):
            fill_ellipse(drawn, "corner.png")


def test_unnamed_classes_are_counted_or_refused():
    assert [class_count(values, "set") for values in ({0}, {0, 1}, {0, 100}, {0, 1, 255}, {0, 1, 4})] == [1, 1, 1, 1, 4]
    with pytest.raises(VesaliusError, match="grey levels"):
        class_count(set(range(256)), "set")
