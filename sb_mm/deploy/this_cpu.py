"""The fastest form of a file for one image at a time on this CPU.

ONNX Runtime computes convolutions in a blocked layout of its own, which a
shift that is broadcast over the pixels breaks: around every layer, the
features are copied into the plain layout and back. A bias breaks nothing, but
ONNX Runtime chooses the blocked layout for constant biases only. So each bias
that depends on the input is held constant while ONNX Runtime lays the network
out, and then let go: the blocked convolution itself takes any bias.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx import numpy_helper as numbers

from sb_mm.errors import UserInputError

# No network has such a bias: it tells the held ones from the others.
_MARK = 1 << 20


class _Held(NamedTuple):
    name: str
    channels: int


def for_this_cpu(model: ModelProto) -> ModelProto:
    """Lay a file out for ONNX Runtime on this kind of CPU.

    Args:
        model: A file for batches of one; changed.

    Returns:
        A file of the same inputs and outputs. It has operations of ONNX
        Runtime's own and suits this kind of CPU only.

    Raises:
        UserInputError: If this version of ONNX Runtime does something else
            with the biases.
    """
    outputs = list(model.graph.output)
    _pool_globally(model.graph)
    held = _hold_biases(model.graph)
    model = _optimised(model)
    _let_go(model.graph, held)
    _sort(model.graph)
    _drop_unused(model.graph)
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return model


def _constants(graph: GraphProto) -> dict[str, np.ndarray]:
    return {t.name: numbers.to_array(t) for t in graph.initializer}


def _pool_globally(graph: GraphProto) -> None:
    """Write means over the pixels as pooling, which has a blocked form."""
    constants = _constants(graph)
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        axes = constants.get(node.input[1]) if len(node.input) > 1 else None
        pools = node.op_type == 'ReduceMean' and axes is not None
        if pools and sorted(axes.tolist()) == [2, 3]:
            graph.node.extend(_pooling(node))
        else:
            graph.node.append(node)


def _pooling(mean: NodeProto) -> list[NodeProto]:
    source, out = mean.input[0], mean.output[0]
    keeps = all(a.i for a in mean.attribute if a.name == 'keepdims')
    if keeps:
        return [helper.make_node('GlobalAveragePool', [source], [out])]
    pooled = f'{out}.pooled'
    return [
        helper.make_node('GlobalAveragePool', [source], [pooled]),
        helper.make_node('Flatten', [pooled], [out]),
    ]


def _hold_biases(graph: GraphProto) -> list[_Held]:
    """Replace computed biases by marks, and keep what computes them."""
    constants = _constants(graph)
    held = []
    for node in graph.node:
        if node.op_type != 'Conv' or len(node.input) < 3:
            continue
        bias, weight = node.input[2], constants.get(node.input[1])
        if bias in constants or weight is None:
            continue
        mark = np.full(len(weight), _MARK + len(held), np.float32)
        node.input[2] = f'held.{len(held)}'
        graph.initializer.append(numbers.from_array(mark, node.input[2]))
        kept = helper.make_tensor_value_info(bias, TensorProto.FLOAT, None)
        graph.output.append(kept)
        held.append(_Held(bias, len(weight)))
    return held


def _optimised(model: ModelProto) -> ModelProto:
    """Return the file as ONNX Runtime would run it."""
    with TemporaryDirectory() as folder:
        path = str(Path(folder, 'laid_out.onnx'))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = path
        options.log_severity_level = 3  # not that the file is for this CPU
        onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=['CPUExecutionProvider'],
        )
        return onnx.load(path)


def _let_go(graph: GraphProto, held: list[_Held]) -> None:
    """Put the computed biases where the marks are."""
    constants = _constants(graph)
    found = 0
    for node in list(graph.node):
        bias = constants.get(node.input[2]) if len(node.input) > 2 else None
        marked = bias is not None and bias.ndim == 1 and bias[0] >= _MARK
        if not marked or node.op_type not in ('Conv', 'FusedConv'):
            continue
        name, channels = held[int(bias[0]) - _MARK]
        node.input[2] = _padded(graph, name, len(bias) - channels)
        found += 1
    if found != len(held):
        raise UserInputError(
            f'ONNX Runtime {onnxruntime.__version__} keeps {found} of '
            f'{len(held)} biases: leave --this-cpu out, or install the '
            'version of requirements/export.txt.'
        )


def _padded(graph: GraphProto, name: str, channels: int) -> str:
    """Return the name of a bias with as many zeros behind it."""
    if not channels:
        return name
    zeros, padded = f'{name}.zeros', f'{name}.padded'
    graph.initializer.append(
        numbers.from_array(np.zeros(channels, np.float32), zeros)
    )
    graph.node.append(
        helper.make_node('Concat', [name, zeros], [padded], axis=0)
    )
    return padded


def _drop_unused(graph: GraphProto) -> None:
    """Remove the marks, of which ONNX Runtime would warn."""
    used = {name for node in graph.node for name in node.input}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _sort(graph: GraphProto) -> None:
    """Put every node behind those whose outputs it takes."""
    ready = {'', *(t.name for t in (*graph.initializer, *graph.input))}
    waiting = list(graph.node)
    del graph.node[:]
    while waiting:
        behind = []
        for node in waiting:
            if ready.issuperset(node.input):
                graph.node.append(node)
                ready.update(node.output)
            else:
                behind.append(node)
        assert len(behind) < len(waiting), 'the graph has a circle'
        waiting = behind
