"""What every network computes and learns, whatever its attention."""

import pytest
import torch
from torch import nn

INVERTED = pytest.mark.parametrize(
    'network', ['mobilenet', 'cifar', 'mnasnet']
)


@INVERTED
@pytest.mark.parametrize(('kind', 'most'), [('sb', 30), ('se', 100)])
def test_gradients_of_small_batches_are_those_of_larger_ones(
    network, kind, most, build, images
):
    """They were up to 1e19 times as large: see sb_mm.models.layers.norm.

    Of 32 pixels, all but the network for CIFAR-10 leave one.
    """

    def norm_at_the_start(n):
        model = build(network, kind, widen_factor=0.35).train()
        model.init_weights()
        out = model(images(n))[0].mean((2, 3))
        torch.manual_seed(2)
        logits = out @ torch.randn(out.size(1), 10) * 0.03
        nn.functional.cross_entropy(logits, torch.arange(n) % 10).backward()
        squares = (p.grad.double().square().sum() for p in model.parameters())
        return sum(squares).sqrt().item()

    reference = norm_at_the_start(16)
    for n in (1, 2, 3, 4, 7, 8):
        assert norm_at_the_start(n) < most * reference, n


# ---- what the hosts ask of a backbone ----------------------------------


@INVERTED
def test_the_tap_is_the_first_block_s_activated_expansion(
    network, build, images, settle
):
    model = settle(build(network, 'sb', out_indices=(6,)))
    seen = []
    for index in (1, 5):
        first = model.get_submodule(f'layer{index + 1}.0.conv.0')
        first.register_forward_hook(lambda *args: seen.append(args[2].clone()))
    seen += model(images())
    assert min(tap.min() for tap in seen[:2]) == 0
    for outs, taps in (((6,), (1, 5)), ((), (1, 5))):
        other = build(network, 'sb', out_indices=outs, expand_indices=taps)
        other.load_state_dict(model.state_dict())
        found = other.eval()(images())
        assert len(found) == len(outs) + len(taps)
        for tap, expected in zip(found, seen, strict=False):
            torch.testing.assert_close(tap, expected)


@pytest.mark.parametrize('frozen', [-1, 0, 2])
def test_frozen_stages_neither_learn_nor_move_their_statistics(
    network, frozen, build, images
):
    model = build(network, frozen_stages=frozen)
    # At once: a distributed wrapper looks before the first train().
    assert model.conv1.conv.weight.requires_grad == (frozen < 0)
    model.train()
    sum(o.square().mean() for o in model(images(4))).backward()
    for index, stage in enumerate([model.conv1, *model.stages]):
        still = index <= frozen
        for parameter in stage.parameters():
            assert parameter.requires_grad != still
            assert (parameter.grad is None) == still
        for name, value in stage.named_buffers():
            if name.endswith('running_mean'):  # 0 at the start
                assert bool(value.any()) != still


def test_norm_eval_keeps_every_norm_on_its_running_statistics(
    network, kind, build, images, short, taps
):
    model = build(network, kind, norm_eval=True, **taps).train()
    before = {k: v.clone() for k, v in model.named_buffers()}
    model(images())
    for name, value in model.named_buffers():
        assert value.equal(before[name]), name
    assert model.stages[1].training
    assert not model.eval().stages[1].training


@pytest.mark.parametrize('batch', [1, 2, 8])
def test_every_parameter_gets_a_gradient_and_with_checkpointing_the_same(
    network, kind, batch, build, images, short, taps
):
    plain = build(network, kind, **taps).train()
    saving = build(network, kind, with_cp=True, **taps).train()
    saving.load_state_dict(plain.state_dict())
    calls = {plain: [], saving: []}
    for model, seen in calls.items():
        block = model.stages[1][-1]
        inner = block.branch2 if network == 'shufflenet' else block.conv
        for name, part in (('block', block), ('layer', inner[1])):
            part.register_forward_hook(
                lambda *_, name=name, seen=seen: seen.append(name)
            )
    x = images(batch, 64)
    outs, saved = plain(x), saving(x)
    for a, b in zip(outs, saved, strict=True):
        torch.testing.assert_close(a, b)
    for outputs in (outs, saved):
        sum(o.square().mean() for o in outputs).backward()
    grads = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name].grad)
        # The norm behind a Linear of DyConv's gate takes its bias away, and
        # few images may leave a unit behind a ReLU still.
        assert parameter.grad.any() or '.fc' in name or batch < 8
    assert calls[plain] == ['layer', 'block']
    # Recomputed in the backward pass.
    assert calls[saving] == ['layer', 'block', 'layer']


@pytest.mark.parametrize(
    ('network', 'kind'),
    [('cifar', 'sb'), ('shufflenet', 'dyconv')],
)
def test_the_network_compiles_without_a_graph_break(
    network, kind, build, images, short, taps
):
    torch._dynamo.reset()
    model = build(network, kind, **taps).train()
    reference = build(network, kind, **taps).train()
    reference.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    x = images()
    for out, expected in zip(compiled(x), reference(x), strict=True):
        torch.testing.assert_close(out, expected)
