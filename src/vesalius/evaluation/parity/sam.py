"""Segment Anything: whole, in its three parts, one block, the predictor, the automatic masks and their rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.errors import WeightsError
from vesalius.evaluation.automatic_masks import (
    AutomaticConfig,
    automatic_masks,
    crop_boxes,
    cut_by_edge,
    drop_islands,
    encode_runs,
    fill_holes,
    mask_boxes,
    point_grid,
    stability,
)
from vesalius.evaluation.parity.common import Adapter, Outputs, hints_of, image_of, tensor
from vesalius.nn.sam import SamConfig, SamDecoderConfig, SamViT
from vesalius.nn.sam_decoder import Sam, SamMaskDecoder
from vesalius.nn.sam_prompts import SamPromptEncoder
from vesalius.published.checkpoint import fill, read_state
from vesalius.published.fixture import Fixture
from vesalius.published.load import load
from vesalius.tasks.prompted import SamPredictor, resize_longest, resized_shape, scale_places


def network(fixture: Fixture, file: Path) -> Outputs:
    """From pixels and points to logits on the original's pixels, with every stage between."""
    sam = _sam(fixture, file)
    image = image_of(fixture)[None]
    features = sam.encode(image)
    points = {"points": tensor(fixture, "point_coords"), "labels": tensor(fixture, "point_labels")}
    sparse, dense = sam.prompt_encoder(**points)
    low, iou = sam.decode(features, **points)
    wanted = slice(1, None) if fixture.meta["multimask_output"] else slice(1)
    size = (image.shape[-2], image.shape[-1])
    logits = sam.restore(low[:, wanted], size, tuple(fixture.meta["original_size"]))
    return {
        "preprocessed": sam.preprocess(image),
        "image_embeddings": features,
        "sparse": sparse,
        "dense": dense,
        "low_res_logits": low[:, wanted],
        "iou_predictions": iou[:, wanted],
        "mask_logits": logits,
        "mask_area": (logits > 0).sum((2, 3)).float(),
    }


def block(fixture: Fixture, file: Path) -> Outputs:
    """A windowed block, a global one with tables for another grid, and the neck."""
    c, x = fixture.config, tensor(fixture, "x")
    last = max(c["global_attn_indexes"])
    encoder = SamViT(
        SamConfig(
            width=c["dim"],
            depth=last + 1,
            heads=c["num_heads"],
            window=c["window_size"],
            global_blocks=tuple(c["global_attn_indexes"]),
        )
    ).eval()
    kept = _part(file, "image_encoder.")
    encoder.load_state_dict(kept, strict=False)
    outputs: dict[str, Any] = {"neck": encoder.neck(x.permute(0, 3, 1, 2))}
    for name in fixture.outputs:
        if name.startswith("block"):
            outputs[name] = encoder.blocks[int(name.split("_")[0].removeprefix("block"))](x)
    return outputs


def prompts(fixture: Fixture, file: Path) -> Outputs:
    """Points, boxes, both with a mask, and the positions of the grid."""
    c = fixture.config
    encoder = SamPromptEncoder(
        c["embed_dim"],
        image_size=c["input_image_size"][0],
        patch_size=c["input_image_size"][0] // c["image_embedding_size"][0],
        mask_channels=c["mask_in_chans"],
    ).eval()
    fill(encoder, _part(file, "prompt_encoder.")).check()
    points = {"points": tensor(fixture, "point_coords"), "labels": tensor(fixture, "point_labels")}
    boxes = tensor(fixture, "boxes")
    only, dense = encoder(**points)
    both, dense_mask = encoder(**points, boxes=boxes, masks=tensor(fixture, "mask_inputs"))
    return {
        "points_only": only,
        "dense_no_mask": dense,
        "boxes_only": encoder(boxes=boxes)[0],
        "points_and_boxes": both,
        "dense_mask": dense_mask,
        "dense_pe": encoder.dense_pe(),
    }


def decoder(fixture: Fixture, file: Path) -> Outputs:
    """Masks of the three readings and of the single one, and the transformer by itself."""
    c = fixture.config
    module = SamMaskDecoder(
        c["transformer_dim"],
        SamDecoderConfig(
            depth=c["depth"],
            heads=c["num_heads"],
            mlp=c["mlp_dim"],
            mask_tokens=c["num_multimask_outputs"] + 1,
            iou_depth=c["iou_head_depth"],
            iou_hidden=c["iou_head_hidden_dim"],
        ),
    ).eval()
    fill(module, _part(file, "mask_decoder.")).check()
    image, positions, sparse, dense = (
        tensor(fixture, name) for name in ("image_embeddings", "image_pe", "sparse", "dense")
    )
    masks, iou = module(image, positions, sparse, dense)
    queries, keys = module.transformer(image + dense, positions, sparse)
    return {
        "masks_multi": masks[:, 1:],
        "iou_multi": iou[:, 1:],
        "masks_single": masks[:, :1],
        "iou_single": iou[:, :1],
        "queries": queries,
        "keys": keys,
    }


