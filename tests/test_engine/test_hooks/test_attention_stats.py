"""What attention does to the features is measured once an epoch."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import nn
from torch.utils.data import DataLoader

from sb_mm.engine.hooks.attention_stats import (
    AttentionStatsHook,
    measure_attention,
)
from sb_mm.errors import UserInputError
from sb_mm.models.backbones.blocks import InvertedResidual
from sb_mm.models.layers import AttentionConvModule

from ..conftest import tiny_runner

SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')


class Preprocessor(BaseDataPreprocessor):
    """Trains on the very tensors of the loader."""

    def forward(self, data, training=False):
        if training:
            data['inputs'].mul_(100)
        return super().forward(data, training)


class Net(BaseModel):
    def __init__(self, *layers):
        super().__init__(Preprocessor())
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs, mode='tensor'):
        y = self.layers(inputs)
        return dict(loss=y.square().mean()) if mode == 'loss' else y


def conv(in_channels, out_channels, attention=None, logits=None, **kwargs):
    """A layer whose gate gives these logits, whatever its input."""
    torch.manual_seed(0)
    kwargs.update(attention=attention, norm_cfg=dict(type='BN'))
    module = AttentionConvModule(in_channels, out_channels, 1, **kwargs)
    module.bn.weight.data.uniform_(0.5, 2)
    module.bn.bias.data.normal_()
    if logits is not None:
        module.attention.gate.bn2.weight.data.zero_()
        module.attention.gate.bn2.bias.data = torch.tensor(logits)
    return module.eval()


def images(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 4, 5, generator=generator)


def measure(layer, x):
    """Return the metrics of a network's only layer."""
    scalars = measure_attention(Net(layer), dict(inputs=x))
    prefix = 'attention/layers.0/'
    return {k.removeprefix(prefix): v for k, v in scalars.items()}


def expect(trunk, output, **metrics):
    stds = dict(trunk_std=trunk, output_std=output)
    stds = {k: t.std(correction=0).item() for k, t in stds.items()}
    return pytest.approx(stds | metrics, rel=1e-5)


def test_shift_balance_is_measured_as_computed_by_hand():
    # tanh of the logits: -0.9993, -0.905, 0.46, 0.956, 0.995
    logits = [-4.0, -1.5, 0.5, 1.9, 3.0]
    module = conv(3, 5, SB, logits)
    lambdas = torch.tensor([0.1, -0.3, 0.5, 0.0, 2.0])
    module.attention.lambda_.data = lambdas
    trunk = module.bn(module.conv(images(3)))
    shift = lambdas * torch.tensor(logits).tanh()
    assert measure(module, images(3)) == expect(
        trunk,
        trunk + shift[:, None, None],
        saturated=3 / 5,
        lambda_mean=lambdas.mean().item(),
        lambda_std=lambdas.std(correction=0).item(),
    )


@pytest.mark.parametrize('after', ['norm', 'act'])
def test_squeeze_excite_is_measured_as_computed_by_hand(after):
    # sigmoid of the logits: 0.018, 0.054, 0.5, 0.961, 0.993
    logits = [-4.0, -2.86, 0.0, 3.2, 5.0]
    module = conv(3, 5, SE, logits, attention_after=after)
    trunk = module.bn(module.conv(images(3)))
    trunk = trunk.relu() if after == 'act' else trunk
    output = trunk * torch.tensor(logits).sigmoid()[:, None, None]
    shares = dict(saturated=3 / 5, inactivated=1 / 5)
    assert measure(module, images(3)) == expect(trunk, output, **shares)


@pytest.mark.parametrize('gate', ['softmax', 'relu', 'none'])
def test_a_gate_without_two_ends_does_not_saturate(gate):
    found = measure(conv(3, 3, dict(SB, gate=gate)), images(2))
    assert {*found} == {'trunk_std', 'output_std', 'lambda_mean', 'lambda_std'}


def test_a_channel_is_inactivated_only_if_closed_on_average():
    # Logits by channel, in an image of zeros and in an image of ones:
    # -4, -4 (always closed); -4, 4; 4, 4; -4, -1.4 (mostly closed).
    module = conv(1, 4, SE, [-4.0, -4.0, 4.0, -4.0])
    gate = module.attention.gate
    gate.bn2.weight.data.fill_(1)
    gate.fc1.weight.data.fill_(1)
    gate.fc2.weight.data.zero_()
    gate.fc2.weight.data[:, 0] = torch.tensor([0.0, 8.0, 0.0, 2.6])
    x = torch.zeros(8, 1, 2, 2)
    x[7] = 1
    found = measure(module, x)
    # Of the fourth channel, (7 * 0.018 + 0.198) / 8 = 0.04.
    assert found['inactivated'] == pytest.approx(2 / 4)
    # All 4 of the first image's 7 copies, 3 of the last image.
    assert found['saturated'] == pytest.approx((7 * 4 + 3) / 32)


def test_a_training_logs_its_last_whole_batch_and_is_not_changed(tmp_path):
    data = [{'inputs': x} for x in images(5)]
    net = Net(conv(3, 4), conv(4, 5, dict(SE, dropout=0.5)))
    tiny_runner(
        net,
        tmp_path,
        5,
        train_dataloader=DataLoader(data, batch_size=2),  # 2, 2 and 1
        custom_hooks=[dict(type='sb_mm.AttentionStatsHook')],
    ).train()
    (file,) = tmp_path.glob('*/vis_data/scalars.json')
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first.pop('step'), second.pop('step')) == (1, 2)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    # As it came from the loader.
    assert second == measure_attention(net, dict(inputs=images(5)[2:4]))
    # The running statistics have gone on.
    assert second != first
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)
    assert not any(m._forward_hooks for m in net.modules())


def test_a_model_without_such_layers_is_refused():
    runner = SimpleNamespace(model=Net(nn.Conv2d(3, 4, 1)))
    with pytest.raises(UserInputError, match='no sb_mm.AttentionConvModule'):
        AttentionStatsHook().before_train(runner)


def test_every_layer_and_block_is_measured():
    block = InvertedResidual(
        4, 4, 1, 8, attention=SE, attention_layers=('expand', 'block')
    )
    net = Net(conv(3, 4), block)
    scalars = measure_attention(net, dict(inputs=images(2)))
    std, share = ('trunk_std', 'output_std'), ('saturated', 'inactivated')
    layers = dict.fromkeys(('0', '1.conv.1', '1.conv.2'), std)
    layers |= dict.fromkeys(('1.conv.0', '1'), std + share)
    assert {*scalars} == {
        f'attention/layers.{layer}/{metric}'
        for layer, metrics in layers.items()
        for metric in metrics
    }
    stds = [scalars[f'attention/layers.0/{metric}'] for metric in std]
    plain = net.layers[0].norm(net.layers[0].conv(images(2)))
    assert stds == pytest.approx([plain.std(correction=0).item()] * 2)
