"""An adapted SAM is stored as what was trained, and built again on its base, which has to be the same."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vesalius.adapt.masam import PRESETS as MASAM
from vesalius.adapt.masam import stack_contract
from vesalius.adapt.sam3d import PRESETS as SAM3D
from vesalius.adapt.sam3d import freeze, prompted_contract
from vesalius.adapt.sam_files import (
    BUILD,
    SamBase,
    load_adapted,
    open_base,
    own_tensors,
    preset_of,
    save_adapted,
)
from vesalius.errors import ConfigError, WeightsError
from vesalius.nn.sam import SAM_PRESETS
from vesalius.nn.sam_decoder import Sam

STACKS = {"adapters": asdict(MASAM["tiny"].adapters), "classes": ["liver"], "slices": 3, "frame": [32, 32]}
CLICKS = {"network": {**asdict(SAM3D["tiny"].network), "sam": asdict(SAM_PRESETS["sam_tiny"])}, "classes": ["tumour"]}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A small SAM as the authors store theirs."""
    torch.manual_seed(0)
    torch.save(Sam(SAM_PRESETS["sam_tiny"]).state_dict(), tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


def adapted(name: str, base: str, folder: Path) -> tuple[Any, Path]:
    """A task on a base, of which everything that trains has moved, stored."""
    sam, card, found = open_base(base, beside=folder)
    own = own_tensors(sam)
    stacks = name == "stack_segmentation"
    task = BUILD[name](sam, STACKS if stacks else CLICKS)
    if stacks:
        task.encoder.freeze()
        contract = stack_contract(["CT"], MASAM["tiny"], ct=True)
    else:
        freeze(task.encoder)
        contract = prompted_contract(["CT"], SAM3D["tiny"])
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    options = {"contract": contract, "card": card, "base": found, "own": own, "citation": "them", "source": "test"}
    save_adapted(task, folder / "run", architecture=STACKS if stacks else CLICKS, system=name, **options)
    return task.eval(), folder / "run"


def output(task: Any) -> torch.Tensor:
    volume = torch.randn(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    if task.NAME == "stack_segmentation":
        return task(volume)
    return task(volume[0].transpose(0, 1).repeat(1, 1, 4, 1, 1)[:, :, :8], torch.tensor([[[3.0, 9, 9]]]))


@pytest.mark.parametrize("name", list(BUILD))
@torch.inference_mode()
def test_what_trained_and_its_base_make_the_whole(name: str, official: Path, tmp_path: Path):
    task, run = adapted(name, str(official), tmp_path)
    again, card = load_adapted(run)
    assert torch.equal(output(task), output(again))
    assert card.system == name
    stored, whole = load_file(run / "weights.safetensors"), task.state_dict()
    frozen = [key for key in whole if key.endswith(("attn.proj.weight", "mlp.lin1.weight")) and "encoder.blocks" in key]
    assert frozen
    assert not set(frozen) & set(stored)
    assert {key for key, parameter in task.named_parameters() if parameter.requires_grad} <= set(stored)


def test_a_base_that_is_gone_moved_or_another(official: Path, tmp_path: Path):
    _, run = adapted("stack_segmentation", str(official), tmp_path)
    moved = official.rename(tmp_path / "elsewhere.pth")
    with pytest.raises(WeightsError, match="not there; say where it is now with --trunk"):
        load_adapted(run)
    load_adapted(run, trunk=str(moved))
    torch.save(Sam(SAM_PRESETS["sam_tiny"]).state_dict(), official)
    with pytest.raises(WeightsError, match="hash differs"):
        load_adapted(run)


@torch.inference_mode()
def test_a_random_base_is_stored_with_it(tmp_path: Path):
    task, run = adapted("stack_segmentation", "random:sam_tiny", tmp_path)
    again, card = load_adapted(run)
    assert "base" not in card.extra
    assert set(load_file(run / "weights.safetensors")) == set(task.state_dict())
    assert torch.equal(output(task), output(again))


def test_shapes_are_learnt_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    times = []
    monkeypatch.setattr("vesalius.adapt.sam_files.pretrain_shapes", lambda sam, **options: times.append(options))
    first, _, base = open_base("shapes:sam_tiny", beside=tmp_path, seed=3)
    second, card, same = open_base("shapes:sam_tiny", beside=tmp_path, seed=3)
    assert [options["seed"] for options in times] == [3]
    assert base == same
    assert base is not None
    assert torch.equal(first.mask_decoder.mask_tokens.weight, second.mask_decoder.mask_tokens.weight)
    assert "random shapes, seed 3" in card.source
    assert preset_of(base.spec) == "tiny"
    with pytest.raises(ConfigError, match="sam_tiny"):
        open_base("shapes:sam_tny", beside=tmp_path)


def test_something_else_is_no_base(tmp_path: Path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth"):
        open_base(str(tmp_path / "x.pth"), beside=tmp_path)
    with pytest.raises(WeightsError, match="not there"):
        SamBase(str(tmp_path / "gone.pth"), "").open()
