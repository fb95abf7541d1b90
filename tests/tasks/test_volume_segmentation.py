"""Segmentation of volumes: regions and label maps, what is left out of the loss, pictures the right way up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from vesalius.errors import ConfigError
from vesalius.images import Image
from vesalius.nn.swin_unetr import SwinConfig, SwinEncoder
from vesalius.nn.unet3d import UNet3D, UNet3DConfig
from vesalius.tasks.brats import labels, regions
from vesalius.tasks.volume_segmentation import BRATS, VolumeSegmentation, middle_slices, painted, parse_regions

GLIOMA = ("necrotic core", "oedema", "enhancing tumour")


def _task(classes=GLIOMA, **options):
    torch.manual_seed(0)
    return VolumeSegmentation(UNet3D(UNet3DConfig(width=2)), classes, **options)


def test_regions_are_painted_as_the_published_code_does():
    scores = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    ours = _task(regions=BRATS).decide(scores).numpy()
    theirs = labels(scores.sigmoid().numpy())
    assert np.array_equal(np.array([0, 1, 2, 4])[ours], theirs)


def test_regions_of_a_label_map_are_the_published_ones():
    mask = torch.tensor([0, 1, 2, 3]).view(1, 1, 2, 2)
    ours = _task(regions=BRATS).region_masks(mask)[0].numpy()
    assert np.array_equal(ours, regions(np.array([0, 1, 2, 4]).reshape(1, 2, 2)))


def test_the_loss_of_regions_is_the_published_one():
    task = _task(regions=BRATS)
    mask = torch.randint(4, (2, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    output = torch.randn(2, 3, 8, 8, 8)
    expected = DiceLoss(sigmoid=True)(output, task.region_masks(mask).float())
    assert torch.isclose(task.loss(output, {"mask": mask}), expected)
    both = _task(regions=BRATS, entropy=True).loss(output, {"mask": mask})
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(output, task.region_masks(mask).float())
    assert torch.isclose(both, expected + entropy)


@pytest.mark.parametrize("regions", [None, BRATS])
def test_voxels_that_nobody_judged_have_no_gradient(regions):
    task = _task(regions=regions, entropy=True)
    mask = torch.randint(4, (1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    mask[:, :4] = 255
    output = torch.randn(1, 3 if regions else 4, 8, 8, 8, requires_grad=True)
    task.loss(output, {"mask": mask}).backward()
    assert not output.grad[:, :, :4].any()
    assert output.grad[:, :, 4:].any()


def test_regions_that_make_no_label_map_are_refused():
    with pytest.raises(ConfigError, match="region 'all' has 2 classes that no region within it has"):
        parse_regions(["all=necrotic core+oedema+enhancing tumour", "ET=enhancing tumour"], GLIOMA)
    with pytest.raises(ConfigError, match="write brats, or NAME=CLASS"):
        parse_regions(["whole"], GLIOMA)
    assert painted({"a": ("x", "y"), "b": ("y",)}, ("x", "y")) == [(0, 1), (1, 2)]


def test_a_linear_head_reads_the_encoders_maps_alone():
    encoder = SwinEncoder(SwinConfig(width=12, window=4))
    with pytest.raises(ConfigError, match="this trunk has no decoder"):
        VolumeSegmentation(encoder, ("lesion",))
    task = VolumeSegmentation(encoder, ("lesion",), linear=True)
    assert [head.in_channels for head in task.head] == [12, 24, 48, 96, 192]
    assert task(torch.zeros(1, 1, 64, 32, 32)).shape == (1, 2, 64, 32, 32)


def test_pictures_show_the_head_up_and_the_left_on_the_right():
    pixels = np.zeros((1, 10, 12, 14), np.float32)  # slices from below, rows to the back, columns to the left
    pixels[0, 8:] = 1  # the top
    pixels[0, :, :, 12:] = 1  # the left
    image = Image(pixels, ("gray",), spacing=(2, 1, 1), affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    mask = np.zeros((10, 12, 14), np.uint8)
    mask[4, 6, 7] = 1
    coronal, marks = middle_slices(image, mask)["coronal"]
    height, width = coronal.size
    assert height / width == pytest.approx(20 / 14, rel=0.1)  # square pixels
    picture = coronal.array[0]
    assert picture[: height // 6].min() == 255
    assert picture[:, -width // 8 :].min() == 255
    assert picture[-1, 0] == 0
    assert (marks == 1).any()
