"""From a network to an ONNX file."""

import contextlib
import io
import json
import os
import warnings
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sb_mm.errors import UserInputError, first_line

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
_PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')


def require_packages() -> None:
    """Raise unless what the export needs is installed.

    Raises:
        UserInputError: Names the packages of the extra ``export`` that are
            missing, or PyTorch if it is too old.
    """
    if (
        'custom_translation_table'
        not in signature(torch.onnx.export).parameters
    ):
        raise UserInputError(
            f'Export needs PyTorch 2.6 or later, but this is '
            f'{torch.__version__}.'
        )
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserInputError(
            f'Export needs {", ".join(missing)}: install sb_mm with its extra '
            "'export' (pip install -r requirements/export.txt)."
        )


def to_onnx(module: nn.Module, images: Tensor, dynamic: bool) -> 'ModelProto':
    """Return an exportable network as ONNX.

    Args:
        module: See :func:`~sb_mm.deploy.exportable.exportable`.
        images: An example input.
        dynamic: Whether the file takes any number of images, not only as
            many as there are here.

    Raises:
        UserInputError: If a layer has no ONNX form; names it.
    """
    try:
        return _export(module, (images,), dynamic)
    except Exception as error:  # of any kind, from any step of the exporter
        name, kind, cause = _culprit(module, images, dynamic, error)
        raise UserInputError(
            f'The layer {name} ({kind}) cannot be exported to ONNX '
            f'({first_line(cause)}): replace it.'
        ) from error


def _export(
    module: nn.Module, inputs: tuple[Tensor, ...], dynamic: bool
) -> 'ModelProto':
    from .suppression import translations

    batch = {0: torch.export.Dim('batch')}
    shapes = tuple(batch for _ in inputs) if dynamic else None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        # Here and not by the exporter, which then tries a slower way too.
        traced = torch.export.export(
            module, inputs, dynamic_shapes=shapes, strict=False
        )
        program = torch.onnx.export(
            traced,
            inputs,
            dynamo=True,
            input_names=['images', *map(str, range(1, len(inputs)))],
            output_names=list(getattr(module, 'output_names', ('y',))),
            opset_version=OPSET,
            custom_translation_table=translations(),
            verbose=False,
        )
    file = program.model_proto
    _name_batch(file)
    return file


def _name_batch(model: 'ModelProto') -> None:
    """Name the free dimension, which PyTorch gives a number."""
    graph = model.graph
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if free and dim.dim_param == free:
                dim.dim_param = 'batch'


def _culprit(
    module: nn.Module, images: Tensor, dynamic: bool, error: Exception
) -> tuple[str, str, Exception]:
    """Return name and type of the innermost layer that has no ONNX form.

    Each kind of layer is exported on its own, in the order in which they
    finish: what is inside of a layer comes before it. For one batch size
    first, as not every input of a layer has a batch.
    """
    inputs = _inputs(module, images)
    for free in (False, True) if dynamic else (False,):
        tried = set()
        for layer, (name, args) in inputs.items():
            tensors = args and all(isinstance(a, Tensor) for a in args)
            if not tensors or type(layer) in tried:
                continue
            tried.add(type(layer))
            try:
                _export(layer, args, free)
            except Exception as cause:  # see to_onnx
                return name, type(layer).__name__, cause
    return 'as a whole', type(module).__name__, error


def _inputs(module: nn.Module, images: Tensor) -> dict:
    """Record name and input of every layer of a forward pass."""
    seen = {}
    handles = [
        layer.register_forward_hook(
            lambda layer, args, _, name=name: seen.update(
                {layer: (name, args)}
            )
        )
        for name, layer in module.named_modules()
        if name
    ]
    with torch.no_grad():
        module(images)
    for handle in handles:
        handle.remove()
    return seen


def add_metadata(model: 'ModelProto', **entries) -> None:
    """Write entries into the file, each as JSON."""
    from onnx.helper import set_model_props

    set_model_props(model, {k: json.dumps(v) for k, v in entries.items()})


def check_writable(path: Path) -> None:
    """Raise unless a file can be written there.

    Raises:
        UserInputError: Names the folder.
    """
    folder = path.resolve().parent
    if path.is_dir() or path.suffix != '.onnx':
        raise UserInputError(f'--out {path} must be a file name in .onnx.')
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserInputError(
            f'The folder {folder} does not exist or cannot be written to: '
            'choose another --out.'
        )
