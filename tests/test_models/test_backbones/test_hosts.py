"""The static networks are the hosts' own, whose weights load."""

import pytest
import torch
from torch import nn

from sb_mm import models
from sb_mm.convert_weights import convert

hosts = pytest.importorskip('mmpretrain.models')
torchvision = pytest.importorskip('torchvision.models')


class MnasNet(torchvision.MNASNet):
    """Its stages end before these layers; 17 is the number of layers."""

    def forward(self, x):
        return [self.layers[:i](x) for i in (8, 9, 10, 11, 12, 13, 14, 17)]


def same_names(host):
    return host.state_dict()


def mnasnet_weights(host):
    state = convert(host.state_dict()).state_dict
    names = [name for name in state if name.startswith('backbone.')]
    return {name.removeprefix('backbone.'): state[name] for name in names}


# Whose network, its widths, where the weights come from, how many
# activations: stem, last convolution, and two a block or a unit.
TABLE = {
    'mobilenet': (
        lambda w: hosts.MobileNetV2(w, out_indices=range(8)),
        (0.35, 1.4),
        same_names,
        2 + 2 * 17 - 1,
    ),
    'shufflenet': (
        lambda w: hosts.ShuffleNetV2(w, range(4)),
        (0.5, 1.0, 1.5, 2.0),
        same_names,
        2 + 2 * (4 + 8 + 4) + 3,
    ),
    'mnasnet': (
        lambda w: MnasNet(w, num_classes=3),
        (0.5, 1.3),
        mnasnet_weights,
        3 + 2 * (3 + 3 + 3 + 2 + 4 + 1),
    ),
}


@pytest.mark.parametrize(
    ('network', 'width'), [(n, w) for n, row in TABLE.items() for w in row[1]]
)
def test_the_static_network_computes_what_its_host_does(
    network, width, build, images, settle
):
    make, _, weights, activations = TABLE[network]
    torch.manual_seed(0)
    host = settle(make(width), 64).double()
    numbers = range(4 if network == 'shufflenet' else 8)
    ours = build(network, widen_factor=width, out_indices=numbers).eval()
    ours.double().load_state_dict(weights(host))
    seen = []
    for part in ours.modules():
        if isinstance(part, (nn.ReLU, nn.ReLU6)):
            part.register_forward_pre_hook(
                lambda _, args: seen.append(args[0].aminmax())
            )
    x = images(size=64).double()
    with torch.no_grad():
        for ours_, theirs in zip(ours(x), host(x), strict=True):
            torch.testing.assert_close(ours_, theirs)
    assert len(seen) == activations
    assert all(low < 0 < high for low, high in seen)
    # Far enough to tell ReLU from ReLU6.
    assert max(high for _, high in seen) > 6


def test_cifar_s_is_that_of_the_pytorch_cifar_recipe(build, images):
    """Its convolutions follow from the counts of Table 5."""
    model = build('cifar', widen_factor=1.0, out_indices=range(8))
    sides = [out.size(2) for out in model(images())]
    assert sides == [32, 32, 16, 8, 8, 4, 4, 4]
    kinds = [type(m) for m in model.modules()]
    # Two a block, stem and last convolution; none behind a shortcut.
    assert kinds.count(nn.ReLU) == 2 + 2 * 17
    assert nn.ReLU6 not in kinds
    shortcuts = [n for n in model.state_dict() if 'shortcut.conv' in n]
    # 16 -> 24, 64 -> 96, 160 -> 320
    assert [n[:8] for n in shortcuts] == ['layer2.0', 'layer5.0', 'layer7.0']


def test_momenta_and_last_channels_are_torchvision_s(build):
    theirs, ours = torchvision.MNASNet(0.1), build('mnasnet', 'sb')
    kinds = [
        {
            m.momentum
            for m in network.modules()
            if isinstance(m, nn.BatchNorm2d)
        }
        for network in (theirs, ours)
    ]
    assert kinds == [{1 - 0.9997}] * 2
    other = build('mnasnet', norm_cfg=dict(type='BN'))
    assert other.conv1.bn.momentum == 0.1
    assert build('mnasnet', widen_factor=1.3).conv2.out_channels == 1280
    assert build('cifar', widen_factor=2.0).conv2.out_channels == 2560


# ---- published weights -------------------------------------------------


@pytest.fixture
def published(tmp_path, images, settle):
    """A classifier's checkpoint as mmpretrain publishes them."""
    torch.manual_seed(5)
    host = settle(hosts.MobileNetV2(0.1), 64)
    state = {f'backbone.{k}': v for k, v in host.state_dict().items()}
    head = {'head.fc.weight': torch.zeros(4, 1280)}
    torch.save({'state_dict': {**state, **head}, 'meta': {}}, tmp_path / 'w')
    pretrained = dict(prefix='backbone.', checkpoint=str(tmp_path / 'w'))
    return host, dict(type='Pretrained', **pretrained)


@pytest.mark.parametrize('kind', ['', 'DyConv'])
def test_published_weights_load_in_a_host_s_model(kind, published, images):
    host, init_cfg = published
    before = dict(init_cfg)
    backbone = f'sb_mm.{kind or "Attention"}MobileNetV2'
    backbone = dict(type=backbone, widen_factor=0.1, init_cfg=init_cfg)
    model = dict(type='mmpretrain.ImageClassifier', backbone=backbone)
    model = pytest.importorskip('mmpretrain.registry').MODELS.build(model)
    model.init_weights()
    assert init_cfg == before
    # Whatever the shares of DyConv's kernels are, these are alike.
    (out,), (expected,) = model.backbone.eval()(images()), host(images())
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_what_the_file_lacks_starts_as_the_other_init_cfg_says(published):
    host, init_cfg = published
    other = dict(type='Constant', val=0.5, layer='Linear')
    model = models.SBMobileNetV2(0.1, init_cfg=[other, init_cfg])
    model.init_weights()
    attention = model.layer2[0].conv[0].attention
    assert attention.gate.fc1.weight.unique().tolist() == [0.5]
    assert attention.lambda_.unique().tolist() == pytest.approx([0.1])
    state = model.state_dict()
    for name, value in host.state_dict().items():
        assert state[name].equal(value), name
