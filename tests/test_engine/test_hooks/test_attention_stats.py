"""What attention does to the features is measured once an epoch."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import nn
from torch.utils.data import DataLoader

from sb_mm.engine.build import build_model
from sb_mm.engine.config import read_config
from sb_mm.engine.hooks.attention_stats import (
    AttentionStatsHook,
    attention_layers,
    measure_attention,
)
from sb_mm.errors import UserInputError
from sb_mm.models.backbones.blocks import InvertedResidual
from sb_mm.models.layers import AttentionConvModule

from ..conftest import CUSTOM, tiny_runner

SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')


class Preprocessor(BaseDataPreprocessor):
    """Trains on the very tensors of the loader."""

    def forward(self, data, training=False):
        if training:
            data['inputs'].mul_(100)
        return super().forward(data, training)


class Net(BaseModel):
    """The given layers, and something to train on."""

    def __init__(self, *layers):
        super().__init__(Preprocessor())
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs, mode='tensor'):
        y = self.layers(inputs)
        return dict(loss=y.square().mean()) if mode == 'loss' else y


def conv(in_channels, out_channels, attention=None, **kwargs):
    torch.manual_seed(0)
    module = AttentionConvModule(
        in_channels,
        out_channels,
        1,
        attention=attention,
        norm_cfg=dict(type='BN'),
        **kwargs,
    )
    module.bn.weight.data.uniform_(0.5, 2)
    module.bn.bias.data.normal_()
    return module


def with_logits(module, logits):
    """Let the gate's logits be these, whatever the input."""
    module.attention.gate.bn2.weight.data.zero_()
    module.attention.gate.bn2.bias.data = torch.tensor(logits).float()
    return module


def images(count):
    generator = torch.Generator().manual_seed(0)
    return dict(inputs=torch.randn(count, 3, 4, 5, generator=generator))


