"""Stacks as they are drawn, boxes around what was augmented, the schedule, and a training that learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius.adapt.masam import (
    BTCV_CLASSES,
    PRESETS,
    MaSamAdaptation,
    MaSamConfig,
    StackView,
    flat_box,
    import_published,
    stack_contract,
    warmup_poly,
    whole_box,
)
from vesalius.adapt.sam_files import load_adapted
from vesalius.data.datasets import generator
from vesalius.errors import WeightsError
from vesalius.nn.masam import MaSam, StackAdapters
from vesalius.nn.sam import SamConfig, SamDecoderConfig
from vesalius.nn.sam_decoder import Sam
from vesalius.published.checkpoint import read_state
from vesalius.published.masam import save_masam
from vesalius.tasks.stacks import StackSegmentation
from vesalius.training.loop import TrainConfig, fit

SMALL = SamConfig(
    image_size=32,
    patch_size=8,
    width=32,
    depth=2,
    heads=2,
    global_blocks=(1,),
    window=2,
    neck=64,
    decoder=SamDecoderConfig(mlp=64, iou_hidden=32),
)
ADAPTERS = StackAdapters(width=16, rank=4)
CONFIG = replace(PRESETS["tiny"], slices=3, frame=(32, 32), adapters=ADAPTERS, augmented=True, lr=3e-3)
CONTRACT = stack_contract(("CT",), CONFIG, ct=True)


class Balls:
    """Volumes of a bright ball each, on a darker ground, in Hounsfield units; rows are wider than columns are high."""

    def __init__(self, count: int = 4, first: int = 0):
        self.samples = [self._draw(first + number, number) for number in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.samples[index]

    def where(self, index: int) -> str:
        return f"ball {index}"

    @staticmethod
    def _draw(seed: int, row: int) -> dict[str, object]:
        rng = np.random.default_rng(seed)
        z, y, x = np.ogrid[:6, :24, :32]
        centre, radius = rng.uniform((1, 8, 10), (4, 16, 22)), rng.uniform(4, 7)
        mask = ((2 * (z - centre[0])) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2).astype(np.uint8)
        image = (-100 + 250.0 * mask + rng.normal(0, 20, mask.shape)).astype(np.int16)
        places = np.argwhere(mask)
        points = np.c_[np.ones(len(places)), places].astype(np.int32)
        return {
            "image": torch.from_numpy(image[None]),
            "limits": torch.tensor([[-200.0, 250.0]]),
            "mask": torch.from_numpy(mask),
            "points": torch.from_numpy(points),
            "row": row,
        }


def task(boxes: bool = False) -> StackSegmentation:
    torch.manual_seed(0)
    network = MaSam(SMALL, 1, ADAPTERS)
    return StackSegmentation(network.freeze(boxes=boxes), ("ball",), slices=3, frame=(32, 32), boxes=boxes)


def test_a_stack_is_a_function_of_its_draw() -> None:
    view, sample = StackView(task(), CONTRACT, CONFIG), Balls()[0]
    stacks = [view(sample, generator(0, draw)) for draw in [*range(20), 0]]
    assert torch.equal(stacks[0]["image"], stacks[-1]["image"]) and torch.equal(stacks[0]["mask"], stacks[-1]["mask"])
    assert len({stack["image"].numpy().tobytes() for stack in stacks}) > 15
    assert all(stack["image"].shape == (3, 1, 32, 32) and stack["mask"].shape == (3, 32, 32) for stack in stacks)


def test_the_end_slices_are_repeated_and_the_filling_counts_for_nothing() -> None:
    view, sample = StackView(task(), CONTRACT, replace(CONFIG, augmented=False)), Balls()[0]
    sample["mask"] = torch.eye(6, dtype=torch.uint8)[:, None].expand(6, 32, 6)  # tells the slices apart
    sample["image"] = torch.randint(-200, 250, (1, 6, 32, 6), dtype=torch.int16)
    found = {}
    for draw in range(60):
        stack = view(sample, generator(1, draw))
        assert (stack["mask"][..., 6:] == 255).all() and (stack["image"][..., 6:] == 0).all()
        number = stack["mask"][:, 0, :6].argmax(1)
        found[int(number[1])] = number.tolist()
    assert found == {0: [0, 0, 1], 1: [0, 1, 2], 2: [1, 2, 3], 3: [2, 3, 4], 4: [3, 4, 5], 5: [4, 5, 5]}


def test_a_box_holds_what_is_labelled_after_the_augmentation() -> None:
    config = replace(CONFIG, mirror=True)
    view, sample = StackView(task(boxes=True), CONTRACT, config), Balls()[1]
    for draw in range(40):
        stack = view(sample, generator(2, draw))
        assert stack["boxes"].shape == (3, 4) and (stack["boxes"] == stack["boxes"][0]).all()
        rows, columns = torch.nonzero((stack["mask"] == 1).any(0), as_tuple=True)
        if len(rows):
            x0, y0, x1, y1 = stack["boxes"][0].tolist()
            assert x0 <= columns.min() and columns.max() <= x1 and y0 <= rows.min() and rows.max() <= y1
            assert (x1 - x0) < 31 or (y1 - y0) < 31  # and not all there is


def test_boxes_may_be_drawn_loosely() -> None:
    mask = torch.zeros(20, 30, dtype=torch.uint8)
    mask[4:10, 5:21] = 1
    exact = flat_box(mask)
    loose = torch.stack([flat_box(mask, jitter=0.2, rng=np.random.default_rng(seed)) for seed in range(200)])
    gaps = (loose - exact).abs().amax(0)
    assert (gaps[[0, 2]] <= 3.01).all() and (gaps[[0, 2]] > 2).all() and (gaps[[1, 3]] <= 1.01).all()
    assert whole_box(torch.stack([mask, 0 * mask, mask])) == [5, 4, 0, 20, 9, 2]
    assert whole_box(0 * mask[None]) is None


def test_the_published_rate_follows_the_stacks_a_step() -> None:
    config = MaSamConfig().scaled(3)
    assert config.lr == pytest.approx(1e-4) and config.scaled(24).lr == config.lr
    rate = [warmup_poly(step, total=1000, warmup=10, lr=1.0) for step in range(1001)]
    assert rate[0] == 0.1 and rate[9] == rate[10] == 1 and np.all(np.diff(rate[10:]) < 0)
    assert rate[1000] == pytest.approx((1 - 990 / (1000 * 400 / 300)) ** 7)


def test_the_authors_file_becomes_a_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = Sam(replace(SMALL, image_size=64, patch_size=16))
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    network = MaSam.on(sam, 12, ADAPTERS)
    torch.nn.init.normal_(network.fact.v.weight)
    published = save_masam(network, tmp_path / "epoch_299.pth")
    import_published(published, tmp_path / "sam.pth", tmp_path / "run", frame=32)
    run, card = load_adapted(tmp_path / "run")
    assert run.classes == BTCV_CLASSES and card.contract.roi == (5, 32, 32) and "assumed" in card.notes[-1]
    volume = torch.rand(1, 5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(run(volume), network.eval()(volume), atol=1e-5)
    stored = read_state(tmp_path / "run" / "weights.safetensors")
    assert not any(name.endswith(("pos_embed", "attn.proj.weight")) for name in stored)
    with pytest.raises(WeightsError, match="has 12 classes, not 1"):
        import_published(published, tmp_path / "sam.pth", tmp_path / "other", classes=("liver",), frame=32)


@pytest.mark.parametrize("boxes", [False, True])
def test_a_training_learns_and_keeps_the_base(boxes: bool) -> None:
    module = MaSamAdaptation(task(boxes), CONTRACT, replace(CONFIG, lr=1e-2, augmented=False, foreground=1.0))
    base = {n: p.clone() for n, p in module.named_parameters() if not p.requires_grad}
    options = TrainConfig(steps=80, batch_size=3, val_every=40)
    summary = fit(module, Balls(6), None, options, val=Balls(2, first=50), monitor=module.monitor, progress=False)
    assert summary["val"]["val/dice"] > 0.5
    assert all(torch.equal(tensor, module.get_parameter(name)) for name, tensor in base.items())
