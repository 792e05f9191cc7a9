"""What ``tools/export_onnx.py`` does: export a network, and check the file."""

import argparse
import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sb_mm.arguments import check_number
from sb_mm.checkpoint import load_checkpoint_file, state_dict_of
from sb_mm.engine.config import load_config
from sb_mm.engine.preflight import check_checkpoint, check_data
from sb_mm.engine.quiet import quiet_logger
from sb_mm.errors import UserInputError, first_line
from sb_mm.version import __version__

from .agreement import ExportFailedError, compare
from .exportable import (
    ExportedDetector,
    check_model_type,
    exportable,
    wrap,
)
from .fold import fold
from .onnx_file import (
    add_metadata,
    check_writable,
    require_packages,
    to_onnx,
)
from .onnx_runner import OnnxRunner

__all__ = ['ExportFailedError', 'evaluate', 'export']


def export(args: argparse.Namespace) -> Iterator[str]:
    """Export as ``tools/export_onnx.py`` is told to.

    Args:
        args: ``config``, ``checkpoint``, ``out``, ``nms``, ``this_cpu``,
            ``check_images``, ``evaluate`` and the common options.

    Yields:
        Lines that say what was done.

    Raises:
        UserInputError: Before the export, if anything that it needs is
            missing or does not fit; then, if a layer has no ONNX form.
        ExportFailedError: If the file's outputs are not the network's.
    """
    require_packages()
    check_number('--check-images', args.check_images, 1, integer=True)
    out = Path(args.out or f'{Path(args.config).stem}.onnx')
    check_writable(out)
    cfg = load_config(
        args.config, args.cfg_options, args.data_root, args.work_dir
    )
    model = _build(cfg, args.nms)
    check_data(cfg, ('test_dataloader',))
    evaluator = _evaluator(cfg) if args.evaluate else None
    yield _load(model, cfg, args)
    loader = _loader(cfg)
    samples = _samples(loader, args.check_images)
    reference = wrap(model, tuple(samples[0][0].shape[1:]))
    if hasattr(model, 'bbox_head') and (args.nms or args.evaluate):
        _check_suppression(reference)
    # Next to the file, so that it gets its name in one step.
    draft = out.with_name(f'.{out.name}.{os.getpid()}')
    try:
        _write(draft, model, samples[0][0][None].float(), args, loader)
        yield from _compare(draft, reference, model, samples)
        if evaluator:
            yield from _evaluate(draft, model, evaluator, loader)
        draft.replace(out)
    except OSError as error:
        raise UserInputError(
            f'{out} cannot be written ({first_line(error)}): make room or '
            'choose another --out.'
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    yield f'{out}: {out.stat().st_size / 2**20:.1f} MiB'


def _build(cfg: Config, nms: bool) -> BaseModel:
    """Build the network; refuse what cannot be exported."""
    if not cfg.get('test_dataloader'):
        raise UserInputError(
            'The config has no test_dataloader, with whose images the file '
            'is checked: add one.'
        )
    # As MMEngine's runner does, for the configs of mmpretrain.
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = MODELS.build(cfg.model).eval()
    check_model_type(model)
    if nms and not hasattr(model, 'bbox_head'):
        raise UserInputError('--nms is for detectors: leave it out.')
    return model


def _load(model: BaseModel, cfg: Config, args: argparse.Namespace) -> str:
    if args.checkpoint is None:
        with quiet_logger():
            model.init_weights()
        return 'no checkpoint given: the weights are random'
    trust = args.trust_checkpoint
    check_checkpoint(cfg, args.checkpoint, trust)
    content = load_checkpoint_file(args.checkpoint, trust=trust)
    model.load_state_dict(state_dict_of(content), strict=False)
    return f'weights of {args.checkpoint}'


def _loader(cfg: Config) -> DataLoader:
    settings = dict(
        cfg.test_dataloader, num_workers=0, persistent_workers=False
    )
    settings.pop('prefetch_factor', None)  # of the dataloader workers
    return Runner.build_dataloader(settings, seed=0)


def _samples(
    loader: DataLoader, number: int
) -> list[tuple[Tensor, BaseDataElement]]:
    """Return the first images of the test set, each with its sample.

    Raises:
        UserInputError: If there are none, or they differ in size.
    """
    every = (
        pair
        for batch in loader
        for pair in zip(batch['inputs'], batch['data_samples'], strict=True)
    )
    samples = list(islice(every, number))
    sizes = {tuple(image.shape) for image, _ in samples}
    if not sizes:
        raise UserInputError(
            'The test set has no images, with which the file is checked.'
        )
    if len(sizes) > 1:
        raise UserInputError(
            f'The test images differ in size ({sorted(sizes)}), but a file '
            'has one: let the test pipeline resize them with keep_ratio=False.'
        )
    return samples


def _check_suppression(detector: ExportedDetector) -> None:
    """Raise if the head's suppression cannot be exported."""
    from .suppression import SuppressingDetector

    SuppressingDetector(detector)


def _write(
    path: Path,
    model: BaseModel,
    one: Tensor,
    args: argparse.Namespace,
    loader: DataLoader,
) -> None:
    import onnx

    from .suppression import SuppressingDetector

    folded = copy.deepcopy(model)
    # It may have no norm of the kind that folds, and no attention.
    with contextlib.suppress(UserInputError):
        fold(folded)
    module = exportable(folded, tuple(one.shape[2:]))
    metadata = _metadata(module, loader)
    if args.nms:
        module = SuppressingDetector(module)
    example = one if args.this_cpu else torch.cat([one, one])
    file = to_onnx(module, example, dynamic=not args.this_cpu)
    if args.this_cpu:
        from .this_cpu import for_this_cpu

        file = for_this_cpu(file)
    add_metadata(file, **metadata)
    onnx.save(file, str(path))


def _metadata(module: nn.Module, loader: DataLoader) -> dict:
    """Return what a user of the file has to know of its input and output."""
    normalise = module.normalise
    head = getattr(module.model, 'bbox_head', None)
    classes = loader.dataset.metainfo.get('classes') or ()
    return dict(
        sb_mm=__version__,
        input='pixels, 0 to 255, in the order of the channels below; the '
        'normalisation is a part of the network',
        input_size=dict(zip(('height', 'width'), module.size, strict=True)),
        channels='BGR' if normalise.swaps_channels else 'as in training',
        mean=normalise.mean.flatten().tolist(),
        std=normalise.std.flatten().tolist(),
        classes=list(classes),
        boxes='x1, y1, x2, y2 in pixels of the input',
        test_cfg={} if head is None else head.test_cfg.to_dict(),
    )


def _compare(
    path: Path,
    reference: nn.Module,
    model: BaseModel,
    samples: list[tuple[Tensor, BaseDataElement]],
) -> Iterator[str]:
    """Yield the file's inputs and outputs, and how far it is off."""
    runner = OnnxRunner(path)
    for group in (runner.session.get_inputs, runner.session.get_outputs):
        for value in group():
            yield f'{value.name} {value.shape} {value.type}'
    batches = [
        _batch(samples[i : i + size])
        for size in ((1,) if runner.batch == 1 else (1, 2))
        for i in range(0, len(samples), size)
    ]
    yield from compare(runner, reference, model, batches)


def _batch(samples: list[tuple[Tensor, BaseDataElement]]) -> dict:
    images, data_samples = zip(*samples, strict=True)
    return dict(inputs=list(images), data_samples=list(data_samples))


def _evaluator(cfg: Config) -> Evaluator:
    if not cfg.get('test_evaluator'):
        raise UserInputError(
            'The config has no test_evaluator: add one, or leave --evaluate '
            'out.'
        )
    return Evaluator(cfg.test_evaluator)


def _evaluate(
    path: Path, model: BaseModel, evaluator: Evaluator, loader: DataLoader
) -> Iterator[str]:
    """Compute the test set's metrics with the file and with PyTorch."""
    runner = OnnxRunner(path)
    for name, predict in (
        ('PyTorch', model.test_step),
        ('ONNX Runtime', runner.predict),
    ):
        metrics = evaluate(predict, evaluator, loader)
        shown = ', '.join(f'{k} {v:.4f}' for k, v in metrics.items())
        yield f'{name}: {shown}'


def evaluate(
    predict: Callable[[dict], list],
    evaluator: Evaluator,
    loader: DataLoader,
) -> dict[str, float]:
    """Return the metrics of an evaluator.

    Args:
        predict: Maps a loader's batch to samples with predictions.
        evaluator: It is left empty.
        loader: Of the test data.
    """
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        with torch.no_grad():
            samples = predict(copy.deepcopy(batch))
        evaluator.process(data_samples=samples, data_batch=batch)
    return evaluator.evaluate(len(loader.dataset))
