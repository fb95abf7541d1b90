"""SAM's ViT-B image encoder beside the PyPI package segment-anything and transformers' SamModel, with the same weights.

    python benchmarks/sam_encoder.py --size vit_b_512

One image, no gradient. The published encoder takes 512 pixels only when it is built for them; transformers' too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from vesalius.nn.sam import SAM_PRESETS, SamConfig, SamViT

from measure import Row, fresh, interleaved, peak_mb, show

SIZES = {
    "small": SamConfig(image_size=256, width=192, depth=6, heads=3, global_blocks=(2, 5), window=7, neck=128),
    "vit_b_512": SamConfig(image_size=512),
    "vit_b_1024": SAM_PRESETS["sam_vit_b"],
}
PEERS = {"segment-anything": "segment-anything 1.0", "transformers": "transformers' SamModel"}


def ours(c: SamConfig) -> nn.Module:
    """This library's."""
    return SamViT(c)


def published(c: SamConfig) -> nn.Module:
    """The authors' package's."""
    from segment_anything.modeling import ImageEncoderViT

    return ImageEncoderViT(
        img_size=c.image_size,
        embed_dim=c.width,
        depth=c.depth,
        num_heads=c.heads,
        out_chans=c.neck,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=c.window,
        global_attn_indexes=c.global_blocks,
    )


def transformers(c: SamConfig) -> nn.Module:
    """transformers', with its own choice of attention."""
    from transformers import SamVisionConfig, SamVisionModel

    return SamVisionModel(
        SamVisionConfig(
            image_size=c.image_size,
            hidden_size=c.width,
            num_hidden_layers=c.depth,
            num_attention_heads=c.heads,
            output_channels=c.neck,
            window_size=c.window,
            global_attn_indexes=list(c.global_blocks),
            mlp_dim=int(c.width * c.mlp_ratio),
        )
    )


SIDES: dict[str, Callable[[SamConfig], nn.Module]] = {
    "ours": ours,
    "segment-anything": published,
    "transformers": transformers,
}


def side(name: str, c: SamConfig) -> Callable[[], Tensor]:
    """What encodes one image."""
    torch.manual_seed(0)
    encoder = SIDES[name](c).eval()
    image = torch.randn(1, 3, c.image_size, c.image_size, generator=torch.Generator().manual_seed(0))

    def run() -> Tensor:
        with torch.inference_mode():
            out = encoder(image)
        return out if isinstance(out, Tensor) else out.last_hidden_state

    return run


def main() -> None:
    """Time the three in turns, take their memory apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=SIDES)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = SIZES[options.size]
    if options.only:
        run = side(options.only, config)
        before = peak_mb()
        run()
        print(json.dumps([{"mb": peak_mb() - before}]))
        return
    seconds = interleaved({name: side(name, config) for name in SIDES}, repeats=options.repeats, warmup=1)
    words = ("--size", options.size, "--threads", str(options.threads))
    memory = {name: fresh(__file__, *words, "--only", name)[0]["mb"] for name in SIDES}
    rows = []
    for name, label in PEERS.items():
        work = f"encode one image of {config.image_size} px"
        rows.append(Row(work, label, "ms", 1e3 * seconds["ours"], 1e3 * seconds[name], options.repeats))
        rows.append(Row(f"{work}: peak memory above the weights", label, "MB", memory["ours"], memory[name], 1))
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
