"""What holds for each of the other networks, whatever its attention."""

from itertools import combinations

import pytest
import torch
from torch import nn

from sb_mm.models import (
    AttentionMnasNet,
    AttentionMobileNetV2CIFAR,
    AttentionShuffleNetV2,
    DynamicConv2d,
    ShiftBalance,
    SqueezeExcite,
)

LAYERS = ('expand', 'depthwise', 'project')
NETWORKS = {
    'cifar': (AttentionMobileNetV2CIFAR, 0.1),
    'mnasnet': (AttentionMnasNet, 0.1),
    'shufflenet': (AttentionShuffleNetV2, 0.5),
}
KINDS = {
    'static': {},
    'sb': dict(attention=dict(type='sb_mm.ShiftBalance')),
    'se': dict(attention=dict(type='sb_mm.SqueezeExcite')),
    'dyconv': dict(attention_conv_cfg=dict(type='sb_mm.DynamicConv2d')),
}
networks = pytest.mark.parametrize('network', list(NETWORKS))
kinds = pytest.mark.parametrize('kind', list(KINDS))

# Blocks of each stage; MnasNet's first is a separable convolution.
BLOCKS = {
    'cifar': (1, 2, 3, 4, 3, 3, 1),
    'mnasnet': (0, 3, 3, 3, 2, 4, 1),
    'shufflenet': (4, 8, 4),
}
# Every kind of block: without stride, of stride 2, with a plain addition,
# with a convolution as its shortcut.
SHORT_BLOCKS = {'cifar': (1, 2), 'mnasnet': (0, 2), 'shufflenet': (2, 1, 1)}
SHORT = {
    AttentionMobileNetV2CIFAR: ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3)),
    AttentionMnasNet: ((1, 16, 1, 1, 3), (3, 24, 2, 2, 5)),
}
TAPS = {
    'cifar': dict(out_indices=(1, 2), expand_indices=(0, 1)),
    'mnasnet': dict(out_indices=(1, 2), expand_indices=(1,)),
    'shufflenet': dict(out_indices=(0, 2, 3)),
}


@pytest.fixture
def short(monkeypatch):
    """Leave a few blocks of every network."""
    for network, settings in SHORT.items():
        monkeypatch.setattr(network, 'arch_settings', settings)
    blocks = SHORT_BLOCKS['shufflenet']
    monkeypatch.setattr(AttentionShuffleNetV2, 'stage_blocks', blocks)


def build(network, kind='static', **kwargs):
    torch.manual_seed(0)
    backbone, width = NETWORKS[network]
    return backbone(width, **KINDS[kind], **kwargs)


def stage_names(network):
    """Stem, stages, last convolution."""
    if network == 'shufflenet':
        return ['conv1', *(f'layers.{i}' for i in range(4))]
    return ['conv1', *(f'layer{i}' for i in range(1, 8)), 'conv2']


def convolutions(network, blocks):
    """The names of the paper's attended convolutions, by kind of layer."""
    found = {layer: set() for layer in LAYERS}
    shuffle = network == 'shufflenet'
    for stage, number in enumerate(blocks[network]):
        name = f'layers.{stage}' if shuffle else f'layer{stage + 1}'
        for i in range(number):
            for j, layer in enumerate(LAYERS):
                part = 'branch2' if shuffle else 'conv'
                found[layer].add(f'{name}.{i}.{part}.{j}')
        if shuffle:
            found['depthwise'].add(f'{name}.0.branch1.0')
            found['project'].add(f'{name}.0.branch1.1')
    return found


def owners(model, kind):
    """The names of the modules that have a submodule of this kind."""
    return {
        name.rpartition('.')[0]
        for name, part in model.named_modules()
        if isinstance(part, kind)
    }


def is_channels_first(x):
    """With one pixel or one channel it is both."""
    return not x.is_contiguous(memory_format=torch.channels_last)


SUBSETS = [c for n in (1, 2, 3) for c in combinations(LAYERS, n)]


@networks
@pytest.mark.parametrize('layers', SUBSETS, ids='+'.join)
def test_attention_sits_in_exactly_the_convolutions_asked_for(
    network, layers, short
):
    names = convolutions(network, SHORT_BLOCKS)
    expected = set().union(*(names[layer] for layer in layers))
    model = build(network, 'sb', attention_layers=layers)
    assert owners(model, ShiftBalance) == expected
    model = build(network, 'dyconv', attention_layers=layers)
    assert owners(model, DynamicConv2d) == expected


@networks
def test_attention_sits_in_all_three_layers_by_default(network):
    every = set().union(*convolutions(network, BLOCKS).values())
    assert owners(build(network, 'se'), SqueezeExcite) == every
    assert owners(build(network, 'dyconv'), DynamicConv2d) == every


