from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vesalius.data.blur import Blur
from vesalius.data.contract import InputContract
from vesalius.data.datasets import Draws, EvalView, ImageDataset, TrainView, generator, is_multilabel
from vesalius.data.index import index
from vesalius.data.sampling import DrawSampler
from vesalius.data.table import make_table, select
from vesalius.errors import ConfigError, VesaliusError

GREY = InputContract(size=8, channels=1, mean=(0.5,), std=(0.25,), interpolation="bilinear")


@pytest.fixture
def row(picture, tmp_path):
    """A function that gives a row whose image exists."""

    def make(name: str, array: np.ndarray | None = None, **values):
        path = picture(tmp_path / name, array)
        return {"path": str(path), "frames": 1, "size": [12, 16], **values}

    return make


def test_an_image_comes_at_its_own_size_in_unit_range(row, picture, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    table = make_table([row("a.png", pixels, target=str(picture(tmp_path / "t.png", pixels)))])
    sample = ImageDataset(table, InputContract(blur=Blur(sigma=2.0)), task="enhancement", sharp=True)[0]
    assert torch.equal(sample["sharp"], torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    assert torch.equal(sample["target"], sample["sharp"])
    assert sample["image"].shape == (3, 12, 16) and sample["image"].std() < 0.6 * sample["sharp"].std()
    assert sample["row"] == 0


def test_labels_are_numbers_or_several_hot(row):
    one = [row("a.png", labels=["cyst"]), row("b.png", labels=["abscess"])]
    dataset = ImageDataset(make_table(one), GREY, task="classification")
    assert dataset.classes == ("abscess", "cyst") and not dataset.multilabel
    assert [int(dataset[i]["label"]) for i in range(2)] == [1, 0]
    assert int(ImageDataset(make_table(one), GREY, task="classification", classes=("cyst", "abscess"))[0]["label"]) == 0

    none_found = row("c.png", annotated=["cyst"])
    several = make_table([*one, row("d.png", labels=["cyst", "abscess"]), none_found])
    dataset = ImageDataset(several, GREY, task="classification")
    assert [dataset[i]["label"].tolist() for i in range(4)] == [[0, 1], [1, 0], [1, 1], [0, 0]]
    assert dataset[3]["annotated"].tolist() == [False, True] and dataset[2]["annotated"].all()
    unlabelled = [row("u.png"), row("v.png", mask="m.png", mask_classes=["cyst"], annotated=["cyst"])]
    assert not is_multilabel(make_table([*one, *unlabelled]), ("abscess", "cyst"))
    assert is_multilabel(make_table([*one, none_found]), ("abscess", "cyst"))
    alike = ImageDataset(make_table(one), GREY, task="classification", multilabel=True)  # a part without any such row
    assert alike[0]["label"].tolist() == [0, 1] and alike[0]["annotated"].tolist() == [False, True]
    with pytest.raises(VesaliusError, match="1 of 4 images have none of the classes"):
        ImageDataset(several, GREY, task="classification", multilabel=False)


def test_mask_classes_merge_by_name(row, picture, tmp_path):
    values = np.zeros((12, 16), np.uint8)
    values[2:5], values[5:7], values[7] = 1, 2, 255
    mask = str(picture(tmp_path / "m.png", values))
    table = make_table(
        [
            row("a.png", mask=mask, mask_classes=["liver", "spleen"], annotated=["liver", "spleen"]),
            row("b.png", mask=mask, mask_classes=["spleen", "kidney"], annotated=["spleen", "kidney"]),
        ]
    )
    dataset = ImageDataset(table, GREY, task="segmentation")
    assert dataset.classes == ("liver", "spleen", "kidney")
    assert dataset[0]["mask"][[0, 2, 5, 7], 0].tolist() == [0, 1, 2, 255]
    assert dataset[1]["mask"][[0, 2, 5, 7], 0].tolist() == [0, 2, 3, 255]
    assert dataset[1]["annotated"].tolist() == [False, True, True]
    only = ImageDataset(table, GREY, task="segmentation", classes=("kidney",))
    assert only[0]["mask"][[2, 5], 0].tolist() == [0, 0] and only[1]["mask"][[2, 5], 0].tolist() == [0, 1]


@pytest.mark.parametrize("view", [EvalView(GREY), TrainView(GREY, rot90=True, crop_scale=(0.3, 1.0))])
def test_views_treat_picture_pair_and_mask_alike(view):
    """A picture that is its own mask stays so, pixel for pixel, wherever it is cropped and turned."""
    quarters = torch.kron(torch.tensor([[0, 1], [1, 0]]), torch.ones(20, 26, dtype=torch.uint8)).to(torch.uint8)
    picture = quarters[None].float()
    for draw in range(20):
        sample = view({"image": picture, "sharp": picture, "target": picture, "mask": quarters}, generator(0, draw))
        assert sample["image"].shape == (1, 8, 8) and sample["mask"].dtype == torch.uint8
        assert torch.equal(sample["sharp"], sample["target"])
        assert torch.allclose(sample["image"], GREY.normalise(sample["target"]))
        sure = (sample["target"][0] - 0.5).abs() > 0.4  # not blurred by the resize
        assert sure.float().mean() > 0.4
        assert torch.equal(sample["mask"][sure].bool(), sample["target"][0][sure] > 0.5)


def test_a_mask_is_resized_about_the_same_pixel_centres():
    columns = torch.arange(24, dtype=torch.uint8).expand(24, 24)
    sample = EvalView(GREY)({"image": columns[None] / 23, "target": columns[None] / 23, "mask": columns})
    inner = slice(1, -1)  # at the edges the antialiased picture leans inwards
    assert torch.equal(sample["mask"][0, inner].float(), (sample["target"][0, 0, inner] * 23).round())


def test_training_chance_comes_from_the_generator_alone():
    sample = {"image": torch.rand(1, 30, 40, generator=torch.Generator().manual_seed(0)), "row": 3}
    view = TrainView(GREY, rot90=True, crop_scale=(0.3, 0.9))
    torch.manual_seed(0)
    first = [view(sample, generator(1, draw))["image"] for draw in range(6)]
    torch.manual_seed(1)
    again = [view(sample, generator(1, draw))["image"] for draw in range(6)]
    assert all(map(torch.equal, first, again))
    assert not any(torch.equal(first[0], other) for other in first[1:])
    still = TrainView(GREY, flip=False)
    assert torch.equal(still(sample, generator(0, 0))["image"], EvalView(GREY)(sample)["image"])
    with pytest.raises(ConfigError, match="crop_scale"):
        TrainView(GREY, crop_scale=(0.9, 0.3))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_draw_the_pixels_that_one_draws(row, workers):
    dataset = ImageDataset(make_table([row(f"{i}.png") for i in range(5)]), GREY)
    draws = Draws(dataset, TrainView(GREY, crop_scale=(0.5, 1.0)), seed=4)

    def images(batch: int, rank: int, world: int) -> list[torch.Tensor]:
        sampler = DrawSampler(5, seed=4, batch_size=batch, rank=rank, world=world, total=12)
        loader = DataLoader(draws, batch_sampler=sampler, num_workers=workers)
        return [batch["image"] for batch in loader]

    whole = images(4, 0, 1)
    halves = [torch.cat(pair) for pair in zip(images(2, 0, 2), images(2, 1, 2), strict=True)]
    assert len(whole) == 3 and all(map(torch.equal, whole, halves))


def test_the_cache_changes_nothing_but_the_reading(row, picture, tmp_path):
    mask = str(picture(tmp_path / "m.png", np.eye(12, 16, dtype=np.uint8)))
    table = make_table([row("a.png", mask=mask, mask_classes=["lesion"])])
    fresh = ImageDataset(table, GREY, task="segmentation")[0]
    dataset = ImageDataset(table, GREY, task="segmentation", cache=True)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    cached = dataset[0]
    assert torch.equal(cached["image"], fresh["image"]) and torch.equal(cached["mask"], fresh["mask"])


def test_a_case_that_fails_is_named(row, tmp_path):
    dataset = ImageDataset(make_table([row("a.png")]), GREY)

    def broken(sample, generator):
        raise ZeroDivisionError("of the view")

    with pytest.raises(VesaliusError, match=r"a\.png: .*ZeroDivisionError: of the view"):
        Draws(dataset, broken, seed=0)[0, 0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(VesaliusError, match=r"a\.png: does not exist"):
        Draws(dataset, EvalView(GREY), seed=0)[0, 0]


def test_what_the_task_lacks_is_said_at_once(row, picture, tmp_path):
    table = make_table([row("a.png", labels=["cyst"]), row("b.png")])
    with pytest.raises(VesaliusError, match="1 of 2 images have no label"):
        ImageDataset(table, GREY, task="classification")
    with pytest.raises(VesaliusError, match="2 of 2 images have no mask"):
        ImageDataset(table, GREY, task="segmentation")
    with pytest.raises(ConfigError, match="no image has the class 'cist'; did you mean 'cyst'"):
        ImageDataset(table[:1], GREY, task="classification", classes=("cist",))
    with pytest.raises(ConfigError, match="unknown task 'segment'; did you mean 'segmentation'"):
        ImageDataset(table, GREY, task="segment")
    with pytest.raises(VesaliusError, match="no images"):
        ImageDataset(table[:0], GREY)
    wrong = make_table([row("c.png", mask=str(picture(tmp_path / "m.png", size=(9, 9))), mask_classes=["x"])])
    with pytest.raises(VesaliusError, match=r"m\.png: has the shape \(9, 9\), .*c\.png"):
        ImageDataset(wrong, GREY, task="segmentation")[0]


def test_on_real_files(shared_data, tmp_path):
    contract = InputContract(size=64)
    table = index(shared_data("us_breast_busi"), tmp_path / "t.parquet", mask_classes=("lesion",))
    table = select(table, split="test", task="segmentation")
    draws = Draws(ImageDataset(table, contract, task="segmentation"), TrainView(contract, crop_scale=(0.67, 1)), 0)
    batch = next(iter(DataLoader(draws, batch_sampler=DrawSampler(len(table), seed=0, batch_size=16))))
    assert batch["image"].shape == (16, 3, 64, 64) and batch["mask"].unique().tolist() == [0, 1]

    table = index(shared_data("mri_hippocampus"), tmp_path / "t.parquet", frames=1)
    sample = ImageDataset(table, GREY, task="segmentation")[0]
    assert sample["mask"].shape == sample["image"].shape[1:] and set(sample["mask"].unique().tolist()) <= {0, 1, 2}
    assert Path(table["path"][0]).is_absolute()
