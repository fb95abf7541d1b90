"""SAM's weights in three layouts give one network, at any image size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer_sam import VisionTransformerSAM
from transformers import SamConfig as TheirConfig
from transformers import SamModel

from vesalius.errors import WeightsError
from vesalius.nn.sam import SAM_PRESETS, SamConfig, SamDecoderConfig
from vesalius.nn.sam_decoder import Sam
from vesalius.published.fixture import weight_rule
from vesalius.published.load import convert, load, load_weights

SMALL = SamConfig(
    image_size=64,
    width=48,
    depth=3,
    heads=3,
    global_blocks=(1,),
    window=3,
    neck=32,
    mlp_ratio=2.0,
    decoder=SamDecoderConfig(mlp=64, iou_hidden=32),
)
POINTS = torch.tensor([[[20.0, 30.0], [50.0, 10.0]], [[5.0, 60.0], [33.0, 33.0]]])
LABELS = torch.tensor([[1, 0], [1, -1]])


def _fill(module):
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(weight_rule(name, tuple(tensor.shape))))
    return module.eval()


def _theirs():
    """transformers' network of the same shape."""
    vision = {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 64, "window_size": 3,
        "global_attn_indexes": [1], "output_channels": 32, "num_pos_feats": 16, "mlp_dim": 96,
    }  # fmt: skip
    prompt = {"hidden_size": 32, "image_size": 64, "image_embedding_size": 4}
    decoder = {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32}
    model = SamModel(TheirConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    return _fill(model)


@pytest.fixture
def image():
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def official(tmp_path):
    sam = _fill(Sam(SMALL))
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    return sam, tmp_path / "sam.pth"


def test_the_authors_layout_is_our_own(official):
    sam, file = official
    read = load("sam", file)
    assert read.config == SMALL
    assert read.report.share == 1
    assert read.state_dict().keys() == sam.state_dict().keys()
    assert len(Sam(SAM_PRESETS["sam_vit_b"]).state_dict()) == 314  # the published file's entries


@torch.no_grad()
def test_the_layout_of_transformers(tmp_path, image):
    theirs = _theirs()
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state["prompt_encoder.shared_embedding.positional_embedding"] = state[
        "shared_image_embedding.positional_embedding"
    ].clone()
    theirs.load_state_dict(state)
    save_file(state, tmp_path / "model.safetensors")
    sam = load("sam", tmp_path / "model.safetensors")
    features = sam.image_encoder(image)
    expected = theirs.get_image_embeddings(image)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    for multimask, masks in ((True, slice(1, None)), (False, slice(1))):
        out = theirs(
            image_embeddings=expected, input_points=POINTS[None], input_labels=LABELS[None], multimask_output=multimask
        )
        logits, iou = sam.decode(features, points=POINTS, labels=LABELS)
        torch.testing.assert_close(logits[:, masks], out.pred_masks[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(iou[:, masks], out.iou_scores[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_layout_of_timm_is_the_encoder(tmp_path, image):
    theirs = _fill(
        VisionTransformerSAM(
            img_size=64,
            embed_dim=48,
            depth=3,
            num_heads=3,
            mlp_ratio=2,
            num_classes=0,
            window_size=3,
            global_attn_indexes=(1,),
            use_abs_pos=True,
            use_rel_pos=True,
            neck_chans=32,
            global_pool="",
        )
    )
    torch.save(theirs.state_dict(), tmp_path / "samvit.pth")
    encoder = load("sam", tmp_path / "samvit.pth", part="encoder")
    torch.testing.assert_close(encoder(image), theirs.forward_features(image), rtol=1e-4, atol=1e-4)
    with pytest.raises(WeightsError, match="its keys fit sam encoder"):
        load("sam", tmp_path / "samvit.pth")


@torch.no_grad()
def test_another_size_resizes_the_tables_and_says_so(official):
    sam, file = official
    read = load("sam", file, image_size=96)
    assert read.config == replace(SMALL, image_size=96)
    assert read.image_encoder.pos_embed.shape == (1, 6, 6, 48)
    assert read.image_encoder.blocks[1].attn.rel_pos_h.shape == (11, 16)
    own = sam.image_encoder.blocks[0].attn.rel_pos_h
    assert torch.equal(read.image_encoder.blocks[0].attn.rel_pos_h, own)  # a window's, untouched
    assert any("positions for 64 px, resized to 96 px" in note for note in read.card.notes)
    # at run time the same is done on the fly
    image = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(read.image_encoder(image), sam.image_encoder(image), rtol=1e-4, atol=1e-4)
    assert read.encode(image).shape == (1, 32, 6, 6)


def test_a_converted_file_is_the_same_network(official, tmp_path):
    sam, file = official
    convert("sam", file, tmp_path / "converted")
    again = load_weights(tmp_path / "converted")
    assert again.config == SMALL
    assert again.card.part == "promptable"
    for name, tensor in sam.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_errors_say_what_the_file_is(official):
    _, file = official
    with pytest.raises(WeightsError, match="3 blocks of 48 channels, which is not sam_vit_b"):
        load("sam_vit_b", file)
    with pytest.raises(WeightsError, match="not a multiple of its patch size"):
        load("sam", file, image_size=100)
    with pytest.raises(WeightsError, match="RGB"):
        load("sam", file, in_channels=1)