@networks
def test_the_convolutions_are_what_their_names_say(network):
    modules = dict(build(network).named_modules())
    for layer, names in convolutions(network, BLOCKS).items():
        for name in names:
            conv = modules[f'{name}.conv']
            depthwise = layer == 'depthwise'
            assert conv.groups == (conv.in_channels if depthwise else 1)
            # Behind the projection of an inverted bottleneck, and behind a
            # depthwise convolution of ShuffleNetV2, there is no activation.
            linear = 'depthwise' if network == 'shufflenet' else 'project'
            assert modules[name].with_activation == (layer != linear)


@networks
@pytest.mark.parametrize('kind', ['sb', 'dyconv'])
def test_attention_that_changes_nothing_leaves_the_static_network(
    network, kind, images, settle
):
    static = settle(build(network)).double()
    model = build(network, kind).double().eval()
    missing, extra = model.load_state_dict(static.state_dict(), strict=False)
    assert extra == []
    marks = ('attention', 'gate', 'temperature')
    assert all(any(m in k.split('.') for m in marks) for k in missing)
    lambdas = [p for n, p in model.named_parameters() if 'lambda_' in n]
    kernels = [m.weight for m in model.modules() if type(m) is DynamicConv2d]
    x = images().double()
    with torch.no_grad():
        expected = static(x)[0]
        for lambda_ in lambdas:
            lambda_.zero_()
        torch.testing.assert_close(model(x)[0], expected)
        # Of other values, the layers do take notice.
        for lambda_ in lambdas:
            lambda_.fill_(0.5)
        for kernel in kernels:
            kernel[: len(kernel) // 4] *= 2
        assert (model(x)[0] - expected).abs().mean() > 0.01


@networks
@kinds
def test_every_parameter_gets_a_gradient(
    network, kind, images, short, all_gradients
):
    last = 3 if network == 'shufflenet' else 2
    model = build(network, kind, out_indices=(last,)).train()
    out = model(images(8))[0]
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    # The norm behind a Linear of DyConv's gate takes its bias away.
    without = [n for n in all_gradients(model) if '.fc' not in n]
    assert without == []


@networks
def test_out_indices_choose_among_the_stages(network, images, settle):
    numbers = range(4 if network == 'shufflenet' else 8)
    everything = settle(build(network, out_indices=numbers))
    seen = []
    for name in stage_names(network)[1:]:
        everything.get_submodule(name).register_forward_hook(
            lambda module, args, out: seen.append(out)
        )
    stages = everything(images())
    assert len(stages) == len(seen) == len(numbers)
    assert all(a.equal(b) for a, b in zip(stages, seen, strict=True))
    for indices in ((0, 2), [1, 3]):
        chosen = build(network, out_indices=indices).eval()
        chosen.load_state_dict(everything.state_dict())
        outs = chosen(images())
        assert len(outs) == len(indices)
        for out, index in zip(outs, indices, strict=True):
            assert out.equal(stages[index])


@pytest.mark.parametrize('network', ['cifar', 'mnasnet'])
@pytest.mark.parametrize('index', [1, 5])
def test_the_tap_is_the_first_block_s_activated_expansion(
    network, index, images, settle
):
    taps = dict(out_indices=(6,), expand_indices=(index,))
    model = settle(build(network, 'sb', **taps))
    seen = []
    first = model.get_submodule(f'layer{index + 1}.0.conv.0')
    first.register_forward_hook(lambda *args: seen.append(args[2].clone()))
    tap, out = model(images())
    assert len(seen) == 1
    assert tap.equal(seen[0])
    assert tap.min() == 0
    plain = build(network, 'sb', out_indices=(6,)).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(out, plain(images())[0])


@networks
@pytest.mark.parametrize('frozen', [-1, 0, 2])
def test_frozen_stages_neither_learn_nor_move_their_statistics(
    network, frozen, images
):
    model = build(network, frozen_stages=frozen)
    # At once: a distributed wrapper looks before the first train().
    assert model.conv1.conv.weight.requires_grad == (frozen < 0)
    model.train()
    before = {k: v.clone() for k, v in model.named_buffers()}
    sum(o.square().mean() for o in model(images(4))).backward()
    for index, name in enumerate(stage_names(network)):
        still = index <= frozen
        stage = model.get_submodule(name)
        for parameter in stage.parameters():
            assert parameter.requires_grad != still
            assert (parameter.grad is None) == still
        for key, value in stage.named_buffers():
            if key.endswith('num_batches_tracked'):
                assert value.equal(before[f'{name}.{key}']) == still


@networks
@kinds
def test_norm_eval_keeps_every_norm_on_its_running_statistics(
    network, kind, images, short
):
    model = build(network, kind, norm_eval=True, **TAPS[network]).train()
    before = {k: v.clone() for k, v in model.named_buffers()}
    model(images())
    for name, value in model.named_buffers():
        assert value.equal(before[name]), name
    assert model.stages[1].training
    assert not model.eval().stages[1].training


@networks
@kinds
def test_checkpointing_changes_neither_output_nor_gradient(
    network, kind, images, short
):
    plain = build(network, kind, **TAPS[network]).train()
    saving = build(network, kind, with_cp=True, **TAPS[network]).train()
    saving.load_state_dict(plain.state_dict())
    outs, saved = plain(images(4)), saving(images(4))
    for a, b in zip(outs, saved, strict=True):
        torch.testing.assert_close(a, b)
    for outputs in (outs, saved):
        sum(o.square().mean() for o in outputs).backward()
    grads = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name].grad)


