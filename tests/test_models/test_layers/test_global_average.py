import pytest
import torch
import torch.nn.functional as F

from sb_mm.models.layers.global_average import global_average


def test_it_is_the_mean_over_the_pixels():
    x = torch.randn(2, 3, 4, 5)
    expected = x.sum(3).sum(2) / 20

    torch.testing.assert_close(global_average(x, torch.float32), expected)


def test_the_gradient_is_right_to_the_second_order():
    x = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True)

    def squared(x):
        return global_average(x, torch.double).square()

    assert torch.autograd.gradcheck(squared, x)
    assert torch.autograd.gradgradcheck(squared, x)


def test_half_precision_is_averaged_in_float32_and_gets_its_own_gradient():
    # The sum of 4,096 ones is beyond bfloat16's whole numbers.
    x = torch.ones(1, 1, 64, 64, dtype=torch.bfloat16, requires_grad=True)
    y = global_average(x, torch.float32)
    y.sum().backward()

    assert y.dtype == torch.float32
    assert y.item() == 1
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    'layout', [torch.contiguous_format, torch.channels_last]
)
def test_a_convolutions_gradient_keeps_its_memory_format(layout):
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=layout)
    x.requires_grad_()
    weight = torch.randn(4, 8, 1, 1).contiguous(memory_format=layout)
    trunk = x * 1
    seen = []
    trunk.register_hook(lambda grad: seen.append(grad))

    values = global_average(trunk, torch.float32)
    (F.conv2d(trunk, weight).sum() + values.sum()).backward()

    assert seen[0].is_contiguous(memory_format=layout)


def test_a_compiler_gets_no_function_of_our_own():
    """It would trace the network again in every process, and cache nothing."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(global_average, backend=backend, fullgraph=True)
    x = torch.randn(2, 3, 4, 5, dtype=torch.half, requires_grad=True)
    y = compiled(x, torch.float32)
    torch.testing.assert_close(y, global_average(x, torch.float32))
    y.square().sum().backward()
    found = x.grad.clone()
    x.grad = None
    global_average(x, torch.float32).square().sum().backward()
    torch.testing.assert_close(found, x.grad)
    called = {node.target for node in graphs[0].graph.nodes}
    assert not [target for target in called if 'autograd' in str(target)]
