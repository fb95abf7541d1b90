"""Convolutional trunks: batch statistics in both modes, and MONAI's parts put together right."""

from __future__ import annotations

import torch
from monai.networks.nets import BasicUNetPlusPlus
from monai.networks.nets import SegResNet as MonaiSegResNet

from vesalius.nn.unet3d import NestedUNet3D, NestedUNet3DConfig, SegResNet, SegResNetConfig, UNet3D, UNet3DConfig


def test_unet_normalises_by_the_batch_in_eval_mode():
    torch.manual_seed(0)
    trunk = UNet3D(UNet3DConfig(width=4)).eval()
    one, other = torch.rand(1, 1, 16, 16, 16), 5 * torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        alone = trunk(one).decoder
        together = trunk(torch.cat([one, other])).decoder[:1]
        torch.testing.assert_close(trunk.train()(one).decoder, alone)
    assert (together - alone).norm() > 0.05 * alone.norm()


def test_nested_unet_is_monais():
    torch.manual_seed(0)
    widths = (4, 4, 8, 8, 16, 4)
    published = BasicUNetPlusPlus(out_channels=2, features=widths).eval()
    ours = NestedUNet3D(NestedUNet3DConfig(widths=widths)).eval()
    state = {f"nodes.{name}": tensor for name, tensor in published.state_dict().items() if "final" not in name}
    ours.load_state_dict(state)
    volume = torch.rand(1, 1, 32, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(published.final_conv_0_4(ours(volume).decoder), published(volume)[0])


def test_segresnet_is_monais():
    torch.manual_seed(0)
    published = MonaiSegResNet(init_filters=8, out_channels=2).eval()
    ours = SegResNet(SegResNetConfig(width=8)).eval()
    own = set(ours.state_dict())
    state = {f"net.{name}": tensor for name, tensor in published.state_dict().items()}
    ours.load_state_dict({name: tensor for name, tensor in state.items() if name in own})
    volume = torch.rand(1, 1, 16, 24, 16)
    with torch.no_grad():
        torch.testing.assert_close(published.conv_final[2](ours(volume).decoder), published(volume))