def normed(module, batch):
    """The trunk behind conv and norm, from plain arithmetic."""
    module = module.cpu().double()
    weight = module.conv.weight.detach().numpy()[:, :, 0, 0]
    y = np.einsum('oi,nihw->nohw', weight, batch['inputs'].double().numpy())
    bn = module.bn
    mean, var, scale, bias = (
        t.detach().numpy()[:, None, None]
        for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    return (y - mean) / np.sqrt(var + bn.eps) * scale + bias


def measure(layer):
    """Return the kind and the metrics of a network's only layer."""
    (record,) = measure_attention(Net(layer), images(3)).values()
    return record.pop('kind'), record


def read_lines(folder):
    texts = [f.read_text() for f in folder.rglob('attention_stats.json')]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def test_shift_balance_is_measured_as_computed_by_hand():
    # tanh of the logits: -0.9993, -0.905, 0.46, 0.956, 0.995
    logits = [-4.0, -1.5, 0.5, 1.9, 3.0]
    module = with_logits(conv(3, 5, SB), logits)
    lambdas = np.array([0.1, -0.3, 0.5, 0.0, 2.0])
    module.attention.lambda_.data = torch.tensor(lambdas).float()
    kind, record = measure(module)
    trunk = normed(module, images(3))
    output = trunk + (lambdas * np.tanh(logits))[:, None, None]
    expected = dict(trunk_std=trunk.std(), output_std=output.std())
    expected |= dict(lambda_mean=lambdas.mean(), lambda_std=lambdas.std())
    assert kind == 'ShiftBalance'
    assert record == pytest.approx(dict(expected, saturated=3 / 5), rel=1e-5)
    assert abs(trunk.std() - output.std()) > 0.1


@pytest.mark.parametrize('after', ['norm', 'act'])
def test_squeeze_excite_is_measured_as_computed_by_hand(after):
    # sigmoid of the logits: 0.018, 0.054, 0.5, 0.961, 0.993
    logits = np.array([-4.0, -2.86, 0.0, 3.2, 5.0])
    module = with_logits(conv(3, 5, SE, attention_after=after), logits)
    kind, record = measure(module)
    trunk = normed(module, images(3))
    trunk = np.maximum(trunk, 0) if after == 'act' else trunk
    output = trunk / (1 + np.exp(-logits))[:, None, None]
    expected = dict(trunk_std=trunk.std(), output_std=output.std())
    expected |= dict(saturated=3 / 5, inactivated=1 / 5)
    assert kind == 'SqueezeExcite'
    assert record == pytest.approx(expected, rel=1e-5)


def test_a_layer_without_attention_has_the_output_of_its_norm():
    module = conv(3, 4)
    kind, record = measure(module)
    std = normed(module, images(3)).std()
    assert kind == 'NoAttention'
    assert record == pytest.approx(dict(trunk_std=std, output_std=std))


@pytest.mark.parametrize(
    ('gate', 'share'),
    # Of the logits -4, 0 and 4.
    [('sigmoid', 2 / 3), ('softmax', None), ('relu', None), ('none', None)],
)
def test_only_a_gate_with_two_ends_can_saturate(gate, share):
    module = with_logits(conv(3, 3, dict(SB, gate=gate)), [-4.0, 0.0, 4.0])
    _, record = measure(module)
    assert record.get('saturated') == pytest.approx(share)
    assert 'lambda_mean' in record


def test_a_channel_is_inactivated_only_if_closed_on_average():
    module = conv(1, 4, SE)
    gate = module.attention.gate
    gate.fc1.weight.data.fill_(1)
    gate.fc2.weight.data.zero_()
    # Logits by channel, in an image of zeros and in an image of ones:
    # -4, -4 (always closed); -4, 4; 4, 4; -4, -1.4 (mostly closed).
    gate.fc2.weight.data[:, 0] = torch.tensor([0.0, 8.0, 0.0, 2.6])
    gate.bn2.bias.data = torch.tensor([-4.0, -4.0, 4.0, -4.0])
    x = torch.zeros(8, 1, 2, 2)
    x[7] = 1
    (record,) = measure_attention(Net(module), dict(inputs=x)).values()
    # Of the fourth channel, (7 * 0.018 + 0.198) / 8 = 0.04.
    assert record['inactivated'] == pytest.approx(2 / 4)
    # All 4 of the first image's 7 copies, 3 of the last image.
    assert record['saturated'] == pytest.approx((7 * 4 + 3) / 32)


def test_a_measurement_changes_nothing_but_the_mode():
    net = Net(conv(3, 4, dict(SB, dropout=0.5)), conv(4, 5, SE)).train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(0)
    measure_attention(net, images(4))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert drawn == torch.rand(1)
    for name, value in net.state_dict().items():
        assert value.equal(state[name]), name
    assert not any(m._forward_hooks for m in net.modules())
    assert torch.is_grad_enabled()


def test_a_run_logs_a_line_an_epoch_and_the_curves(tmp_path):
    data = [{'inputs': x} for x in images(5)['inputs']]
    net = Net(conv(3, 4), conv(4, 5, SE))
    runner = tiny_runner(
        net,
        tmp_path,
        5,
        train_dataloader=DataLoader(data, batch_size=2),  # 2, 2 and 1
        custom_hooks=[dict(type='sb_mm.AttentionStatsHook')],
    )
    runner.visualizer.add_scalars = add_scalars = Mock()
    runner.train()
    first, second = read_lines(tmp_path)
    assert (first['epoch'], second['epoch']) == (1, 2)
    assert list(second['layers']) == ['layers.0', 'layers.1']
    # The last whole batch, as it came from the loader.
    batch = dict(inputs=images(5)['inputs'][2:4])
    assert second['layers'] == measure_attention(net, batch)
    std = second['layers']['layers.0']['output_std']
    assert std != first['layers']['layers.0']['output_std']
    # A GPU's convolution has the precision of TF32.
    assert std == pytest.approx(normed(net.layers[0], batch).std(), rel=1e-3)
    (scalars,), options = add_scalars.call_args
    assert options == dict(step=2)
    assert scalars['attention/layers.0/output_std'] == std
    assert len(scalars) == 2 + 4
    # Where tools/plot.py looks for it.
    assert list(tmp_path.glob('*/vis_data/attention_stats.json'))


def test_a_diverged_network_is_measured_with_gaps():
    layers = conv(3, 4, SB), conv(4, 4, SE), conv(4, 4, SB)
    layers[1].conv.weight.data[0, 0] = float('nan')
    layers[2].attention.lambda_.data[0] = float('inf')
    records = measure_attention(Net(*layers), images(2))
    first, second, third = records.values()
    assert None not in first.values()
    assert second['output_std'] is None
    assert second['saturated'] is not None  # its input is whole
    assert third['saturated'] is None
    assert third['lambda_mean'] is None
    json.dumps(records, allow_nan=False)


def test_a_model_without_such_layers_is_refused():
    runner = SimpleNamespace(model=Net(nn.Conv2d(3, 4, 1)))
    with pytest.raises(UserInputError, match=r'no sb_mm.AttentionConvModule'):
        AttentionStatsHook().before_train(runner)


def test_the_layers_of_blocks_and_of_a_detector_come_in_order():
    block = InvertedResidual(
        4, 4, 1, 8, attention=SE, attention_layers=('expand', 'block')
    )
    found = measure_attention(Net(conv(3, 4), block), images(2))
    assert [(name, r['kind']) for name, r in found.items()] == [
        ('layers.0', 'NoAttention'),
        ('layers.1.conv.0', 'SqueezeExcite'),
        ('layers.1.conv.1', 'NoAttention'),
        ('layers.1.conv.2', 'NoAttention'),
        ('layers.1', 'SqueezeExcite'),
    ]
    pytest.importorskip('mmdet')
    layers = list(attention_layers(build_model(read_config(CUSTOM))))
    kinds = [type(layer.attention).__name__ for layer in layers]
    # 17 bottlenecks, the first without expansion; 4 extra levels.
    assert kinds.count('ShiftBalance') == 17 * 3 - 1
    assert kinds.count('NoAttention') == 4 * 3
    assert layers[0].name == 'backbone.layer1.0.conv.0'
