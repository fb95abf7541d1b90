from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from vesalius.errors import ConfigError
from vesalius.images import Image
from vesalius.nn.convvit import ConvViT, ConvViTConfig
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.tasks.classification import Classifier

CLASSES = ("normal", "benign", "malignant")


def vit(**changes) -> ViT:
    torch.manual_seed(0)
    options = {"image_size": 32, "patch_size": 8, "in_channels": 1, "width": 16, "depth": 2, "heads": 2}
    return ViT(ViTConfig(**options | changes))


def convvit() -> ConvViT:
    torch.manual_seed(0)
    return ConvViT(ConvViTConfig(image_size=32, in_channels=1, widths=(8, 8, 16), depths=(1, 1, 1), heads=2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "cls"},
        {"fc_norm": False},
        {"fc_norm": False, "pool": "cls"},
        {"pool": "encoder", "head": "mlp3"},
    ],
)
def test_every_trained_parameter_has_a_gradient(options):
    model = Classifier(vit(), CLASSES, **options)
    torch.nn.init.normal_(model.head[-1].weight if "head" in options else model.head.weight)
    image, label = torch.randn(2, 1, 32, 48), torch.tensor([0, 2])
    model.loss(model(image), {"label": label}).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [] and model.encoder.patch_embed.proj.weight.grad.abs().sum() > 0


def test_pools_raw_patch_tokens_of_any_trunk():
    model = Classifier(vit(), CLASSES).eval()
    image = torch.randn(2, 1, 32, 48)
    raw = model.encoder(image, layers=(1,)).layers[1]
    torch.testing.assert_close(model.features(image), model.fc_norm(raw[:, 1:].mean(1)))
    hierarchical = Classifier(convvit(), CLASSES).eval()
    encoded = hierarchical.encoder(image)
    torch.testing.assert_close(hierarchical.features(image), hierarchical.fc_norm(encoded.maps[-1].mean((2, 3))))


def test_head_starts_small_and_config_rebuilds():
    model = Classifier(vit(), CLASSES, label_smoothing=0.0, head_std=1e-3)
    assert 0 < model.head.weight.abs().max() < 5e-3
    again = Classifier(vit(), **model.config)
    again.load_state_dict(model.state_dict())
    image = torch.randn(2, 1, 32, 32)
    assert torch.equal(again.eval().predict(image), model.eval().predict(image))
    torch.testing.assert_close(model.predict(image).sum(1), torch.ones(2))


def test_the_head_reads_what_the_encoder_pools_so_that_features_can_be_kept():
    model = Classifier(vit(), CLASSES, pool="encoder", head="mlp3", head_std=0.1).eval()
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(model.head(model.encoder(image).pooled), model(image))
    assert [tuple(p.shape) for p in model.head.parameters() if p.ndim == 2] == [(16, 16), (16, 16), (3, 16)]
    again = Classifier(vit(), **model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval().predict(image), model.predict(image))


def test_any_number_of_labels(tmp_path):
    model = Classifier(vit(), CLASSES, multilabel=True, head_std=1.0).eval()
    again = Classifier(vit(), **model.config)
    again.load_state_dict(model.state_dict())
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(again.eval().predict(image), model(image).detach().sigmoid())
    batch = {"label": torch.ones(2, 3), "annotated": torch.tensor([[True, True, False]] * 2)}
    assert float(model.loss(torch.zeros(2, 3), batch)) == pytest.approx(2 * np.log(2))
    scan = Image(np.zeros((1, 8, 8), np.uint8), ("gray",), path="scan.dcm")
    assert model.row([0.1, 0.7, 0.6], scan)["predicted"] == "benign;malignant"
    assert model.row([0.1, 0.2, 0.3], scan)["predicted"] == ""
    (path,) = model.write([0.1, 0.7, 0.6], scan, tmp_path, "scan")
    assert path.read_text().splitlines()[1] == "scan.dcm,,benign;malignant,0.1,0.7,0.6"


def test_writes_a_row_of_scores(tmp_path):
    model = Classifier(vit(), CLASSES)
    image = Image(np.zeros((1, 8, 8), np.uint8), ("gray",), path="scan.dcm", frame=3)
    (path,) = model.write([0.1, 0.7, 0.2], image, tmp_path, "scan_3")
    (row,) = csv.DictReader(path.open())
    assert row == {
        "path": "scan.dcm",
        "frame": "3",
        "predicted": "benign",
        "p_normal": "0.1",
        "p_benign": "0.7",
        "p_malignant": "0.2",
    }
    with pytest.raises(ConfigError, match="unknown output format 'cvs'; did you mean 'csv'"):
        model.write([0.1, 0.7, 0.2], image, tmp_path, "scan_3", ["cvs"])


@pytest.mark.parametrize(
    ("make", "about"),
    [
        (lambda: Classifier(vit(), ("one",)), "at least 2"),
        (lambda: Classifier(convvit(), CLASSES, pool="cls"), "no class token"),
        (lambda: Classifier(vit(), CLASSES, pool="encoder", fc_norm=True), "fc_norm with pool = 'encoder'"),
        (lambda: Classifier(vit(), CLASSES, head="mlp"), "did you mean 'mlp3'"),
        (lambda: Classifier(vit(), ("a;b", "c"), multilabel=True), "name holds ';'"),
        (lambda: Classifier(vit(), CLASSES, multilabel=True, label_smoothing=0.1), "label_smoothing"),
    ],
)
def test_what_cannot_be_built_says_why(make, about):
    with pytest.raises(ConfigError, match=about):
        make()
