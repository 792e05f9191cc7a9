"""Export a network to ONNX, and check the file before it is written."""

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sb_mm.arguments import check_number
from sb_mm.engine.build import build_loader, build_model
from sb_mm.engine.checks.checkpoint import check_checkpoint
from sb_mm.engine.checks.data import check_data
from sb_mm.errors import UserInputError
from sb_mm.files import check_writable, write_in_one_step
from sb_mm.version import __version__
from sb_mm.weights import state_dict_of

from .agreement import compare
from .fold import fold
from .nms import SuppressingDetector
from .onnx import exportable, require_packages, to_onnx, wrapper_of
from .onnx_runner import OnnxRunner

if TYPE_CHECKING:
    from onnx import ModelProto


def export(
    cfg: Config,
    checkpoint: str | None,
    out: str | Path,
    *,
    nms: bool = False,
    this_cpu: bool = False,
    check_images: int = 8,
    evaluate: bool = False,
    trust: bool = False,
) -> Iterator[str]:
    """Export a network, and write the file if it gives what PyTorch gives.

    Args:
        cfg: With a ``test_dataloader``.
        checkpoint: File; random weights if None.
        out: File.
        nms: Let the file suppress overlapping boxes.
        this_cpu: See :func:`~sb_mm.deploy.this_cpu.for_this_cpu`.
        check_images: Test images on which file and network are compared.
        evaluate: Compute the metrics of the test set with both.
        trust: Run the code that the checkpoint may bring with it.

    Yields:
        Lines that say what was done.

    Raises:
        UserInputError: If anything that the export needs is missing or does
            not fit, or a layer has no ONNX form.
        ExportFailedError: If the file's outputs are not the network's.
        OSError: If the file cannot be written.
    """
    require_packages()
    check_number('--check-images', check_images, 1, integer=True)
    out = Path(out)
    check_writable(out, '.onnx')
    model = _build(cfg, nms, evaluate)
    check_data(cfg, ('test_dataloader',))
    evaluator = Evaluator(cfg.test_evaluator) if evaluate else None
    yield _load(model, cfg, checkpoint, trust)
    loader = build_loader(cfg, 'test_dataloader')
    images, samples = _first_images(loader, check_images)
    reference = exportable(model, tuple(images.shape[2:]))
    if hasattr(model, 'bbox_head') and (nms or evaluate):
        SuppressingDetector(reference)(images[:1])  # raises if it cannot
    file = _to_file(reference, images[:1], nms, this_cpu)
    classes = loader.dataset.metainfo.get('classes') or ()
    _describe(file, reference, list(classes))
    content = file.SerializeToString()
    runner = OnnxRunner(content)
    for value in (*runner.session.get_inputs(), *runner.session.get_outputs()):
        yield f'{value.name} {value.shape} {value.type}'
    batches = [
        dict(inputs=images[i : i + size], data_samples=samples[i : i + size])
        for size in ((1,) if this_cpu else (1, 2))
        for i in range(0, len(samples), size)
    ]
    yield from compare(runner, reference, model, batches)
    if evaluator:
        yield f'PyTorch: {_metrics(model.test_step, evaluator, loader)}'
        yield f'ONNX Runtime: {_metrics(runner.predict, evaluator, loader)}'
    write_in_one_step(out, content)
    yield f'{out}: {len(content) / 2**20:.1f} MiB'


def _build(cfg: Config, nms: bool, evaluate: bool) -> BaseModel:
    """Build the network; raise if it cannot be exported."""
    for key in ('test_dataloader', 'test_evaluator')[: 1 + evaluate]:
        if not cfg.get(key):
            raise UserInputError(
                f'The config has no {key}, which the check of the file needs '
                '(test_evaluator for --evaluate only): add one.'
            )
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = build_model(cfg).eval()
    wrapper_of(model)  # raises if there is none
    if nms and not hasattr(model, 'bbox_head'):
        raise UserInputError('--nms is for detectors: leave it out.')
    return model


def _load(
    model: BaseModel, cfg: Config, checkpoint: str | None, trust: bool
) -> str:
    if checkpoint is None:
        # MMEngine logs every parameter that it draws.
        with patch.object(MMLogger.get_current_instance(), 'disabled', True):
            model.init_weights()
        return 'no checkpoint given: the weights are random'
    content = check_checkpoint(cfg, checkpoint, trust)
    model.load_state_dict(state_dict_of(content), strict=False)
    return f'weights of {checkpoint}'


def _first_images(loader: DataLoader, number: int) -> tuple[Tensor, list]:
    """Return images ``(N, 3, H, W)`` of the test set and their samples."""
    every = (
        pair
        for batch in loader
        for pair in zip(batch['inputs'], batch['data_samples'], strict=True)
    )
    pairs = list(islice(every, number))
    sizes = {tuple(image.shape) for image, _ in pairs}
    if not sizes:
        raise UserInputError(
            'The test set has no images, with which the file is checked.'
        )
    if len(sizes) > 1:
        raise UserInputError(
            f'The test images differ in size ({sorted(sizes)}), but a file '
            'has one: let the test pipeline resize them with keep_ratio=False.'
        )
    images, samples = zip(*pairs, strict=True)
    return torch.stack(images).float(), list(samples)


def _to_file(
    reference: nn.Module, image: Tensor, nms: bool, this_cpu: bool
) -> 'ModelProto':
    module = copy.deepcopy(reference)
    # It may have no norm of the kind that folds, and no attention.
    with contextlib.suppress(UserInputError):
        fold(module)
    if nms:
        module = SuppressingDetector(module)
    if this_cpu:
        from .this_cpu import for_this_cpu

        return for_this_cpu(to_onnx(module, image, dynamic=False))
    return to_onnx(module, torch.cat([image, image]), dynamic=True)


def _describe(
    file: 'ModelProto', reference: nn.Module, classes: list[str]
) -> None:
    """Write into a file what its graph does not say."""
    from onnx.helper import set_model_props

    bgr = reference.normalise.swaps_channels
    head = getattr(reference.model, 'bbox_head', None)
    metadata = dict(
        sb_mm=__version__,
        input='pixels, 0 to 255; the normalisation is a part of the network',
        channels='BGR' if bgr else 'as in training',
        classes=classes,
        test_cfg={} if head is None else head.test_cfg.to_dict(),
    )
    set_model_props(file, {k: json.dumps(v) for k, v in metadata.items()})


def _metrics(
    predict: Callable[[dict], list], evaluator: Evaluator, loader: DataLoader
) -> str:
    """Say what the metrics of ``predict`` are on the test data."""
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        with torch.no_grad():
            samples = predict(copy.deepcopy(batch))
        evaluator.process(data_samples=samples, data_batch=batch)
    metrics = evaluator.evaluate(len(loader.dataset))
    return ', '.join(f'{name} {value:.4f}' for name, value in metrics.items())
