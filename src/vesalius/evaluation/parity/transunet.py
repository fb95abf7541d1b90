"""TransUNet: the trained network, the encoder from Google's archive, and the loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vesalius.evaluation.parity.common import Adapter, Outputs, hints_of, image_of, tensor
from vesalius.nn.losses import cross_entropy
from vesalius.nn.transunet import TransUNet, TransUNetConfig
from vesalius.published.checkpoint import safe_torch_load
from vesalius.published.fixture import Fixture
from vesalius.published.load import load
from vesalius.published.transunet import load_google
from vesalius.tasks.stacks import squared_dice, stack_loss


def trained(fixture: Fixture, file: Path) -> Outputs:
    """Logits, tokens and the maps of the stem."""
    net = load("transunet", file, hints=hints_of(fixture.config))
    assert isinstance(net, TransUNet)
    image = image_of(fixture)
    encoded, skips = net.encode(image)
    return {"logits": net(image), "encoded": encoded, **{f"skip{n}": skip for n, skip in enumerate(skips)}}


def google(fixture: Fixture, file: Path) -> Outputs:
    """The same of a network whose encoder is Google's and whose decoder is fresh."""
    state = safe_torch_load(file)
    arrays = {name.removeprefix("npz/"): value.numpy() for name, value in state.items() if name.startswith("npz/")}
    archive = file.with_name("google.npz")
    np.savez(archive, **{name: array + name.endswith("scale") for name, array in arrays.items()})
    c = fixture.config
    net = TransUNet(
        TransUNetConfig(
            classes=c["n_classes"] - 1,
            image_size=c["img_size"],
            width=round(64 * c["width_factor"]),
            stages=tuple(c["resnet_layers"]),
            hidden=c["hidden_size"],
            depth=c["num_layers"],
            heads=c["num_heads"],
            mlp=c["mlp_dim"],
            middle=c["head_channels"],
            decoder=tuple(c["decoder_channels"]),
            skips=c["n_skip"],
        )
    ).eval()
    load_google(net, archive)
    rest = {name.removeprefix("model/"): value for name, value in state.items() if name.startswith("model/")}
    net.load_state_dict(rest, strict=False)
    return {
        "logits": net(image_of(fixture)),
        "position_embeddings": net.positions,
        "q0": net.get_parameter("blocks.0.attn.qkv.weight").chunk(3)[0],
        "out0": net.get_parameter("blocks.0.attn.proj.weight"),
    }


def loss(fixture: Fixture, file: Path) -> Outputs:
    """Half cross-entropy, half Dice of squares, as MA-SAM's with another share."""
    logits, label = tensor(fixture, "logits"), tensor(fixture, "label")
    return {
        "loss": stack_loss(logits, label, dice=0.5),
        "ce": cross_entropy(logits, label),
        "dice": squared_dice(logits, label),
    }


FAMILIES: dict[str, Adapter] = {
    "transunet_r50_vit_b16": trained,
    "transunet_npz": google,
    "transunet_loss": loss,
}
