"""What holds for every network, whatever its attention."""

from itertools import combinations

import pytest
import torch
from torch import nn

from sb_mm.models import (
    AttentionMnasNet,
    AttentionMobileNetV2,
    AttentionMobileNetV2CIFAR,
    AttentionShuffleNetV2,
    DynamicConv2d,
    ShiftBalance,
    SqueezeExcite,
)

LAYERS = ('expand', 'depthwise', 'project')
NETWORKS = {
    'mobilenet': (AttentionMobileNetV2, 0.1),
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
    'mobilenet': (1, 2, 3, 4, 3, 3, 1),
    'cifar': (1, 2, 3, 4, 3, 3, 1),
    'mnasnet': (0, 3, 3, 3, 2, 4, 1),
    'shufflenet': (4, 8, 4),
}
# Every kind of block: without expand, of stride 2, with a plain addition,
# with a convolution as its shortcut.
SHORT_BLOCKS = {
    'mobilenet': (1, 2),
    'cifar': (1, 2),
    'mnasnet': (0, 2),
    'shufflenet': (2, 1, 1),
}
SHORT = {
    AttentionMobileNetV2: ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3)),
    AttentionMobileNetV2CIFAR: ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3)),
    AttentionMnasNet: ((1, 16, 1, 1, 3), (3, 24, 2, 2, 5)),
}
TAPS = {
    'mobilenet': dict(out_indices=(1, 2), expand_indices=(1,)),
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
    return backbone(**{'widen_factor': width, **KINDS[kind], **kwargs})


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
        # MobileNetV2's first block has no expand convolution.
        names = LAYERS[1:] if (network, stage) == ('mobilenet', 0) else LAYERS
        for i in range(number):
            for j, layer in enumerate(names):
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


@pytest.mark.parametrize('network', ['mobilenet', 'cifar', 'mnasnet'])
def test_hidden_units_of_a_depthwise_layer_are_a_sixth(network):
    model = build(network, 'sb', widen_factor=1.0)
    for name in owners(model, ShiftBalance):
        layer = model.get_submodule(name)
        hidden = layer.attention.gate.fc1.out_features
        depthwise = layer.groups > 1
        assert hidden == layer.out_channels // (6 if depthwise else 1)


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
@pytest.mark.parametrize('batch', [1, 2, 8])
def test_every_parameter_gets_a_gradient(
    network, kind, batch, images, short, all_gradients
):
    last = 3 if network == 'shufflenet' else 2
    model = build(network, kind, out_indices=(last,)).train()
    out = model(images(batch, 64))[0]
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())
    # The norm behind a Linear of DyConv's gate takes its bias away, and few
    # images may leave a unit behind a ReLU still.
    without = [n for n in all_gradients(model) if '.fc' not in n]
    assert batch < 8 or without == []


# ---- small batches -----------------------------------------------------


def gradient_norm(model, n, images):
    out = model(images(n))[0].mean((2, 3))
    torch.manual_seed(2)
    logits = out @ torch.randn(out.size(1), 10) * 0.03
    loss = nn.functional.cross_entropy(logits, torch.arange(n) % 10)
    model.zero_grad()
    loss.backward()
    squares = (p.grad.double().square().sum() for p in model.parameters())
    return sum(squares).sqrt().item()


@pytest.mark.parametrize('network', ['mobilenet', 'cifar', 'mnasnet'])
@pytest.mark.parametrize(('kind', 'most'), [('sb', 30), ('se', 100)])
def test_gradients_of_small_batches_are_those_of_larger_ones(
    network, kind, most, images
):
    """They were up to 1e19 times as large: see sb_mm.models.layers.norm.

    Of 32 pixels, all but the network for CIFAR-10 leave one.
    """

    def start(n):
        model = build(network, kind, widen_factor=0.35)
        model.init_weights()
        return gradient_norm(model.train(), n, images)

    reference = start(16)
    for n in (1, 2, 3, 4, 7, 8):
        assert start(n) < most * reference, n


# ---- start values ------------------------------------------------------


