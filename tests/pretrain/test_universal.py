"""The Universal Model's loss counts labelled classes only, and its network is built by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vesalius.data.class_tables import ClassTable
from vesalius.data.masks import IGNORE
from vesalius.data.table import make_table
from vesalius.data.volumes.contract import VolumeContract
from vesalius.errors import ConfigError
from vesalius.nn.swin_unetr import SwinConfig, SwinEncoder, SwinUNETR
from vesalius.pretrain.universal import (
    PRESETS,
    TRUNKS,
    Universal,
    UniversalConfig,
    build,
    learning_rate,
    partial_loss,
    score_case,
    with_pseudo_labels,
)
from vesalius.published.card import Card
from vesalius.published.load import save_weights
from vesalius.published.networks import architecture
from vesalius.tasks.volume_dice import VolumeDice


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, 5, generator=generator)
    target = torch.randint(0, 2, (2, 4, 3, 4, 5), generator=generator, dtype=torch.uint8)
    labelled = torch.tensor([[True, False, True, False], [False, False, True, True]])
    return logits, target, labelled


@pytest.mark.parametrize("per_slice", [False, True])
def test_what_is_not_labelled_has_no_part(batch, per_slice):
    logits, target, labelled = batch
    logits = logits.requires_grad_()
    total, *_ = partial_loss(logits, target, labelled, per_slice=per_slice)
    total.backward()
    reached = logits.grad.abs().sum((2, 3, 4)) > 0
    assert torch.equal(reached, labelled)
    changed = torch.where(labelled.view(2, 4, 1, 1, 1), target, 255)
    assert torch.equal(partial_loss(logits, changed, labelled, per_slice=per_slice)[0], total)


def test_nothing_labelled_costs_nothing_and_still_has_a_gradient(batch):
    logits, target, labelled = batch
    logits = logits.requires_grad_()
    total, *_ = partial_loss(logits, target, torch.zeros_like(labelled))
    total.backward()
    assert float(total.detach()) == 0
    assert logits.grad.abs().sum() == 0


def test_dice_by_slice_idles_where_the_class_is_absent():
    target = torch.zeros(1, 1, 10, 4, 4, dtype=torch.uint8)
    target[:, :, 0] = 1
    perfect = 40 * (target.float() - 0.5)
    labelled = torch.tensor([[True]])
    assert float(partial_loss(perfect, target, labelled)[2]) < 0.05
    assert float(partial_loss(perfect, target, labelled, per_slice=True)[2]) > 0.9


def test_pseudo_labels_fill_old_classes_only_where_nothing_is_labelled():
    target = torch.zeros(2, 3, 1, 1, 2, dtype=torch.uint8)
    labelled = torch.tensor([[True, False, True], [False, False, True]])
    old = torch.full((2, 2, 1, 1, 2), 3.0)
    filled, known = with_pseudo_labels(target, labelled, old, [0, 1])
    assert known.all()
    assert filled[:, :, 0, 0, 0].tolist() == [[0, 1, 0], [1, 1, 0]]
    assert target.sum() == 0


@pytest.mark.parametrize(("trunk", "width"), [("unet3d", 8), ("segresnet", 8), ("nested_unet3d", 4), ("dints", 8)])
def test_every_trunk_takes_the_head(trunk, width):
    config = UniversalConfig(trunk=trunk, width=width)
    network = build(config, ("liver", "spleen"), torch.randn(2, 16)).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)


def test_text_needs_embeddings():
    assert set(TRUNKS) >= {config.trunk for config in PRESETS.values()}
    with pytest.raises(ConfigError, match="text embeddings: none"):
        build(PRESETS["tiny"], ["liver"])
    assert learning_rate(0, UniversalConfig()) == pytest.approx(1e-4 / 99)


CLASSES = ClassTable.from_dict(
    {
        "classes": ["a", "b", {"name": "t", "kind": "tumor", "organs": ["b"]}],
        "datasets": {"one": {"b": None, "t": None}},
    }
)


@pytest.fixture
def module():
    torch.manual_seed(0)
    config = replace(PRESETS["tiny"], width=8, crop=(8, 8, 8), even_datasets=True)
    return Universal(config, table=CLASSES)


def _batch():
    mask = torch.zeros(2, 8, 8, 8, dtype=torch.uint8)
    mask[:, :4], mask[:, 4:6], mask[:, 6:, 4:], mask[:, 6:, :2] = 1, 2, 3, IGNORE
    labelled = torch.tensor([[True, False, False], [False, True, False]])
    return {"image": torch.rand(2, 1, 8, 8, 8), "mask": mask, "labelled": labelled}


def test_only_what_a_case_is_labelled_for_reaches_the_network(module):
    batch = _batch()
    embedding = module.network.head.embedding
    embedding.requires_grad_()
    module.loss(batch)["loss"].backward()
    assert (embedding.grad.abs().sum(1) > 0).tolist() == [True, True, False]
    other = batch["mask"].clone()
    other[0, 4:], other[1, :4] = 0, 0  # b and t of the first case, a of the second
    changed = module.loss({**batch, "mask": torch.where(batch["mask"] == IGNORE, batch["mask"], other)})
    assert torch.equal(changed["loss"], module.loss(batch)["loss"])


def test_a_tumour_counts_as_its_organ_and_ignored_voxels_as_nothing(module):
    batch = _batch()
    batch["labelled"][:] = torch.tensor([False, True, False])
    logits = torch.full((2, 1, 8, 8, 8), -30.0)
    logits[:, :, 4:] = 30.0
    logits[:, :, 6:, 2:4] = -30.0
    module.network.forward = lambda image, names: logits
    assert float(module.loss(batch)["loss"]) < 0.01


def test_datasets_are_drawn_evenly_where_asked(module):
    table = make_table([{"path": str(n), "dataset": "big" if n < 9 else "small"} for n in range(10)])
    assert module.sampling_weights(table)[-1] == pytest.approx(0.5)
    module.config = replace(module.config, even_datasets=False)
    assert module.sampling_weights(table) is None


def test_validation_scores_a_case_for_what_it_was_annotated_for(module):
    module.network.forward = lambda image, classes: torch.full((1, len(classes), *image.shape[2:]), 9.0)
    mask = torch.ones(8, 8, 8, dtype=torch.uint8)
    case = {"image": torch.rand(1, 8, 8, 8), "mask": mask, "labelled": torch.tensor([True, False, False])}
    dice = VolumeDice(3)
    score_case(module.network, case, dice, members=module.members, roi=(8, 8, 8))
    assert dice.compute()[0] == 1
    assert dice.compute()[1:].isnan().all()


def test_a_pre_trained_encoder_starts_the_trunk(tmp_path):
    torch.manual_seed(0)
    swin = SwinEncoder(SwinConfig(width=12, window=4))
    card = Card("brainsegfounder", "pretrain", architecture(swin), VolumeContract(("CT",)))
    save_weights(swin, tmp_path, card)
    module = Universal(replace(PRESETS["tiny"], trunk="swin_unetr", width=12), table=CLASSES)
    module.network.encoder = SwinUNETR(SwinConfig(width=12, window=4))
    before = module.network.encoder.ups[0].state_dict()
    note = module.initialise(str(tmp_path)).notes[-1]
    assert note == "The encoder alone was taken over; the decoder began anew"
    taken = module.network.encoder.encoder.state_dict()
    assert all(torch.equal(taken[name], tensor) for name, tensor in swin.state_dict().items())
    assert all(torch.equal(module.network.encoder.ups[0].state_dict()[name], tensor) for name, tensor in before.items())
