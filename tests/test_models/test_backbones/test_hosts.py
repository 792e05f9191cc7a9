"""The static networks are the hosts' own, whose weights load."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sb_mm import models
from sb_mm.convert_weights import convert

hosts = pytest.importorskip('mmpretrain.models')
torchvision = pytest.importorskip('torchvision.models')

# ---- the rule of the kuangliu/pytorch-cifar recipe, written again --------


class Block(nn.Module):
    def __init__(self, cin, cout, expansion, stride):
        super().__init__()
        mid = expansion * cin
        self.conv1 = nn.Conv2d(cin, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.stride = stride
        self.shortcut = nn.Sequential()
        if stride == 1 and cin != cout:
            self.shortcut = nn.Sequential(
                nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y + self.shortcut(x) if self.stride == 1 else y


class Recipe(nn.Module):
    """Channels as a list, one for each of the seven stages."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layers = nn.ModuleList()
        cin = 16
        rows = zip(
            channels,
            (1, 6, 6, 6, 6, 6, 6),
            (1, 2, 3, 4, 3, 3, 1),
            (1, 1, 2, 2, 1, 2, 1),
            strict=True,
        )
        for cout, expansion, blocks, stride in rows:
            for first in [True] + [False] * (blocks - 1):
                step = stride if first else 1
                self.layers.append(Block(cin, cout, expansion, step))
                cin = cout
        self.conv2 = nn.Conv2d(cin, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)

    def forward(self, x):
        outs = []
        x = F.relu(self.bn1(self.conv1(x)))
        for block in self.layers:
            x = block(x)
            outs.append(x)
        outs.append(F.relu(self.bn2(self.conv2(x))))
        # The last block of each stage, and the last convolution.
        return [outs[i] for i in (0, 2, 5, 9, 12, 15, 16, 17)]


def recipe(width):
    """make_divisible: never below 90 %, so 11.2 becomes 16."""
    channels = {
        0.35: (8, 8, 16, 24, 32, 56, 112),
        1.0: (16, 24, 32, 64, 96, 160, 320),
    }
    return Recipe(channels[width])


class MnasNet(torchvision.MNASNet):
    """Its stages end before these layers; 17 is the number of layers."""

    def forward(self, x):
        return [self.layers[:i](x) for i in (8, 9, 10, 11, 12, 13, 14, 17)]


def same_names(host, ours):
    return host.state_dict()


def mnasnet_weights(host, ours):
    state = convert(host.state_dict()).state_dict
    names = [name for name in state if name.startswith('backbone.')]
    return {name.removeprefix('backbone.'): state[name] for name in names}


def by_order(host, ours):
    """For the recipe, whose names are not ours."""
    pairs = zip(ours.state_dict(), host.state_dict().values(), strict=True)
    return dict(pairs)


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
    'cifar': (recipe, (0.35, 1.0), by_order, 2 + 2 * 17),
}


@pytest.mark.parametrize(
    ('network', 'width'), [(n, w) for n, row in TABLE.items() for w in row[1]]
)
def test_the_static_network_computes_what_its_host_does(
    network, width, build, images, settle
):
    make, _, weights, activations = TABLE[network]
    size = 32 if network == 'cifar' else 64
    torch.manual_seed(0)
    host = settle(make(width), size).double()
    numbers = range(4 if network == 'shufflenet' else 8)
    ours = build(network, widen_factor=width, out_indices=numbers).eval()
    ours.double().load_state_dict(weights(host, ours))
    seen = []
    for part in ours.modules():
        if isinstance(part, (nn.ReLU, nn.ReLU6)):
            part.register_forward_pre_hook(
                lambda _, args: seen.append(args[0].aminmax())
            )
    x = images(size=size).double()
    with torch.no_grad():
        for ours_, theirs in zip(ours(x), host(x), strict=True):
            torch.testing.assert_close(ours_, theirs)
    assert len(seen) == activations
    assert all(low < 0 < high for low, high in seen)
    # Far enough to tell ReLU from ReLU6.
    assert max(high for _, high in seen) > 6


def test_momenta_and_last_channels_are_torchvision_s(build):
    theirs, ours = torchvision.MNASNet(0.1), build('mnasnet', 'sb')
    kinds = [
        {m.momentum for m in network.modules() if type(m) is nn.BatchNorm2d}
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


@pytest.mark.parametrize(
    'backbone', ['AttentionMobileNetV2', 'DyConvMobileNetV2']
)
def test_published_weights_load_in_a_host_s_model(backbone, published, images):
    host, init_cfg = published
    model = pytest.importorskip('mmpretrain.registry').MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type=f'sb_mm.{backbone}', widen_factor=0.1, init_cfg=init_cfg
            ),
        )
    )
    before = dict(init_cfg)
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
