"""The fastest form of a file for one image at a time on this CPU.

ONNX Runtime computes convolutions in a blocked layout of its own, but copies
features to the plain one and back around a shift of all pixels or a bias that
depends on the input. So such biases are held constant while it lays the
network out, and then let go: the blocked convolution itself takes any bias.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
from onnx import ModelProto
from onnxscript import ir
from onnxscript.ir.passes.common import RemoveUnusedNodesPass

from sb_mm.errors import UserInputError

# No network has such a bias: it tells the held ones from the others.
_MARK = 1 << 20


def for_this_cpu(model: ModelProto) -> ModelProto:
    """Lay a file for batches of one out for this kind of CPU.

    Inputs and outputs stay; some operations are ONNX Runtime's own.

    Raises:
        UserInputError: If this version of ONNX Runtime does something else
            with the biases.
    """
    plain = ir.from_proto(model)
    outputs = len(plain.graph.outputs)
    _pool_globally(plain.graph)
    _hold_biases(plain.graph)
    blocked = _laid_out(plain)
    _let_go(blocked.graph, len(blocked.graph.outputs) - outputs)
    del blocked.graph.outputs[outputs:]
    blocked.graph.sort()
    RemoveUnusedNodesPass()(blocked)  # the marks, of which it would warn
    return ir.to_proto(blocked)


def _pool_globally(graph: ir.Graph) -> None:
    """Write means over the pixels as pooling, which has a blocked form."""
    for mean in [n for n in graph if n.op_type == 'ReduceMean']:
        axes = mean.inputs[1].const_value if len(mean.inputs) > 1 else None
        if axes is None or sorted(axes.numpy().tolist()) != [2, 3]:
            continue
        pool = ir.node('GlobalAveragePool', mean.inputs[:1])
        graph.insert_before(mean, pool)
        keeps = mean.attributes.get_int('keepdims', 1)
        mean.op_type = 'Identity' if keeps else 'Flatten'
        mean.attributes.clear()
        mean.resize_inputs(1)
        mean.replace_input_with(0, pool.outputs[0])


def _hold_biases(graph: ir.Graph) -> None:
    """Replace computed biases by marks, and give them out."""
    for conv in [n for n in graph if n.op_type == 'Conv']:
        bias = conv.inputs[2] if len(conv.inputs) > 2 else None
        weight = conv.inputs[1].const_value
        if bias is None or bias.const_value is not None or weight is None:
            continue
        number = len(graph.outputs)
        mark = np.full(weight.shape[0], _MARK + number)
        held = _constant(graph, f'held.{number}', mark)
        conv.replace_input_with(2, held)
        graph.outputs.append(bias)


def _laid_out(model: ir.Model) -> ir.Model:
    """Return the file as ONNX Runtime would run it."""
    with TemporaryDirectory() as folder:
        path = str(Path(folder, 'laid_out.onnx'))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = path
        options.log_severity_level = 3  # not that the file is for this CPU
        onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(),
            options,
            providers=['CPUExecutionProvider'],
        )
        return ir.load(path)


def _let_go(graph: ir.Graph, biases: int) -> None:
    """Put so many computed biases where the marks are."""
    found = 0
    for conv in [n for n in graph if n.op_type in ('Conv', 'FusedConv')]:
        held = conv.inputs[2] if len(conv.inputs) > 2 else None
        if held is None or held.const_value is None:
            continue
        mark = held.const_value.numpy()
        if mark[0] < _MARK:
            continue
        bias = graph.outputs[int(mark[0]) - _MARK]
        # Blocks of channels end in zeros.
        if zeros := int((mark == 0).sum()):
            rest = _constant(graph, f'{held.name}.zeros', np.zeros(zeros))
            padded = ir.node('Concat', [bias, rest], dict(axis=0))
            graph.append(padded)
            bias = padded.outputs[0]
        conv.replace_input_with(2, bias)
        found += 1
    if found != biases:
        raise UserInputError(
            f'ONNX Runtime {onnxruntime.__version__} keeps {found} of '
            f'{biases} biases: leave --this-cpu out, or install another '
            'version.'
        )


def _constant(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    tensor = ir.tensor(values.astype(np.float32))
    value = ir.val(name, const_value=tensor)
    graph.register_initializer(value)
    return value
