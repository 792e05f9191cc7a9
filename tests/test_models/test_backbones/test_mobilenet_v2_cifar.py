"""The MobileNetV2 of the CIFAR-10 tables: counts, and the recipe's rule."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sb_mm.models import AttentionMobileNetV2CIFAR, ShiftBalance

SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')
# Linear(1280, 10) = 1280 * 10 + 10
CLASSIFIER = 12810
PLACES = {
    'C1': ('expand',),
    'C1+C3': ('expand', 'project'),
    'C1+C2+C3': ('expand', 'depthwise', 'project'),
}

# arXiv:2103.13080, Table 5: width, place, exact and printed count, SE and SB.
TABLE_5 = [
    (0.35, 'C1', 1088890, '1.089', 1091498, '1.091'),
    (0.35, 'C1+C3', 1239674, '1.240', 1242826, '1.243'),
    (0.35, 'C1+C2+C3', 1434750, '1.435', 1440510, '1.441'),
    (0.5, 'C1', 2055994, '2.056', 2059610, '2.060'),
    (0.5, 'C1+C3', 2358234, '2.358', 2362610, '2.363'),
    (0.5, 'C1+C2+C3', 2745358, '2.745', 2753350, '2.753'),
    (0.75, 'C1', 4410026, '4.410', 4415466, '4.415'),
    (0.75, 'C1+C3', 5088458, '5.088', 5095042, '5.095'),
    (0.75, 'C1+C2+C3', 5954462, '5.954', 5966486, '5.966'),
    (1.0, 'C1', 7586778, '7.587', 7593898, '7.594'),
    (1.0, 'C1+C3', 8783450, '8.783', 8792074, '8.792'),
    (1.0, 'C1+C2+C3', 10303870, '10.304', 10319614, '10.320'),
]
# Table 10: factor on the hidden units, exact and printed count at x0.35.
TABLE_10 = [
    (1, 1440510, '1.441'),
    (2, 2447042, '2.447'),
    (3, 3453574, '3.454'),
    (4, 4460106, '4.460'),
]


@pytest.mark.parametrize(
    ('width', 'count'),
    [(0.35, 416698), (0.5, 715834), (0.75, 1401386), (1.0, 2294682)],
)
def test_parameters_of_the_static_network(width, count, parameter_count):
    backbone = AttentionMobileNetV2CIFAR(width)
    assert parameter_count(backbone) + CLASSIFIER == count


@pytest.mark.parametrize(
    ('width', 'place', 'se', 'se_printed', 'sb', 'sb_printed'), TABLE_5
)
def test_parameters_of_table_5(
    width, place, se, se_printed, sb, sb_printed, parameter_count, is_printed
):
    for attention, exact, printed in (
        (SE, se, se_printed),
        (SB, sb, sb_printed),
    ):
        backbone = AttentionMobileNetV2CIFAR(
            width, attention=attention, attention_layers=PLACES[place]
        )
        assert parameter_count(backbone) + CLASSIFIER == exact
        assert is_printed(exact, printed)


@pytest.mark.parametrize(('factor', 'exact', 'printed'), TABLE_10)
def test_parameters_of_table_10(
    factor, exact, printed, parameter_count, is_printed
):
    attention = dict(SB, hidden_multiplier=factor)
    backbone = AttentionMobileNetV2CIFAR(0.35, attention=attention)
    assert parameter_count(backbone) + CLASSIFIER == exact
    assert is_printed(exact, printed)


# ---- the rule of the kuangliu/pytorch-cifar recipe, written again --------


class Block(nn.Module):
    def __init__(self, cin, cout, expansion, stride):
        super().__init__()
        mid = expansion * cin
        self.conv1 = nn.Conv2d(cin, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(
            mid, mid, 3, stride=stride, padding=1, groups=mid, bias=False
        )
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


@pytest.mark.parametrize(
    ('width', 'channels'),
    [
        # make_divisible: never below 90 %, so 11.2 becomes 16
        (0.35, (8, 8, 16, 24, 32, 56, 112)),
        (1.0, (16, 24, 32, 64, 96, 160, 320)),
    ],
)
def test_static_network_computes_what_the_recipe_does(
    width, channels, images, settle, watch_activations
):
    everywhere = range(8)
    ours = AttentionMobileNetV2CIFAR(width, out_indices=everywhere)
    ours = settle(ours).double()
    recipe = Recipe(channels).double().eval()
    own = ours.state_dict()
    # By order: the names are not the recipe's.
    assert len(own) == len(recipe.state_dict())
    pairs = zip(recipe.state_dict(), own.values(), strict=True)
    recipe.load_state_dict(dict(pairs))
    seen = watch_activations(ours)
    x = images().double()
    with torch.no_grad():
        outs, expected = ours(x), recipe(x)
    for out, reference in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, reference)
    # Stem, last convolution, and two a block.
    assert len(seen) == 2 + 2 * 17
    assert all(low < 0 < high for low, high in seen)
    # ReLU6 would be another network.
    assert max(high for _, high in seen) > 6


@pytest.mark.parametrize(('width', 'last'), [(0.1, 1280), (2.0, 2560)])
def test_the_stem_has_16_channels_at_every_width(width, last):
    model = AttentionMobileNetV2CIFAR(width)
    assert model.conv1.conv.weight.shape == (16, 3, 3, 3)
    assert model.conv2.conv.out_channels == last


def test_shortcuts_stand_where_channels_change_without_stride():
    model = AttentionMobileNetV2CIFAR(attention=SB)
    found = {
        name.removesuffix('.shortcut.conv')
        for name, _ in model.named_modules()
        if name.endswith('.shortcut.conv')
    }
    # 16 -> 24, 64 -> 96, 160 -> 320
    assert found == {'layer2.0', 'layer5.0', 'layer7.0'}
    for name in found:
        shortcut = model.get_submodule(f'{name}.shortcut')
        assert not any(isinstance(m, ShiftBalance) for m in shortcut.modules())
        assert not shortcut.with_activation
