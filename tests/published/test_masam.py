"""The authors' file and SAM's become one network, and what was trained is written back as theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vesalius.errors import WeightsError
from vesalius.nn.masam import MaSam, StackAdapters
from vesalius.nn.sam import SamConfig, SamDecoderConfig
from vesalius.nn.sam_decoder import Sam
from vesalius.published.fixture import Fixture
from vesalius.published.masam import build, describe, load_masam, our_name, save_masam, their_name

SMALL = SamConfig(
    image_size=128,
    width=24,
    depth=2,
    heads=2,
    global_blocks=(1,),
    window=3,
    neck=32,
    decoder=SamDecoderConfig(mlp=32, iou_hidden=32),
)
VOLUME = torch.rand(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def files(folder: Path) -> tuple[MaSam, Path, Path]:
    """A network with random weights, as the two files that it would come in."""
    torch.manual_seed(0)
    sam = Sam(SMALL)
    torch.nn.init.normal_(sam.image_encoder.blocks[1].attn.rel_pos_h)
    torch.save(sam.state_dict(), folder / "sam.pth")
    net = MaSam.on(sam, 3, StackAdapters(width=12, rank=4)).eval()
    torch.nn.init.normal_(net.fact.v.weight)
    return net, save_masam(net, folder / "epoch_299.pth"), folder / "sam.pth"


def test_every_published_name_has_one_of_ours_and_back() -> None:
    fixture = Fixture.read(Path(__file__).parents[1] / "parity" / "ma_sam_vit_h_keys.json.gz")
    assert [their_name(our_name(name) or "") for name in fixture.keys] == list(fixture.keys)
    assert our_name("image_encoder.ImageEncoderViT.blocks.0.Block.adapter_gate.weight") is None


def test_two_files_make_the_network_that_they_came_from(tmp_path: Path) -> None:
    net, trained, base = files(tmp_path)
    assert not any(name.startswith("image_encoder.blocks") for name in torch.load(trained, weights_only=True))
    found = load_masam(trained, base, image_size=64)
    assert found.config.image_size == 64 and found.image_encoder.pos_embed.shape[1] == 4
    assert found.adapters == StackAdapters(width=12, rank=4) and found.classes == 3
    with torch.inference_mode():
        assert torch.allclose(found(VOLUME), net(VOLUME), atol=1e-5)
        assert not torch.allclose(load_masam(trained, base, image_size=64, scale=0.5)(VOLUME), net(VOLUME), atol=1e-3)
    assert found.report.share == 1 and "resized to 64 px" in " ".join(found.report.reshaped.values())
    assert {name for name in found.report.dropped if name.startswith("mask_decoder")}
    rebuilt = build(describe(found)["config"])
    assert rebuilt.state_dict().keys() == found.state_dict().keys() and rebuilt.config == found.config


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    _, trained, base = files(tmp_path)
    torch.save({"q_FacTs_000": torch.zeros(4, 4)}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="no mask tokens"):
        load_masam(tmp_path / "part.pth", base)
    with pytest.raises(WeightsError, match="does not load as MA-SAM on epoch_299"):
        load_masam(trained, trained)
    state = torch.load(trained, weights_only=True)
    torch.save({**state, "q_FacTs_002": torch.zeros(4, 4)}, tmp_path / "deeper.pth")
    with pytest.raises(WeightsError, match=r"attn\.qkv\.q\.weight"):
        load_masam(tmp_path / "deeper.pth", base, image_size=64)
    torch.save({**state, "optimizer": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match="optimizer"):
        load_masam(tmp_path / "more.pth", base, image_size=64)
