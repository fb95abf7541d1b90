"""Clicks on volumes: where crops lie, how they are merged, and back to the image's own voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import ClipZScore
from vesalius.errors import ConfigError
from vesalius.images import Image
from vesalius.nn.sam3d import Sam3DShape
from vesalius.tasks.prompted_volumes import (
    PromptedVolumeSegmentation,
    click_loss,
    crop_corners,
    cut,
    draw_clicks,
    on_grid,
)

ROI = (16, 16, 16)


class Ball(nn.Module):
    """Finds what lies within three voxels of a click, or, without clicks, what is bright."""

    def __init__(self, *, prompted: bool = True):
        super().__init__()
        self.config = Sam3DShape(prompted=prompted)
        self.nothing = nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, volume, points, labels):
        if points is None:
            inside = volume[:, 0] > 0
        else:
            self.seen.append(points[0])
            grid = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in volume.shape[2:]), indexing="ij"), -1)
            inside = ((grid - points[0][:, None, None, None]).norm(dim=-1) <= 3).any(0)[None]
        found = torch.where(inside, 4.0, -4.0)
        return torch.stack([-found, found], 1)


def contract(**changes) -> VolumeContract:
    options = {"spacing": (1.0, 1.0, 1.0), "orientation": "SPL", "roi": ROI, "intensity": ClipZScore(-100, 100, 0, 50)}
    return VolumeContract(("CT",), **{**options, **changes})


def ct(size=(20, 24, 30), spacing=(2.0, 1.0, 1.0)) -> Image:
    """Columns to the right, rows to the front, slices up: two of the three go against the network's axes."""
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    return Image(np.full((1, *size), -80, np.int16), ("CT",), spacing=spacing, affine=affine)


def test_a_click_marks_its_place_in_the_image():
    """Anisotropic voxels, mirrored axes: the ball's centre is the click, its extent 3 mm either way."""
    task, image = PromptedVolumeSegmentation(Ball(), ("tumour",)), ct()
    mask = task.segment(image, contract(), points=[(22, 6, 11)])
    places = np.argwhere(mask)
    assert mask.shape == image.size
    assert places.mean(0) == pytest.approx([11, 6, 22], abs=0.51)
    assert (np.ptp(places, axis=0) * image.spacing).tolist() == pytest.approx([6, 6, 6], abs=2)


def test_a_click_outside_of_the_image_is_an_error():
    with pytest.raises(ConfigError, match=r"outside of \[30, 24, 20\] columns"):
        on_grid([(22, 26, 3)], contract().grid(ct()))


def test_far_clicks_get_crops_of_their_own():
    points = torch.tensor([[10, 10, 10], [14, 12, 10], [50, 10, 10]])
    assert crop_corners(points, ROI) == [(4, 3, 2), (42, 2, 2)]
    assert crop_corners(points, ROI, merge=False) == [(22, 3, 2)]
    network = Ball()
    task = PromptedVolumeSegmentation(network, ("tumour",))
    found = task.probability(torch.zeros(1, 64, 20, 20), points, roi=ROI) > 0.5
    assert all(found[tuple(point)] for point in points)
    assert [seen.tolist() for seen in network.seen] == [[[6, 7, 8], [10, 9, 8]], [[8, 8, 8]]]
    single = PromptedVolumeSegmentation(network, ("tumour",), merge=False)
    assert not (single.probability(torch.zeros(1, 64, 20, 20), points, roi=ROI) > 0.5).any()
    assert len(network.seen[-1]) == 3  # as published, also those that are not in the crop


class Constant(Ball):
    """Says of the whole crop what its number of clicks is."""

    def forward(self, volume, points, labels):
        logits = torch.zeros(1, 2, *volume.shape[2:])
        logits[:, 1] = points.shape[1]
        return logits


def test_crops_are_averaged_where_they_overlap():
    task = PromptedVolumeSegmentation(Constant(), ("tumour",))
    points = torch.tensor([[10, 10, 10], [11, 10, 10], [22, 10, 10]])  # the last one lies in one crop only
    found = task.probability(torch.zeros(1, 40, 20, 20), points, roi=(20, 16, 16))[:, 10, 10]
    two, one = torch.tensor([2.0, 1.0]).sigmoid().tolist()
    assert found[[0, 11]].tolist() == pytest.approx([two, two])
    assert found[[12, 19]].tolist() == pytest.approx([(one + two) / 2] * 2)
    assert found[[20, 31, 32]].tolist() == pytest.approx([one, one, 0])


def test_background_clicks_place_no_crop():
    task = PromptedVolumeSegmentation(Ball(), ("tumour",))
    points, labels = torch.tensor([[8, 8, 8], [40, 8, 8]]), torch.tensor([1, 0])
    assert task.probability(torch.zeros(1, 48, 16, 16), points, labels, roi=ROI)[30:].max() == 0
    with pytest.raises(ConfigError, match="no foreground click"):
        task.probability(torch.zeros(1, 48, 16, 16), points, 0 * labels, roi=ROI)


def test_a_crop_beyond_the_border_is_filled_with_zeros_after_normalising():
    volume = torch.full((1, 6, 6, 6), 5.0)
    crop = cut(volume, (-2, 1, 3), (4, 8, 4), lambda part: part - 7)
    assert crop.shape == (1, 4, 8, 4)
    assert crop[0, 2:, :5, :3].eq(-2).all()
    assert crop.ne(0).sum() == 2 * 5 * 3


@pytest.mark.parametrize("size", [(20, 24, 30), (10, 12, 40)])
def test_without_clicks_crops_cover_the_volume(size):
    image = ct(size, (1.0, 1.0, 1.0))
    image.array[0, 2:8, 3:9, 4:28] = 60
    found = PromptedVolumeSegmentation(Ball(prompted=False), ("tumour",)).segment(image, contract())
    assert np.array_equal(found, image.array[0] > 0)


def test_prompts_that_do_not_fit_are_errors():
    task = PromptedVolumeSegmentation(Ball(), ("tumour",))
    for options, reason in (
        ({}, "needs a click"),
        ({"boxes": [(0, 0, 0, 1, 1, 1)]}, "no boxes"),
        ({"points": [(1, 1, 1)], "labels": [1, 0]}, "2 labels for 1"),
    ):
        with pytest.raises(ConfigError, match=reason):
            task.segment(ct(), contract(), **options)
    with pytest.raises(ConfigError, match="2 classes"):
        PromptedVolumeSegmentation(Ball(), ("liver", "tumour"))


def test_ignored_voxels_count_for_nothing():
    logits, mask = torch.randn(2, 2, 4, 4, 4), torch.randint(2, (2, 4, 4, 4))
    mask[:, 2:] = 255
    assert click_loss(logits, mask) == pytest.approx(float(click_loss(logits[:, :, :2], mask[:, :2])), rel=1e-5)


def test_clicks_are_drawn_from_the_foreground():
    mask = torch.zeros(4, 5, 6, dtype=torch.bool)
    assert draw_clicks(mask, 3, torch.Generator()).shape == (0, 3)
    mask[1, 2:4, 3] = True
    assert {tuple(place) for place in draw_clicks(mask, 20, torch.Generator()).tolist()} == {(1, 2, 3), (1, 3, 3)}
