"""The language-driven head: one class's answer does not depend on which others are asked, or come later."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vesalius.errors import ConfigError
from vesalius.nn.language_head import LanguageDriven, dynamic_head
from vesalius.nn.unet3d import SegResNet, SegResNetConfig


def _network(**options):
    torch.manual_seed(0)
    trunk = SegResNet(SegResNetConfig(width=8, down=(1, 1), up=(1,)))
    network = LanguageDriven(trunk, classes=[f"organ {n}" for n in range(6)], embedding=16, **options).eval()
    network.head.embedding.data.normal_()
    return network


@pytest.fixture
def volume():
    return torch.rand(2, 1, 8, 8, 8)


def test_dynamic_head_is_a_network_a_class():
    torch.manual_seed(0)
    features, parameters = torch.randn(2, 8, 3, 4, 5), torch.randn(2, 7, 153)
    logits = dynamic_head(features, parameters)
    w1, w2, w3, b1, b2, b3 = parameters[1, 6].split([64, 64, 8, 8, 8, 1])
    x = features[1:]
    for weight, bias in ((w1, b1), (w2, b2)):
        x = F.relu(F.conv3d(x, weight.view(8, 8, 1, 1, 1), bias))
    torch.testing.assert_close(logits[1:, 6:], F.conv3d(x, w3.view(1, 8, 1, 1, 1), b3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"controller": "per_class"}, {"encoding": "learned"}])
def test_only_the_classes_asked_for(volume, options):
    network = _network(**options)
    with torch.no_grad():
        every = network(volume)
        torch.testing.assert_close(network(volume, ["organ 4", "organ 1"]), every[:, [4, 1]])
    with pytest.raises(ConfigError, match="no class 'orgam 1'; did you mean"):
        network(volume, ["orgam 1"])


@pytest.mark.parametrize("options", [{}, {"controller": "per_class"}, {"encoding": "learned"}])
def test_extension_leaves_old_classes_as_they_are(volume, options):
    network = _network(**options)
    with torch.no_grad():
        before = network(volume)
        network.extend(["adrenal tumour"], torch.randn(1, network.head.embedding.shape[1]))
        after = network(volume)
    assert after.shape[1] == 7
    assert torch.equal(network(volume, network.classes[:6]), before)
    with pytest.raises(ConfigError, match="already"):
        network.extend(["organ 2"], torch.randn(1, network.head.embedding.shape[1]))


def test_text_embeddings_do_not_train():
    assert "head.embedding" not in dict(_network().named_parameters())
    assert "head.embedding" in dict(_network(encoding="learned").named_parameters())
