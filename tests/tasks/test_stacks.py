"""Stacks cover a volume, their means decide it slice by slice, and the label map comes back onto the image's voxels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Window
from vesalius.errors import ConfigError, VesaliusError
from vesalius.images import Image
from vesalius.nn.masam import MaSam, StackAdapters
from vesalius.nn.sam import SamConfig, SamDecoderConfig
from vesalius.tasks import stacks
from vesalius.tasks.stacks import StackSegmentation, average_stacks, fit, placed_box, places_of, stack_loss, stretch

SMALL = SamConfig(
    image_size=32,
    patch_size=8,
    width=24,
    depth=2,
    heads=2,
    global_blocks=(1,),
    window=3,
    neck=32,
    decoder=SamDecoderConfig(mlp=32, iou_hidden=32),
)
CT = VolumeContract(("CT",), orientation="SPL", intensity=Window(-100, 200), roi=(3, 32, 32))


def task(**options: object) -> StackSegmentation:
    torch.manual_seed(1)
    classes = ("liver",) if options.get("boxes") else ("liver", "spleen")
    network = MaSam(SMALL, len(classes), StackAdapters(width=12, rank=4))
    return StackSegmentation(network, classes, **{"slices": 3, "frame": (32, 32), **options}).eval()  # type: ignore[arg-type]


def scan(depth: int = 7, height: int = 30, width: int = 24) -> Image:
    """Smooth Hounsfield units; slices go up, rows to the back, columns to the left."""
    z, y, x = np.meshgrid(*(np.linspace(0, 6, n) for n in (depth, height, width)), indexing="ij")
    array = (50 + 120 * np.sin(z + x) * np.cos(y - 0.5 * z)).astype(np.int16)[None]
    return Image(array, ("CT",), spacing=(3.0, 1.0, 1.0), affine=np.diag([1.0, 1.0, 3.0, 1.0]))


@pytest.mark.parametrize("within", [None, (2, 5), (10, 10)])
@pytest.mark.parametrize(("slices", "stride"), [(5, 1), (5, 2), (5, 5), (4, 3), (1, 1), (3, 2)])
def test_means_are_those_of_all_stacks(slices: int, stride: int, within: tuple[int, int] | None) -> None:
    depth, made = 11, []
    first, last = within or (0, depth - 1)

    def scores(places: Tensor) -> Tensor:
        assert places.min() >= 0 and places.max() < depth
        made.append(torch.rand(slices, 2, generator=torch.Generator().manual_seed(len(made))))
        return made[-1].clone()

    found = dict(average_stacks(scores, depth, slices=slices, stride=stride, within=within))
    assert sorted(found) == list(range(first, last + 1)) == list(found)
    total, count = torch.zeros(depth, 2), torch.zeros(depth, 1)
    for centre, score in zip(stacks.stack_centres(last - first + 1, slices, stride), made, strict=True):
        for place, one in zip(places_of(first + centre, slices).tolist(), score, strict=True):
            if first <= place <= last:
                total[place], count[place] = total[place] + one, count[place] + 1
    assert torch.allclose(torch.stack(list(found.values())), (total / count)[first : last + 1])


def test_a_slice_is_done_with_when_no_stack_reaches_it() -> None:
    seen = []

    def scores(places: Tensor) -> Tensor:
        seen.append(int(places[2]))
        return torch.zeros(5, 1)

    for number, _ in average_stacks(scores, 50):
        assert seen[-1] <= number + 3 or number > 46


def test_slices_are_fitted_with_their_aspect() -> None:
    image, mask = torch.ones(1, 2, 20, 30), torch.ones(2, 20, 30, dtype=torch.uint8)
    pixels, labels = fit(image, (48, 48)), fit(mask, (48, 48))
    assert pixels.shape == (1, 2, 48, 48) and labels.dtype == torch.uint8
    assert torch.equal(labels == 255, (pixels == 0)[0])
    assert (pixels[..., :32, :] == 1).all() and (labels[..., :32, :] == 1).all() and (labels[..., 32:, :] == 255).all()


def test_stretch_goes_channel_by_channel() -> None:
    stack = torch.stack([torch.linspace(-3, 5, 8), torch.full((8,), 2.0)]).view(2, 2, 2, 2)
    assert torch.allclose(stretch(stack)[0].flatten(), torch.linspace(0, 1, 8), atol=1e-6)
    assert (stretch(stack)[1] == 0).all()


def test_what_nobody_labelled_costs_nothing() -> None:
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.randint(3, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    mask[:, :4] = 255
    stack_loss(logits, mask).backward()
    assert (logits.grad[:, :, :4] == 0).all() and (logits.grad[:, :, 4:] != 0).any()
    assert torch.allclose(stack_loss(logits, mask), stack_loss(logits[:, :, 4:], mask[:, 4:]))


def test_labels_do_not_depend_on_how_the_image_is_stored() -> None:
    image, net = scan(), task()
    labels = net.segment(image, CT)
    assert labels.shape == image.size and labels.dtype == np.uint8 and len(np.unique(labels)) > 1
    flips = (0, 2)
    affine = image.affine @ np.diag([-1.0, 1.0, -1.0, 1.0])
    affine[:3, 3] = (image.affine @ [image.size[2] - 1, 0, image.size[0] - 1, 1])[:3]
    mirrored = replace(image, array=np.flip(image.array, [axis + 1 for axis in flips]), affine=affine)
    assert np.array_equal(np.flip(net.segment(mirrored, CT), flips), labels)
    turned = replace(
        image,
        array=image.array.transpose(0, 3, 2, 1),
        spacing=(1.0, 1.0, 3.0),
        affine=image.affine[:, [2, 1, 0, 3]],
    )
    assert np.array_equal(net.segment(turned, CT).transpose(2, 1, 0), labels)


def test_overlapping_stacks_are_averaged_and_half_precision_agrees() -> None:
    image, net = scan(), task()
    placed = torch.from_numpy(CT.place(image))
    limits = CT.limits(placed.numpy())

    def prepare(stack: Tensor) -> Tensor:
        return CT.normalise(stack, limits)

    labels = net.label(placed, prepare=prepare)
    assert np.array_equal(labels, net.segment(image, CT))
    with torch.inference_mode():
        total = torch.zeros(7, 3, 32, 32)
        for centre in range(7):
            places = places_of(centre, 3)
            stack = net.read(prepare(placed[:, places.clamp(0, 6)]))
            for place, score in zip(places.tolist(), net(stack[None])[0].softmax(1), strict=True):
                if 0 <= place < 7:
                    total[place] += score / (2 if place in (0, 6) else 3)
        rows, columns = stacks.fitted((30, 24), (32, 32))
        whole = torch.nn.functional.interpolate(total[..., :rows, :columns], (30, 24), mode="bilinear")
    assert np.array_equal(labels, whole.argmax(1).numpy())
    assert np.mean(net.label(placed, prepare=prepare, half=True) == labels) > 0.97
    apart = net.label(placed, prepare=prepare, stride=3)
    assert apart.shape == labels.shape and 0.5 < np.mean(apart == labels) < 1


def test_a_box_reaches_from_its_first_slice_to_its_last() -> None:
    image, net = scan(), task(boxes=True)
    torch.nn.init.constant_(net.encoder.mask_decoder.output_hypernetworks_mlps[1].layers[2].bias, 2.0)
    boxes = [(4, 6, 2, 15, 20, 3), (0, 0, 5, 23, 29, 5)]
    one, other, both = (net.segment(image, CT, boxes=some) for some in (boxes[:1], boxes[1:], boxes))
    assert one[2:4].any() and not one[[0, 1, 4, 5, 6]].any()
    assert np.array_equal(both, np.maximum(one, other))


def test_boxes_are_placed_with_the_image() -> None:
    contract = replace(CT, orientation="IAR", spacing=(1.5, 0.5, 0.5))
    assert placed_box((4, 6, 2, 15, 20, 3), scan(), CT) == [4, 6, 2, 15, 20, 3]
    x0, y0, z0, x1, y1, z1 = placed_box((4, 6, 2, 15, 20, 3), scan(), contract)
    assert (x0, x1) == pytest.approx((2 * (23 - 15), 2 * (23 - 4)), abs=1)  # mirrored, and twice as fine
    assert (y0, y1) == pytest.approx((2 * (29 - 20), 2 * (29 - 6)), abs=1)
    assert (z0, z1) == pytest.approx((2 * (6 - 3), 2 * (6 - 2)), abs=1)


def test_prompts_that_do_not_fit_are_refused() -> None:
    image = scan()
    with pytest.raises(ConfigError, match="needs a box"):
        task(boxes=True).segment(image, CT)
    with pytest.raises(ConfigError, match="takes no boxes"):
        task().segment(image, CT, boxes=[(0, 0, 0, 1, 1, 1)])
    with pytest.raises(ConfigError, match="no clicks"):
        task().segment(image, CT, points=[(0, 0, 0)])
    with pytest.raises(ConfigError, match="outside of a volume"):
        task(boxes=True).segment(image, CT, boxes=[(0, 0, 9, 1, 1, 11)])
    with pytest.raises(ConfigError, match="smaller ones first"):
        task(boxes=True).segment(image, CT, boxes=[(5, 0, 0, 1, 1, 1)])


def test_shapes_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        task(frame=(30, 32))
    with pytest.raises(ConfigError, match="leave out no slice"):
        task(stride=4)
    network = MaSam(SMALL, 2, StackAdapters(width=0, rank=0))
    with pytest.raises(ConfigError, match="box for several"):
        StackSegmentation(network, ("a", "b"), boxes=True)


def test_memory_is_asked_for_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vesalius.data.volumes.memory.available_memory", lambda: 1000)
    with pytest.raises(VesaliusError, match="free"):
        task().label(torch.zeros(1, 4, 32, 32))
    large = task(frame=(512, 512), slices=5)
    assert large.memory((400, 512, 512)) < 0.5 * 2**30  # of which the volume and its label map are 0.3