@networks
def test_checkpointing_does_recompute_the_blocks(network, images, short):
    calls = []
    model = build(network, with_cp=True).train()
    layers = 'branch2' if network == 'shufflenet' else 'conv'
    block = model.stages[0][1] if network == 'shufflenet' else None
    block = block or model.stages[1][1]
    block.register_forward_hook(lambda *_: calls.append('block'))
    block.get_submodule(f'{layers}.1').register_forward_hook(
        lambda *_: calls.append('layer')
    )
    model.stages[-1].register_forward_hook(
        lambda module, args, out: out.sum().backward()
    )
    model(images())
    assert calls == ['layer', 'block', 'layer']


@networks
@kinds
def test_channels_last_stays_channels_last_in_every_layer(
    network, kind, images, settle
):
    indices = range(4 if network == 'shufflenet' else 8)
    model = settle(build(network, kind, out_indices=indices)).double()
    expected = model(images().double())
    model = model.to(memory_format=torch.channels_last)
    strays = []
    for name, part in model.named_modules():
        if name.endswith(('.conv', '.bn', '.attention', '.activate')):
            part.register_forward_hook(
                lambda _, args, out, name=name: (
                    strays.append(name) if is_channels_first(out) else None
                )
            )
    outs = model(images().double().to(memory_format=torch.channels_last))
    assert strays == []
    for out, reference in zip(outs, expected, strict=True):
        assert not is_channels_first(out)
        # Fifty gates in a row make much of the last digits.
        torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-4)


@networks
def test_the_network_compiles_without_a_graph_break(network, images, short):
    torch._dynamo.reset()
    kwargs = dict(attention_layers=('depthwise',), **TAPS[network])
    model = build(network, 'sb', **kwargs).train()
    reference = build(network, 'sb', **kwargs).train()
    reference.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    x = images()
    for out, expected in zip(compiled(x), reference(x), strict=True):
        torch.testing.assert_close(out, expected)


@networks
def test_host_settings_reach_every_layer(network, short):
    model = build(
        network,
        'sb',
        norm_cfg=dict(type='BN', eps=0.5),
        act_cfg=dict(type='LeakyReLU', negative_slope=0.3),
        conv_cfg=dict(type='sb_mm.DynamicConv2d', num_kernels=2),
    )
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {0.5}
    convs = owners(model, DynamicConv2d)
    assert len(convs) == len(norms)
    assert owners(model, nn.Conv2d) == set()
    assert owners(model, nn.LeakyReLU) >= {'conv1', stage_names(network)[-1]}
    # Those of the gates are not the host's.
    assert all('gate' in name for name in owners(model, nn.ReLU))
    assert owners(model, nn.ReLU6) == set()


@networks
def test_attention_after_changes_the_place_in_every_layer(network, short):
    for place in ('conv', 'norm', 'act'):
        model = build(network, 'sb', attention_after=place)
        for name in owners(model, ShiftBalance):
            steps = model.get_submodule(name).steps
            before = {'conv': 0, 'norm': 1, 'act': len(steps) - 1}[place]
            assert steps.index('attention') == before


@networks
@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(out_indices=(-1,)), 'out_indices must be a non-empty'),
        (dict(out_indices=(8,)), 'out_indices must be a non-empty'),
        (dict(out_indices=()), 'out_indices must be a non-empty'),
        (dict(frozen_stages=8), r'frozen_stages must be .* \[-1, '),
        (dict(frozen_stages=-2), r'frozen_stages must be .* \[-1, '),
        (dict(attention_layers=('dw',)), "'expand', 'depthwise', 'project'"),
        (dict(attention_layers=()), 'attention_layers must be a non-empty'),
        (dict(attention_after='bn'), "'conv', 'norm', 'act'"),
        (dict(init_cfg=dict(type='Pretrained')), 'needs checkpoint='),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(network, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(network, **kwargs)


@networks
def test_layers_of_no_attention_are_refused(network):
    with pytest.raises(ValueError, match='no effect without attention'):
        build(network, 'static', attention_layers=('expand',))
    build(network, 'dyconv', attention_layers=('expand',))