@networks
@pytest.mark.parametrize('kind', ['sb', 'dyconv'])
def test_every_layer_starts_as_its_network_says(network, kind):
    """Uniform in +-1 / sqrt(fan-in), as PyTorch draws, or He's, fan-out."""
    model = build(network, kind, widen_factor=0.5)
    model.init_weights()
    uniform = network in ('cifar', 'shufflenet')
    convs = [
        m for m in model.modules() if type(m) in (nn.Conv2d, DynamicConv2d)
    ]
    assert len(convs) == len(owners(model, nn.BatchNorm2d))
    for conv in convs:
        for kernel in conv.weight.chunk(getattr(conv, 'num_kernels', 1)):
            bound = kernel[0].numel() ** -0.5
            fan_out = kernel.size(0) * kernel[0, 0].numel()
            std = bound / 3**0.5 if uniform else (2 / fan_out) ** 0.5
            # Five standard deviations of the estimate.
            error = 5 / (2 * kernel.numel()) ** 0.5
            assert kernel.std().item() == pytest.approx(std, rel=error)
            if uniform:
                assert 0.9 * bound < kernel.abs().max() <= bound
            elif kernel.numel() > 2000:
                assert kernel.abs().max() > 2.9 * std
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.weight.unique().tolist() == [1]
        assert norm.bias.unique().tolist() == [0]
    lambdas = [p for n, p in model.named_parameters() if 'lambda_' in n]
    assert all(p.unique().tolist() == pytest.approx([0.1]) for p in lambdas)


# ---- what the hosts ask of a backbone ----------------------------------


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


@pytest.mark.parametrize('network', ['mobilenet', 'cifar', 'mnasnet'])
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
@pytest.mark.parametrize('batch', [2, 8])
def test_checkpointing_changes_neither_output_nor_gradient(
    network, kind, batch, images, short
):
    plain = build(network, kind, **TAPS[network]).train()
    saving = build(network, kind, with_cp=True, **TAPS[network]).train()
    saving.load_state_dict(plain.state_dict())
    calls = []
    block = saving.stages[1][-1]
    block.register_forward_hook(lambda *_: calls.append('block'))
    inner = block.branch2 if network == 'shufflenet' else block.conv
    inner[1].register_forward_hook(lambda *_: calls.append('layer'))
    outs, saved = plain(images(batch)), saving(images(batch))
    for a, b in zip(outs, saved, strict=True):
        torch.testing.assert_close(a, b)
    for outputs in (outs, saved):
        sum(o.square().mean() for o in outputs).backward()
    grads = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name].grad)
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


@pytest.mark.parametrize(
    ('network', 'kind'), [*((n, 'sb') for n in NETWORKS), ('cifar', 'dyconv')]
)
def test_the_network_compiles_without_a_graph_break(
    network, kind, images, short
):
    torch._dynamo.reset()
    model = build(network, kind, **TAPS[network]).train()
    reference = build(network, kind, **TAPS[network]).train()
    reference.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    x = images()
    for out, expected in zip(compiled(x), reference(x), strict=True):
        torch.testing.assert_close(out, expected)


@networks
@kinds
def test_half_precision_is_the_trunk_s_and_float32_the_gates(
    network, kind, images, short, gate_dtypes
):
    model = build(network, kind, **TAPS[network]).train()
    seen = gate_dtypes(model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = model(images())[-1]
    assert out.dtype == torch.bfloat16
    assert seen == (set() if kind == 'static' else {torch.float32})
    x = images()
    expected = model.eval()(x)[-1]
    out = model.half()(x.half())[-1]
    assert out.dtype == torch.half
    assert (out.float() - expected).abs().mean() < 0.1


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
    bare = build(network, norm_cfg=None, act_cfg=None)
    kinds = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6)
    assert [m for m in bare.modules() if isinstance(m, kinds)] == []


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
        (dict(widen_factor=0), 'widen_factor must be'),
        (dict(out_indices=(-1,)), 'out_indices must be a non-empty'),
        (dict(out_indices=(8,)), 'out_indices must be a non-empty'),
        (dict(out_indices=()), 'out_indices must be a non-empty'),
        (dict(frozen_stages=8), r'frozen_stages must be .* \[-1, [37]\]'),
        (dict(frozen_stages=-2), r'frozen_stages must be .* \[-1, '),
        (dict(attention_layers=('dw',)), "'expand', 'depthwise', 'project'"),
        (dict(attention_after='bn'), "'conv', 'norm', 'act'"),
        (dict(init_cfg=dict(type='Pretrained')), 'needs checkpoint='),
        (dict(attention_layers=('expand',)), 'no effect without attention'),
        (
            dict(KINDS['dyconv'], attention_layers=('block',)),
            "'expand', 'depthwise', 'project', but got",
        ),
    ],
    ids=repr,
)
def test_arguments_out_of_range_name_what_is_allowed(network, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(network, **kwargs)


@pytest.mark.parametrize(
    ('network', 'allowed'),
    [('mobilenet', '1, 2, 3'), ('mnasnet', '1, 2, 3'), ('cifar', '0, 1, 2')],
)
def test_stages_without_an_expansion_cannot_be_tapped(network, allowed):
    with pytest.raises(ValueError, match=f'items from {allowed}.* but got'):
        build(network, expand_indices=(7,))
