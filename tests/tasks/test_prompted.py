"""Prompts on images: the same masks as the published package, on pixels that are windowed and never cast."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from vesalius.errors import ConfigError
from vesalius.evaluation.automatic_masks import AutomaticConfig, automatic_masks
from vesalius.images import Image
from vesalius.nn.sam import SAM_PRESETS
from vesalius.nn.sam_decoder import Sam
from vesalius.published.fixture import weight_rule
from vesalius.published.load import load
from vesalius.tasks.prompted import SamPredictor, pixels_of

POINTS, LABELS = np.array([[30.0, 20.0], [60.0, 45.0]]), np.array([1, 0])
BOX = np.array([10.0, 5.0, 70.0, 50.0])


@pytest.fixture
def picture():
    """RGB ``[3, 60, 80]``, uint8."""
    rows, columns = np.mgrid[:60, :80]
    waves = [np.sin(rows / 7 + channel) + np.cos(columns / (9 + channel)) for channel in range(3)]
    return np.rint((np.stack(waves) + 2) * 63).astype(np.uint8)


@pytest.fixture
def published(tmp_path):
    """The published package's network, tiny, and its file."""
    theirs = pytest.importorskip("segment_anything.modeling", reason="the PyPI package segment-anything is not here")
    norm = partial(nn.LayerNorm, eps=1e-6)
    encoder = theirs.ImageEncoderViT(
        img_size=128, embed_dim=48, depth=3, num_heads=3, out_chans=32, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1,), norm_layer=norm, qkv_bias=True,
    )  # fmt: skip
    prompts = theirs.PromptEncoder(32, (8, 8), (128, 128), 16)
    transformer = theirs.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=8)
    decoder = theirs.MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=32)
    sam = theirs.Sam(encoder, prompts, decoder).eval()
    state = sam.state_dict()
    for name, tensor in state.items():
        if "gaussian" not in name:
            tensor.copy_(torch.from_numpy(weight_rule(name, tuple(tensor.shape))))
    torch.save(state, tmp_path / "sam.pth")
    return sam, tmp_path / "sam.pth"


def test_the_published_predictor_gives_the_same_masks(published, picture):
    from segment_anything import SamPredictor as TheirPredictor

    sam, file = published
    theirs, ours = TheirPredictor(sam), SamPredictor(load("sam", file))
    theirs.set_image(picture.transpose(1, 2, 0))
    image = ours.encode(picture)
    for prompt, multimask in (
        ({"points": POINTS, "labels": LABELS}, True),
        ({"boxes": BOX}, False),
        ({"points": POINTS, "labels": LABELS, "boxes": BOX}, True),
    ):
        renamed = {"points": "point_coords", "labels": "point_labels", "boxes": "box"}
        logits, iou, low = theirs.predict(
            **{renamed[name]: value for name, value in prompt.items()}, multimask_output=multimask, return_logits=True
        )
        masks = ours.predict(image, **prompt, multimask=multimask)
        np.testing.assert_allclose(masks.logits[0], logits, atol=1e-4)
        np.testing.assert_allclose(masks.iou[0], iou, atol=1e-5)
        np.testing.assert_allclose(masks.low[0], low, atol=1e-4)
        assert np.array_equal(masks.best[0], logits[iou.argmax()] > 0)


def test_the_published_generator_finds_the_same_masks(published, picture):
    from segment_anything import SamAutomaticMaskGenerator

    sam, file = published
    config = AutomaticConfig(
        points=3, batch=8, iou=0.0, stability=0.5, offset=0.05, nms=1.0, crop_nms=1.0, crop_layers=1
    )
    theirs = SamAutomaticMaskGenerator(
        sam,
        points_per_side=3,
        points_per_batch=8,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.5,
        stability_score_offset=0.05,
        box_nms_thresh=1.0,
        crop_nms_thresh=1.0,
        crop_n_layers=1,
    ).generate(picture.transpose(1, 2, 0))
    ours = automatic_masks(SamPredictor(load("sam", file)), picture, config, progress=False)
    assert len(ours) == len(theirs) > 1
    for mine, record in zip(ours, theirs, strict=True):
        assert np.array_equal(mine.mask, record["segmentation"])
        assert mine.area == record["area"]
        assert [list(mine.point)] == record["point_coords"]
        assert mine.iou == pytest.approx(record["predicted_iou"], abs=1e-5)


def test_other_depths_than_8_bits_go_through_their_window():
    hounsfield = np.linspace(-1000, 2000, 60 * 80).reshape(1, 60, 80).astype(np.int16)
    pixels = pixels_of(Image(hounsfield, ("gray",), window=(40.0, 400.0)))
    assert pixels.shape == (3, 60, 80)
    assert pixels.dtype == np.float32
    assert (pixels.min(), pixels.max()) == (0, 255)
    middle = np.abs(hounsfield[0] - 40).argmin()
    assert pixels[0].flat[middle] == pytest.approx(127.5, abs=1)
    eight = np.arange(4800, dtype=np.uint8).reshape(1, 60, 80)
    assert np.array_equal(pixels_of(Image(eight, ("gray",)))[2], eight[0])  # as they are


def test_prompts_of_several_objects_and_of_earlier_masks(picture):
    torch.manual_seed(0)
    predictor = SamPredictor(Sam(SAM_PRESETS["sam_tiny"]))
    image = predictor.encode(picture)
    both = predictor.predict(image, points=POINTS[:, None], labels=np.ones((2, 1)))
    assert both.logits.shape == (2, 3, 60, 80)
    alone = predictor.predict(image, points=POINTS[1:], labels=[1])
    torch.testing.assert_close(both.logits[1], alone.logits[0], rtol=1e-4, atol=1e-4)
    again = predictor.predict(image, masks=both.low[:, :1], multimask=False)
    assert again.best.shape == (2, 60, 80)
    assert not torch.equal(again.logits[0], again.logits[1])


def test_a_volume_is_refused():
    with pytest.raises(ConfigError, match="choose a slice"):
        pixels_of(Image(np.zeros((1, 4, 8, 8)), ("gray",)))
    with pytest.raises(ConfigError, match="each point needs a label"):
        SamPredictor(Sam(SAM_PRESETS["sam_tiny"])).predict(
            SamPredictor(Sam(SAM_PRESETS["sam_tiny"])).encode(np.zeros((3, 8, 8), np.uint8)), points=[[1.0, 1.0]]
        )
