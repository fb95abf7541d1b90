"""Authors' 3-D files in every layout, their cards, and modalities matched by name."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from monai.networks.nets.swin_unetr import PatchMerging

from vesalius.errors import WeightsError
from vesalius.nn.language_head import LanguageDriven
from vesalius.nn.swin_ssl import SwinSSL
from vesalius.nn.swin_unetr import LegacyPatchMerging, SwinConfig, SwinEncoder
from vesalius.nn.unet3d import UNet3D, UNet3DConfig
from vesalius.published.card import Card
from vesalius.published.fixture import weight_rule
from vesalius.published.load import convert, load, load_weights
from vesalius.published.volumes import load_volume_trunk, with_channels

WIDTH, WINDOW = 12, 4


def _fill(module):
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(weight_rule(name, tuple(tensor.shape))))
    return module.eval()


@pytest.fixture(scope="module")
def published():
    """The authors' network as their MONAI computes it."""
    return _fill(MonaiSwinUNETR(2, 3, feature_size=WIDTH, window_size=WINDOW, downsample=LegacyPatchMerging))


@pytest.fixture
def volume():
    return torch.rand(1, 2, 64, 32, 32, generator=torch.Generator().manual_seed(0))


def _write(state, path, prefix="", **others):
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in state.items()}, **others}, path)
    return path


def _pretrained(tmp_path):
    """A file of stage 1, with DDP's prefix."""
    torch.manual_seed(0)
    network = SwinSSL(SwinEncoder(SwinConfig(in_channels=2, width=WIDTH, window=WINDOW, merging="legacy"))).eval()
    names = {"encoder.swin": "swinViT", "rotation.0": "rotation_head", "contrastive.0": "contrastive_head"}
    names |= {"reconstruction": "conv"}
    state = {}
    for name, tensor in network.state_dict().items():
        ours = next(known for known in names if name.startswith(known))
        state[names[ours] + name.removeprefix(ours)] = tensor
    return network, _write(state, tmp_path / "stage1.pt", "module.", global_step=5)


def test_finetuned_files_are_exact_and_in_the_old_order(tmp_path, published, volume):
    file = _write(published.state_dict(), tmp_path / "finetuned.pt", epoch=3)
    network = load("brainsegfounder", file, part="segmentation")
    with torch.no_grad():
        truth = published(volume)
        torch.testing.assert_close(network(volume), truth, atol=1e-5, rtol=1e-5)
    assert network.report.share == 1.0
    assert network.card.architecture["config"]["encoder"]["config"]["merging"] == "legacy"
    assert network.card.architecture["config"]["encoder"]["config"]["window"] == WINDOW
    assert network.card.contract.channels == ("t1", "flair")

    repaired = MonaiSwinUNETR(2, 3, feature_size=WIDTH, window_size=WINDOW, downsample=PatchMerging).eval()
    repaired.load_state_dict(published.state_dict())  # nothing tells that it is wrong
    with torch.no_grad():
        gap = (repaired(volume) - truth).norm() / truth.norm()
    assert 0.05 < gap < 0.5


def test_a_stage_is_continued_with_other_modalities(tmp_path, volume):
    network, file = _pretrained(tmp_path)
    ours = load("brainsegfounder", file, part="pretrain")
    four = with_channels(ours, ("flair", "t1ce", "T1w", "t2"))
    assert four.encoder.in_channels == 4
    assert four.card.contract.channels == ("flair", "t1ce", "T1w", "t2")
    assert "new: t1ce, t2" in four.card.notes[-1]
    assert four.report.share == 1.0
    other = torch.rand(1, 2, 64, 32, 32)
    stacked = torch.stack([volume[:, 1], other[:, 0], volume[:, 0], other[:, 1]], dim=1)
    with torch.no_grad():
        before, after = network(volume), four(stacked)
    torch.testing.assert_close(after.rotation, before.rotation)
    torch.testing.assert_close(after.reconstruction[:, [2, 0]], before.reconstruction)
    assert with_channels(four, ("FLAIR", "t1c", "t1", "t2")) is four
    swapped = with_channels(ours, ("t2-flair", "t1"))
    with torch.no_grad():
        torch.testing.assert_close(swapped(volume.flip(1)).rotation, before.rotation)