def predictor(fixture: Fixture, file: Path) -> Outputs:
    """A point and box prompt, then the first point with the best mask of that."""
    sam = SamPredictor(_sam(fixture, file))
    image = sam.encode(_pixels(fixture))
    points, labels = fixture.inputs["point_coords"], fixture.inputs["point_labels"]
    first = sam.predict(image, points=points, labels=labels, boxes=fixture.inputs["box"])
    best = first.low[:, first.iou[0].argmax()][:, None]
    second = sam.predict(image, points=points[:1], labels=labels[:1], masks=best, multimask=False)
    return {
        "features": image.features,
        "mask_logits": first.logits[0],
        "iou": first.iou[0],
        "low_res": first.low[0],
        "second_mask_logits": second.logits[0],
        "second_iou": second.iou[0],
    }


def automatic(fixture: Fixture, file: Path) -> Outputs:
    """Everything in an image, the surest first."""
    c = fixture.config
    config = AutomaticConfig(
        points=c["points_per_side"],
        batch=c["points_per_batch"],
        iou=c["pred_iou_thresh"],
        stability=c["stability_score_thresh"],
        offset=c["stability_score_offset"],
        nms=c["box_nms_thresh"],
        crop_layers=c["crop_n_layers"],
        crop_nms=c["crop_nms_thresh"],
        crop_overlap=c["crop_overlap_ratio"],
        crop_factor=c["crop_n_points_downscale_factor"],
        min_area=c["min_mask_region_area"],
    )
    found = automatic_masks(SamPredictor(_sam(fixture, file)), _pixels(fixture), config, progress=False)
    found.sort(key=lambda mask: (-mask.iou, mask.area))
    boxes = np.array([(mask.box, mask.crop) for mask in found])
    boxes[..., 2:] -= boxes[..., :2]  # the published records hold width and height
    return {
        "n": len(found),
        "area": [mask.area for mask in found],
        "bbox": boxes[:, 0],
        "iou": [mask.iou for mask in found],
        "point": [mask.point for mask in found],
        "stability": [mask.stability for mask in found],
        "crop": boxes[:, 1],
        "union": np.sum([mask.mask for mask in found], axis=0),
    }


def rules(fixture: Fixture, file: Path) -> Outputs:
    """Sizes, coordinates, grids, crops, stability, boxes, runs, small regions and crop edges."""
    height, width = _numbers(r"original \((\d+),(\d+)\)", fixture.meta["call"])
    original, resized = (height, width), resized_shape((height, width), 1024)
    side, points = (_numbers(rf"{name}_(\d+)", " ".join(fixture.outputs))[0] for name in ("apply_image", "point_grid"))
    logits = tensor(fixture, "mask_logits")
    masks = torch.stack([mask > -0.5 + 0.6 * number for number, mask in enumerate(logits)])
    masks[4] = False
    height, width = fixture.inputs["crop_image_size"].tolist()
    crops = crop_boxes((height, width), 2, 512 / 1500)
    grids = [point_grid(32 // 2**layer) for layer in range(3)]
    speckled = masks[1].numpy()
    holes, islands = fill_holes(speckled, 25), drop_islands(speckled, 25)
    edge = cut_by_edge(tensor(fixture, "edge_boxes"), (0, 0, 100, 100), (0, 0, 200, 150))
    return {
        "preprocess_shape": [resized_shape((h, w), 1024) for h, w in fixture.inputs["sizes"].tolist()],
        "coords": scale_places(fixture.inputs["coords"], original, resized),
        "boxes": scale_places(fixture.inputs["boxes"], original, resized),
        f"apply_image_{side}": resize_longest(_pixels(fixture), side).transpose(1, 2, 0),
        f"point_grid_{points}": point_grid(points),
        "grid_layer_sizes": [len(grid) for grid in grids],
        "grid_layer2": grids[2],
        "crop_boxes": [box for box, _ in crops],
        "crop_layer": [layer for _, layer in crops],
        "stability": stability(logits, 1.0),
        "mask_boxes": mask_boxes(masks),
        "rle0_counts": encode_runs(masks[0].numpy()),
        "rle_areas": [encode_runs(mask.numpy())[1::2].sum() for mask in masks[:3]],
        "holes": holes,
        "islands": islands,
        "changed": [not np.array_equal(mask, speckled) for mask in (holes, islands)],
        "near_crop_edge": edge,
    }


def _sam(fixture: Fixture, file: Path) -> Sam:
    hints = hints_of(fixture.config, decoder_heads=fixture.config["decoder_heads"])
    sam = load("sam", file, hints=hints)
    assert isinstance(sam, Sam)
    return sam


def _pixels(fixture: Fixture) -> np.ndarray:
    """The published code's ``[H, W, 3]`` as ``[3, H, W]``."""
    return np.ascontiguousarray(fixture.inputs["image"].transpose(2, 0, 1))


def _numbers(pattern: str, text: str) -> tuple[int, ...]:
    """The groups of a pattern that the text holds."""
    found = re.search(pattern, text)
    if found is None:
        raise WeightsError(f"the fixture does not say {pattern}")
    return tuple(int(group) for group in found.groups())


def _part(file: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of one part, under its own names."""
    return {name.removeprefix(prefix): t for name, t in read_state(file).items() if name.startswith(prefix)}


FAMILIES: dict[str, Adapter] = {
    "sam_tiny": network,
    "sam_vit_b": network,
    "sam_block": block,
    "sam_prompt_encoder": prompts,
    "sam_mask_decoder": decoder,
    "sam_predictor": predictor,
    "sam_amg": automatic,
    "sam_utils": rules,
}
