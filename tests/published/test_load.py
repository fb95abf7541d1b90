"""Authors' files, in every layout that is around, become networks that hold all of them."""

from __future__ import annotations

import argparse

import pytest
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

from vesalius.data.blur import Blur
from vesalius.errors import ConfigError, WeightsError
from vesalius.files import sha256
from vesalius.nn.positions import resize_relative
from vesalius.published.card import Card
from vesalius.published.fixture import weight_rule
from vesalius.published.load import convert, load, load_backbone, load_weights, save_weights

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}


def _fill(module):
    state = module.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(weight_rule(name, tuple(tensor.shape))))
    return module.eval()


def _beit(**options):
    """The published trunk, by another implementation: timm's, whose keys are the same."""
    kind = {"init_values": 0.1, "use_abs_pos_emb": False, "num_classes": 0, "global_pool": ""} | options
    return _fill(Beit(**SHAPE, **kind))


@pytest.fixture
def image():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shared", [True, False], ids=["shared table", "table per block"])
@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("", None), ("module.", "model"), ("encoder.", "state_dict"), ("module.backbone.", "module")],
)
def test_usfm_layouts(tmp_path, image, shared, prefix, wrapper):
    published = _beit(use_shared_rel_pos_bias=shared, use_rel_pos_bias=not shared)
    state = {prefix + name: tensor for name, tensor in published.state_dict().items()}
    outer = prefix.replace("encoder.", "").replace("backbone.", "")
    state[f"{outer}decoder.0.weight"] = torch.ones(192, 48, 1, 1)
    state[f"{prefix}blocks.0.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    content = {wrapper: state, "args": argparse.Namespace(seed=0)} if wrapper else state
    torch.save(content, tmp_path / "usfm.pth")

    encoder = load("usfm", tmp_path / "usfm.pth")
    with torch.no_grad():
        ours = encoder(image, layers=(2,)).layers[2]
        published.norm = torch.nn.Identity()
        torch.testing.assert_close(ours, published.forward_features(image))
    assert encoder.report.share == 1
    assert not encoder.report.missing
    reasons = set(encoder.report.dropped.values())
    assert any("index buffers" in reason for reason in reasons)
    assert any("decoder" in reason for reason in reasons)
    assert encoder.card.licence.startswith("CC-BY-NC")
    assert encoder.card.sha256 == sha256(tmp_path / "usfm.pth")


def test_the_bias_mode_and_layer_scale_are_read_from_the_keys(tmp_path, image):
    """SegViT's published configuration dropped both in silence; here the file decides."""
    published = _beit(use_rel_pos_bias=True, init_values=None, qkv_bias=False)
    torch.save(published.state_dict(), tmp_path / "plain.pth")
    config = load("usfm", tmp_path / "plain.pth").config
    assert (config.qkv_bias, config.layer_scale) == (False, None)


@pytest.mark.parametrize("as_published", [False, True])
def test_another_image_size_interpolates_the_tables(tmp_path, as_published):
    published = _beit(use_shared_rel_pos_bias=True)
    torch.save(published.state_dict(), tmp_path / "usfm.pth")
    encoder = load("usfm", tmp_path / "usfm.pth", image_size=64, as_published=as_published)
    table = published.rel_pos_bias.relative_position_bias_table.detach()
    expected = resize_relative(table, (4, 4), (8, 8), as_published=as_published)
    torch.testing.assert_close(encoder.relative[1].table.data, expected, equal_nan=True)
    assert encoder.config.image_size == encoder.card.contract.size == 64
    assert len(encoder.report.reshaped) >= 3


def test_one_channel_sums_the_rgb_filters(tmp_path, image):
    torch.save(_fill(VisionTransformer(**SHAPE, num_classes=5)).state_dict(), tmp_path / "vit.pth")
    rgb = load("vit", tmp_path / "vit.pth")
    grey = load("vit", tmp_path / "vit.pth", in_channels=1)
    one = image[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(grey(one).pooled, rgb(one.expand(-1, 3, -1, -1)).pooled)
    assert grey.card.contract.channels == 1


def test_vit_equals_timm(tmp_path, image):
    published = _fill(VisionTransformer(**SHAPE, num_classes=5))
    torch.save({"model": published.state_dict()}, tmp_path / "vit.pth")
    from vesalius.published.keys import Hints

    network = load("vit", tmp_path / "vit.pth", part="classification", hints=Hints(heads=4))
    with torch.no_grad():
        torch.testing.assert_close(network(image), published(image))


@pytest.mark.parametrize("has_norm", [True, False])
def test_the_encoder_as_pretraining_left_it(tmp_path, image, has_norm):
    published = _beit(use_shared_rel_pos_bias=True)
    state = published.state_dict()
    if not has_norm:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}
        torch.nn.init.ones_(published.norm.weight)
        torch.nn.init.zeros_(published.norm.bias)
    torch.save(state, tmp_path / "usfm.pth")
    encoder = load_backbone(f"usfm:{tmp_path / 'usfm.pth'}", part="encoder")
    assert (encoder.config.relative, encoder.config.final_norm) == ("shared", True)
    assert sorted(encoder.report.missing) == ([] if has_norm else ["norm.bias", "norm.weight"])
    with torch.no_grad():
        torch.testing.assert_close(encoder(image).patches, published.forward_features(image)[:, 1:])


def test_a_file_of_another_system_is_named(tmp_path):
    torch.save(_beit(use_rel_pos_bias=True, num_classes=4, global_pool="avg").state_dict(), tmp_path / "cls.pth")
    with pytest.raises(WeightsError, match="are used by nothing") as caught:
        load("vit", tmp_path / "cls.pth")
    assert "usfm classification" in str(caught.value)
    assert "cls.pth: does not load as vit, part backbone" in str(caught.value)


def test_a_file_with_a_hole_is_refused(tmp_path):
    state = _beit(use_shared_rel_pos_bias=True).state_dict()
    del state["blocks.1.mlp.fc1.bias"]
    torch.save(state, tmp_path / "hole.pth")
    with pytest.raises(WeightsError, match=r"missing 1 tensors \(blocks\.1\.mlp\.fc1\.bias\)"):
        load("usfm", tmp_path / "hole.pth")


def test_no_transformer_at_all(tmp_path):
    torch.save(torch.nn.Conv2d(3, 8, 3).state_dict(), tmp_path / "conv.pth")
    with pytest.raises(WeightsError, match="no patch embedding"):
        load("usfm", tmp_path / "conv.pth")


def test_unknown_names_name_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'usfm'"):
        load("usmf", tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="did you mean 'backbone'"):
        load("usfm", tmp_path / "x.pth", part="backbon")


def test_convert_writes_what_reloads_equal(tmp_path, image):
    torch.save(_beit(use_shared_rel_pos_bias=True).state_dict(), tmp_path / "usfm.pth")
    weights = convert("usfm", tmp_path / "usfm.pth", tmp_path / "usfm.safetensors")
    assert (tmp_path / "usfm.md").read_text().count("CC-BY-NC") == 1
    card = Card.load(tmp_path / "usfm.json")
    assert card.sha256 == sha256(tmp_path / "usfm.pth")
    with torch.no_grad():
        before = load("usfm", tmp_path / "usfm.pth")(image)
        for again in (load_backbone(weights), load_weights(weights), load_backbone(f"usfm:{tmp_path / 'usfm.pth'}")):
            assert torch.equal(again(image).pooled, before.pooled)


def test_a_run_folder_gives_its_encoder_at_another_size_and_channels(tmp_path, image):
    published = _beit(use_rel_pos_bias=True, num_classes=4, global_pool="avg")
    torch.save(published.state_dict(), tmp_path / "cls.pth")
    network = load("usfm", tmp_path / "cls.pth", part="classification")
    save_weights(network, tmp_path / "run", network.card)
    encoder = load_backbone(tmp_path / "run", image_size=64, in_channels=1)
    assert encoder.report.dropped["head.weight"] == "not part of the encoder"
    assert (encoder.card.contract.size, encoder.card.contract.channels) == (64, 1)
    direct = load("usfm", tmp_path / "cls.pth", image_size=64, in_channels=1)
    with torch.no_grad():
        big = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(encoder(big).pooled, direct(big).pooled)


def test_the_blur_travels_with_deblurring_weights(tmp_path):
    torch.save(_fill(VisionTransformer(**SHAPE, num_classes=0)).state_dict(), tmp_path / "mae.pth")
    assert load("deblurring", tmp_path / "mae.pth").card.contract.blur == Blur("gaussian", sigma=1.1)
    assert load("mae", tmp_path / "mae.pth").card.contract.blur is None


def test_timm_names_and_nothing(tmp_path):
    encoder = load_backbone("vit_tiny_patch16_224", image_size=64, in_channels=1)
    assert (encoder.width, encoder.config.heads, encoder.image_size) == (192, 3, 64)
    with pytest.raises(WeightsError, match="did you mean 'vit_tiny_patch16_224'"):
        load_backbone("timm:vit_tiny_patch16_225")
    with pytest.raises(WeightsError, match="no such run folder"):
        load_backbone(tmp_path / "nothing")
    with pytest.raises(WeightsError, match=r"no weights\.safetensors here"):
        load_backbone(tmp_path)
