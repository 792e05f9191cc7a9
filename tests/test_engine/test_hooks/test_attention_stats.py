"""What attention does to the features is measured once an epoch."""

import json
import random
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmengine.model import (
    BaseDataPreprocessor,
    BaseModel,
    MMDistributedDataParallel,
)
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from sb_mm.engine.hooks.attention_stats import (
    AttentionStatsHook,
    measure_attention,
)
from sb_mm.models.backbones.blocks import InvertedResidual
from sb_mm.models.layers import AttentionConvModule

from ..conftest import CUSTOM

SB = dict(type='sb_mm.ShiftBalance')
SE = dict(type='sb_mm.SqueezeExcite')


class Preprocessor(BaseDataPreprocessor):
    """Draws random numbers, and trains on the very tensors of the loader."""

    def forward(self, data, training=False):
        torch.rand(1), np.random.rand(), random.random()
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
    module.attention.gate.bn2.bias.data = torch.tensor(logits)
    return module


def images(count, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, 4, 5, generator=generator)
    return dict(inputs=x)


def normed(module, batch):
    """The trunk behind conv and norm, from plain arithmetic."""
    weight = module.conv.weight.detach().double().cpu().numpy()[:, :, 0, 0]
    x = batch['inputs'].double().cpu().numpy()
    y = np.einsum('oi,nihw->nohw', weight, x)
    bn = module.bn
    mean, var, scale, bias = (
        t.detach().double().cpu().numpy()[:, None, None]
        for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    return (y - mean) / np.sqrt(var + bn.eps) * scale + bias


def only(layers):
    (record,) = layers.values()
    return record


def fake_runner(model, tmp_path, batches=1, **kwargs):
    return SimpleNamespace(
        model=model,
        epoch=0,
        train_dataloader=range(batches),
        log_dir=str(tmp_path),
        visualizer=Mock(),
        logger=Mock(),
        **kwargs,
    )


def run_epoch(hook, runner, batches):
    hook.before_train(runner)
    for i, batch in enumerate(batches):
        hook.before_train_iter(runner, i, batch)
    hook.after_train_epoch(runner)


def read_lines(folder):
    (file,) = folder.rglob('attention_stats.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_shift_balance_is_measured_as_computed_by_hand():
    # tanh of the logits: -0.9993, -0.905, 0.46, 0.956, 0.995
    logits = [-4.0, -1.5, 0.5, 1.9, 3.0]
    module = with_logits(conv(3, 5, SB), logits)
    lambdas = np.array([0.1, -0.3, 0.5, 0.0, 2.0])
    module.attention.lambda_.data = torch.tensor(lambdas).float()
    batch = images(3)
    record = only(measure_attention(Net(module), [batch]))
    trunk = normed(module, batch)
    output = trunk + (lambdas * np.tanh(logits))[:, None, None]
    assert record['kind'] == 'ShiftBalance'
    assert record['saturated'] == pytest.approx(3 / 5)
    assert record['lambda_mean'] == pytest.approx(lambdas.mean())
    assert record['lambda_std'] == pytest.approx(lambdas.std())
    assert record['trunk_std'] == pytest.approx(trunk.std(), rel=1e-5)
    assert record['output_std'] == pytest.approx(output.std(), rel=1e-5)
    assert abs(trunk.std() - output.std()) > 0.1
    assert 'inactivated' not in record


def test_squeeze_excite_is_measured_as_computed_by_hand():
    # sigmoid of the logits: 0.018, 0.054, 0.5, 0.961, 0.993
    logits = np.array([-4.0, -2.86, 0.0, 3.2, 5.0])
    module = with_logits(conv(3, 5, SE), logits.astype(np.float32))
    batch = images(3)
    record = only(measure_attention(Net(module), [batch]))
    trunk = normed(module, batch)
    output = trunk / (1 + np.exp(-logits))[:, None, None]
    assert record['kind'] == 'SqueezeExcite'
    assert record['saturated'] == pytest.approx(3 / 5)
    assert record['inactivated'] == pytest.approx(1 / 5)
    assert record['trunk_std'] == pytest.approx(trunk.std(), rel=1e-5)
    assert record['output_std'] == pytest.approx(output.std(), rel=1e-5)
    assert 'lambda_mean' not in record


@pytest.mark.parametrize(
    ('gate', 'share'),
    # Of the logits -4, 0 and 4.
    [('sigmoid', 2 / 3), ('softmax', None), ('relu', None), ('none', None)],
)
def test_only_a_gate_with_two_ends_can_saturate(gate, share):
    module = with_logits(conv(3, 3, dict(SB, gate=gate)), [-4.0, 0.0, 4.0])
    record = only(measure_attention(Net(module), [images(2)]))
    assert record.get('saturated') == pytest.approx(share)
    assert 'lambda_mean' in record


def test_a_channel_is_inactivated_only_if_closed_on_average():
    """And the average is over images, not over batches."""
    module = conv(1, 4, SE)
    gate = module.attention.gate
    gate.fc1.weight.data.fill_(1)
    gate.fc2.weight.data.zero_()
    # Logits by channel, in an image of zeros and in an image of ones:
    # -4, -4 (always closed); -4, 4; 4, 4; -4, -1.4 (mostly closed).
    gate.fc2.weight.data[:, 0] = torch.tensor([0.0, 8.0, 0.0, 2.6])
    gate.bn2.bias.data = torch.tensor([-4.0, -4.0, 4.0, -4.0])
    zeros, one = torch.zeros(7, 1, 2, 2), torch.ones(1, 1, 2, 2)
    batches = [dict(inputs=zeros), dict(inputs=one)]
    record = only(measure_attention(Net(module), batches))
    # Of the fourth channel, (7 * 0.018 + 0.198) / 8 = 0.04, which the mean
    # of the two batches, 0.108, is not.
    assert record['inactivated'] == pytest.approx(2 / 4)
    # All 4 of the first image's 7 copies, 3 of the last image.
    assert record['saturated'] == pytest.approx((7 * 4 + 3) / 32)


@pytest.mark.parametrize('attention', [None, SE])
def test_batches_weigh_as_they_are_large(attention):
    module = conv(3, 4, attention)
    batches = [images(5), images(1, seed=1)]
    batches[1]['inputs'] = batches[1]['inputs'] * 3 + 5
    together = dict(inputs=torch.cat([b['inputs'] for b in batches]))
    net = Net(module)
    apart = only(measure_attention(net, batches))
    whole = only(measure_attention(net, [together]))
    assert apart.pop('kind') == whole.pop('kind')
    assert apart == pytest.approx(whole, rel=1e-5)


def test_a_layer_without_attention_has_the_output_of_its_norm():
    module = conv(3, 4)
    batch = images(3)
    record = only(measure_attention(Net(module), [batch]))
    expected = normed(module, batch).std()
    assert record == {
        'kind': 'NoAttention',
        'trunk_std': pytest.approx(expected, rel=1e-5),
        'output_std': pytest.approx(expected, rel=1e-5),
    }


def test_the_trunk_is_what_stands_before_the_attention():
    module = conv(3, 4, SE, attention_after='act')
    batch = images(3)
    record = only(measure_attention(Net(module), [batch]))
    expected = np.maximum(normed(module, batch), 0).std()
    assert record['trunk_std'] == pytest.approx(expected, rel=1e-5)


def test_layers_come_in_the_order_of_the_network():
    block = InvertedResidual(
        4, 4, 1, 8, attention=SE, attention_layers=('expand', 'block')
    )
    found = measure_attention(Net(conv(3, 4), block), [images(2)])
    assert [(name, r['kind']) for name, r in found.items()] == [
        ('layers.0', 'NoAttention'),
        ('layers.1.conv.0', 'SqueezeExcite'),
        ('layers.1.conv.1', 'NoAttention'),
        ('layers.1.conv.2', 'NoAttention'),
        ('layers.1', 'SqueezeExcite'),
    ]


@pytest.mark.parametrize('fails', [False, True])
def test_a_measurement_leaves_no_trace(fails):
    net = Net(conv(3, 4, dict(SB, dropout=0.5)), conv(4, 5, SE)).train()
    net.layers[1].bn.eval()  # as a frozen layer is
    modes = [m.training for m in net.modules()]
    assert {True, False} == set(modes)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    batch = images(4, channels=9 if fails else 3)
    draws = []
    for measured in (False, True):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        if measured and fails:
            with pytest.raises(RuntimeError):
                measure_attention(net, [batch])
        elif measured:
            measure_attention(net, [batch])
        draws.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert draws[0] == draws[1]
    assert [m.training for m in net.modules()] == modes
    for name, value in net.state_dict().items():
        assert value.equal(state[name]), name
    assert not any(m._forward_hooks for m in net.modules())
    assert torch.is_grad_enabled()


@pytest.fixture
def trained(tmp_path):
    """A tiny run of two epochs, and its folder."""

    def run(model, name='sb_mm.AttentionStatsHook', **kwargs):
        data = [{'inputs': x} for x in images(5)['inputs']]
        runner = Runner(
            model,
            str(tmp_path),
            # Batches of 2, 2 and 1.
            train_dataloader=DataLoader(data, batch_size=2),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            # Nothing but the running statistics changes.
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
            custom_hooks=[dict(type=name, **kwargs)],
            default_hooks=dict(checkpoint=None),
            visualizer=dict(
                type='Visualizer',
                name=tmp_path.name,
                vis_backends=[
                    dict(type='LocalVisBackend'),
                    dict(type='TensorboardVisBackend'),
                ],
            ),
            experiment_name=tmp_path.name,
            log_level='WARNING',
        )
        runner.train()
        return runner

    return run


def test_a_run_logs_a_line_an_epoch_and_the_curves(trained, tmp_path):
    events = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator'
    )
    net = Net(conv(3, 4), conv(4, 5, SE))
    trained(net)
    lines = read_lines(tmp_path)
    assert [line['epoch'] for line in lines] == [1, 2]
    assert list(lines[0]) == ['epoch', 'layers']
    # The last batch is the fifth image, as it came from the loader.
    last = dict(inputs=images(5)['inputs'][4:])
    assert lines[1]['layers'] == measure_attention(net, [last])
    std = lines[1]['layers']['layers.0']['output_std']
    assert std == pytest.approx(normed(net.layers[0], last).std(), rel=1e-5)
    assert lines[0]['layers']['layers.0']['output_std'] != std
    # TensorBoard's curves, and the file is beside scalars.json.
    (file,) = tmp_path.rglob('attention_stats.json')
    assert (file.parent / 'scalars.json').is_file()
    curves = events.EventAccumulator(str(file.parent))
    curves.Reload()
    points = curves.Scalars('attention/layers.1/inactivated')
    assert [p.step for p in points] == [1, 2]
    for point, line in zip(points, lines, strict=True):
        expected = line['layers']['layers.1']['inactivated']
        assert point.value == pytest.approx(expected)
    tags = [t for t in curves.Tags()['scalars'] if t.startswith('attention/')]
    assert len(tags) == 2 + 4


def test_only_the_last_batches_are_held_and_none_after_the_epoch(tmp_path):
    hook = AttentionStatsHook(num_batches=2)
    runner = fake_runner(Net(conv(3, 4)), tmp_path, batches=5)
    hook.before_train(runner)
    held = []
    for i in range(5):
        hook.before_train_iter(runner, i, images(1))
        held.append(len(hook.batches))
    assert held == [0, 0, 0, 1, 2]
    hook.after_train_epoch(runner)
    assert len(hook.batches) == 0


def test_a_diverged_network_is_logged_with_gaps(tmp_path):
    first, second = conv(3, 4, SB), conv(4, 4, SE)
    third = conv(4, 4, SB)
    second.conv.weight.data[0, 0] = float('nan')
    third.attention.lambda_.data[0] = float('inf')
    runner = fake_runner(Net(first, second, third), tmp_path)
    run_epoch(AttentionStatsHook(), runner, [images(2)])
    (file,) = tmp_path.rglob('attention_stats.json')
    assert 'NaN' not in file.read_text()
    assert 'Infinity' not in file.read_text()
    first, second, third = read_lines(tmp_path)[0]['layers'].values()
    assert None not in first.values()
    assert second['output_std'] is None
    assert second['saturated'] is not None  # its input is whole
    assert third['saturated'] is None
    assert third['lambda_mean'] is None
    (scalars,), options = runner.visualizer.add_scalars.call_args
    assert options == {'step': 1}
    assert all(np.isfinite(list(scalars.values())))
    assert 'attention/layers.0/lambda_mean' in scalars
    assert 'attention/layers.2/lambda_mean' not in scalars


def test_a_model_without_such_layers_gets_one_warning(tmp_path):
    hook = AttentionStatsHook()
    runner = fake_runner(Net(nn.Conv2d(3, 4, 1)), tmp_path)
    run_epoch(hook, runner, [images(2)])
    runner.logger.warning.assert_called_once()
    message = runner.logger.warning.call_args.args[0]
    assert 'no sb_mm.AttentionConvModule' in message
    assert not list(tmp_path.rglob('attention_stats.json'))
    assert len(hook.batches) == 0
    runner.visualizer.add_scalars.assert_not_called()


def test_other_processes_measure_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr('mmengine.dist.utils.is_main_process', lambda: False)
    hook = AttentionStatsHook()
    runner = fake_runner(Net(conv(3, 4)), tmp_path)
    run_epoch(hook, runner, [images(2)])
    assert len(hook.batches) == 0
    assert not list(tmp_path.rglob('attention_stats.json'))


def test_a_distributed_network_has_the_same_names(tmp_path):
    torch.distributed.init_process_group(
        'gloo', f'file://{tmp_path}/store', rank=0, world_size=1
    )
    try:
        net = Net(conv(3, 4, SB))
        wrapped = MMDistributedDataParallel(net)
        runner = fake_runner(wrapped, tmp_path)
        run_epoch(AttentionStatsHook(), runner, [images(2)])
    finally:
        torch.distributed.destroy_process_group()
    (line,) = read_lines(tmp_path)
    assert line['layers'] == measure_attention(net, [images(2)])


def test_a_detector_is_measured_on_a_training_batch(tmp_path):
    structures = pytest.importorskip('mmdet.structures')
    from mmengine.config import Config
    from mmengine.structures import InstanceData

    cfg = Config.fromfile(CUSTOM)
    cfg.model.backbone.widen_factor = 0.35
    cfg.model.neck.in_channels = (192, 1280)
    cfg.model.bbox_head.in_channels = (192, 1280, 512, 256, 256, 64)
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    sample = structures.DetDataSample(
        gt_instances=InstanceData(
            bboxes=torch.tensor([[10.0, 20.0, 90.0, 80.0]]),
            labels=torch.tensor([0]),
        ),
        metainfo=dict(img_shape=(300, 300)),
    )
    image = torch.randint(256, (3, 300, 300), dtype=torch.uint8)
    batch = dict(inputs=[image], data_samples=[sample])
    run_epoch(AttentionStatsHook(), fake_runner(model, tmp_path), [batch])
    layers = read_lines(tmp_path)[0]['layers']
    kinds = [record['kind'] for record in layers.values()]
    # 17 bottlenecks, the first without expansion; 4 extra levels.
    assert kinds.count('ShiftBalance') == 17 * 3 - 1
    assert kinds.count('NoAttention') == 4 * 3
    assert next(iter(layers)) == 'backbone.layer1.0.conv.0'
