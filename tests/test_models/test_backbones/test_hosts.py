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


HOSTS = {
    'mobilenet': lambda w: hosts.MobileNetV2(w, out_indices=range(8)),
    'shufflenet': lambda w: hosts.ShuffleNetV2(w, range(4)),
    'mnasnet': lambda w: MnasNet(w, num_classes=3),
}


def weights_of(host):
    state = host.state_dict()
    if isinstance(host, MnasNet):
        state = convert(state).state_dict
    trunk = {k: v for k, v in state.items() if not k.startswith('head.')}
    return {k.removeprefix('backbone.'): v for k, v in trunk.items()}


def norms(model):
    parts = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return {(m.momentum, m.eps) for m in parts}


@pytest.mark.parametrize(
    ('network', 'width'),
    [
        *(('mobilenet', width) for width in (0.35, 1.4)),
        *(('shufflenet', width) for width in (0.5, 1.0, 1.5, 2.0)),
        *(('mnasnet', width) for width in (0.5, 1.3)),
    ],
)
def test_the_static_network_computes_what_its_host_does(
    network, width, build, images, settle
):
    torch.manual_seed(0)
    host = settle(HOSTS[network](width), 64).double()
    numbers = range(4 if network == 'shufflenet' else 8)
    ours = build(network, widen_factor=width, out_indices=numbers).eval()
    ours.double().load_state_dict(weights_of(host))
    assert norms(ours) == norms(host)
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
    # Far enough to tell an activation from none, and ReLU from ReLU6.
    assert all(low < 0 < high for low, high in seen)
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


@pytest.mark.parametrize('kind', ['Attention', 'DyConv'])
def test_published_weights_load_in_a_host_s_model(kind, published, images):
    host, init_cfg = published
    before = dict(init_cfg)
    backbone = dict(
        type=f'sb_mm.{kind}MobileNetV2', widen_factor=0.1, init_cfg=init_cfg
    )
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