def test_files_come_back_from_their_cards(tmp_path, volume):
    network, file = _pretrained(tmp_path)
    convert("brainsegfounder", file, tmp_path / "converted", part="pretrain")
    again = load_weights(tmp_path / "converted")
    with torch.no_grad():
        torch.testing.assert_close(again(volume).reconstruction, network(volume).reconstruction)
    card = Card.load(tmp_path / "converted" / "card.json")
    assert card == again.card
    assert "t1, flair; axes RAS" in card.markdown()
    with pytest.raises(WeightsError, match="reads volumes"):
        _ = card.image_contract
    for spec in (tmp_path / "converted", f"brainsegfounder:{file}"):
        trunk = load_volume_trunk(spec, channels=("t1",))
        assert (trunk.in_channels, trunk.config.merging) == (1, "legacy")


def test_nothing_is_lost_in_silence(tmp_path, published):
    state = published.state_dict()
    file = _write({f"swinViT.{name}": tensor for name, tensor in state.items()}, tmp_path / "renamed.pt")
    with pytest.raises(WeightsError, match="does not load as brainsegfounder"):
        load("brainsegfounder", file, part="segmentation")
    half = {name: tensor for name, tensor in state.items() if not name.startswith("decoder1")}
    with pytest.raises(WeightsError, match=r"missing .* tensors"):
        load("brainsegfounder", _write(half, tmp_path / "half.pt"), part="segmentation")
    with pytest.raises(WeightsError, match=r"its keys fit .*brainsegfounder segmentation"):
        load("universal", _write(state, tmp_path / "whole.pt"), part="segmentation")


def test_universal_layouts_with_and_without_backbone(tmp_path, published):
    state = {n: t for n, t in published.state_dict().items() if not n.startswith("out.")}
    head = {
        "organ_embedding.weight": (3, 256),
        "GAP.0.weight": (16 * WIDTH,), "GAP.0.bias": (16 * WIDTH,),
        "GAP.3.weight": (256, 16 * WIDTH, 1, 1, 1), "GAP.3.bias": (256,),
        "precls_conv.0.weight": (WIDTH,), "precls_conv.0.bias": (WIDTH,),
        "precls_conv.2.weight": (8, WIDTH, 1, 1, 1), "precls_conv.2.bias": (8,),
        "controller.weight": (153, 512, 1, 1, 1), "controller.bias": (153,),
    }  # fmt: skip
    rest = {name: torch.from_numpy(weight_rule(name, shape)) for name, shape in head.items()}
    volume = torch.rand(1, 2, 64, 32, 32)
    outputs = []
    for prefix in ("", "backbone."):
        file = tmp_path / f"universal_{len(prefix)}.pth"
        named = {f"module.{prefix}{name}": tensor for name, tensor in state.items()}
        torch.save({"net": named | {f"module.{name}": tensor for name, tensor in rest.items()}, "epoch": 1}, file)
        network = load("universal", file, part="segmentation")
        with torch.no_grad():
            outputs.append(network(volume))
    assert torch.equal(*outputs)
    assert network.card.classes == ("spleen", "kidney_right", "kidney_left")
    assert network.card.architecture["config"]["encoding"] == "learned"
    assert load("universal", file).decoder_channels == WIDTH


def test_a_controller_a_class(tmp_path):
    torch.manual_seed(0)
    trunk = UNet3D(UNet3DConfig(width=4))
    ours = LanguageDriven(trunk, classes=["a", "b"], embedding=16, controller="per_class", width=8).eval()
    ours.head.embedding.normal_()
    names = {"head.image.0": "GAP.0", "head.image.4": "GAP.3", "head.voxel": "precls_conv"}
    names |= {"head.controller": "controllers", "head.embedding": "organ_embedding"}
    for level, size in enumerate((64, 128, 256, 512)):
        names |= {f"encoder.down.{level}": f"backbone.down_tr{size}"}
    for level, size in enumerate((256, 128, 64)):
        names |= {
            f"encoder.up.{level}": f"backbone.up_tr{size}.up_conv",
            f"encoder.join.{level}": f"backbone.up_tr{size}",
        }
    layers = {"0.": "ops.0.conv1.", "1.": "ops.0.bn1.", "3.": "ops.1.conv1.", "4.": "ops.1.bn1."}
    state = {}
    for name, tensor in ours.state_dict().items():
        known = next(start for start in names if name.startswith(start))
        rest = name.removeprefix(f"{known}.") if name != known else ""
        if ".down." in name or ".join." in name:
            rest = layers[rest[:2]] + rest[2:]
        if name.endswith("weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None, None]
        state[f"module.{names[known]}.{rest}".removesuffix(".")] = tensor
    torch.save({"net": state}, tmp_path / "continual.pth")
    network = load("universal", tmp_path / "continual.pth", part="segmentation")
    volume = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(volume), ours(volume))
