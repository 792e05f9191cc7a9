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
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sb_mm.checkpoint import load_checkpoint_file, state_dict_of
from sb_mm.engine.config import load_config
from sb_mm.engine.preflight import check_checkpoint, check_data
from sb_mm.errors import UserInputError
from sb_mm.models.layers.arguments import check_number
from sb_mm.version import __version__

from .exportable import check_model_type, exportable, wrap
from .fold import fold
from .onnx_file import (
    add_metadata,
    check_writable,
    require_packages,
    to_onnx,
)
from .suppression import SuppressingDetector

# Largest difference from PyTorch: of a score, and of a box in pixels. ONNX
# Runtime's sums over the pixels round 30 times as much as PyTorch's, and a
# box multiplies what is left of it by its size; a trained SSDLite x0.35 came
# to 5e-5 and 1e-2.
TOLERANCES = dict(scores=5e-4, boxes=5e-2)


class ExportFailedError(RuntimeError):
    """The file does not compute what the network does."""


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
    cfg = load_config(args)
    model = _build(cfg, args.nms)
    check_data(cfg, ('test_dataloader',))
    yield _load(model, cfg, args)
    loader = _loader(cfg)
    pictures = _pictures(loader, args.check_images)
    size = tuple(pictures.shape[2:])
    reference = wrap(model, size)
    # Next to the file, so that it gets its name in one step.
    draft = out.with_name(f'.{out.name}.{os.getpid()}')
    try:
        _write(draft, model, pictures, args, loader)
        yield from _compare(draft, reference, pictures)
        if args.evaluate:
            yield from _evaluate(draft, model, cfg, loader)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    yield f'{out}: {out.stat().st_size / 2**20:.1f} MiB'


def _build(cfg: Config, nms: bool) -> BaseModel:
    """Build the network; refuse what cannot be exported."""
    if not cfg.get('test_dataloader'):
        raise UserInputError(
            'The config has no test_dataloader, with whose pictures the file '
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
        with _quiet():
            model.init_weights()
        return 'no checkpoint given: the weights are random'
    trust = args.trust_checkpoint
    check_checkpoint(cfg, args.checkpoint, trust)
    content = load_checkpoint_file(args.checkpoint, trust=trust)
    model.load_state_dict(state_dict_of(content), strict=False)
    return f'weights of {args.checkpoint}'


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MMEngine from logging every parameter that it draws."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


def _loader(cfg: Config) -> DataLoader:
    settings = dict(
        cfg.test_dataloader, num_workers=0, persistent_workers=False
    )
    settings.pop('prefetch_factor', None)  # of the processes that load
    return Runner.build_dataloader(settings, seed=0)


def _pictures(loader: DataLoader, number: int) -> Tensor:
    """Return the first pictures of the test set, ``(N, 3, H, W)``.

    Raises:
        UserInputError: If they differ in size.
    """
    every = (picture for batch in loader for picture in batch['inputs'])
    pictures = list(islice(every, number))
    sizes = {tuple(picture.shape) for picture in pictures}
    if len(sizes) > 1:
        raise UserInputError(
            f'The test pictures differ in size ({sorted(sizes)}), but a file '
            'has one: let the test pipeline resize them with keep_ratio=False.'
        )
    return torch.stack(pictures).float()


def _write(
    path: Path,
    model: BaseModel,
    pictures: Tensor,
    args: argparse.Namespace,
    loader: DataLoader,
) -> None:
    import onnx

    folded = copy.deepcopy(model)
    # It may have no norm of the kind that folds, and no attention.
    with contextlib.suppress(UserInputError):
        fold(folded)
    module = exportable(folded, tuple(pictures.shape[2:]))
    metadata = _metadata(module, loader)
    if args.nms:
        module = SuppressingDetector(module)
    one = pictures[:1]
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


def _compare(path: Path, reference: nn.Module, pictures: Tensor) -> list[str]:
    """Compare the file with PyTorch.

    Raises:
        ExportFailedError: If they differ by more than rounding does.
    """
    from .onnx_runner import OnnxRunner

    runner = OnnxRunner(path)
    lines = [
        f'{value.name} {value.shape} {value.type}'
        for group in (runner.session.get_inputs, runner.session.get_outputs)
        for value in group()
    ]
    sizes = (1,) if runner.batch == 1 else (1, 2)
    for name, worst in _differences(runner, reference, pictures, sizes):
        unit = ' pixels' if name == 'boxes' else ''
        lines.append(
            f'largest difference of {name} from PyTorch, {len(pictures)} '
            f'pictures, batches of {" and ".join(map(str, sizes))}: '
            f'{worst:.1e}{unit}'
        )
        if not worst <= TOLERANCES[name]:
            raise ExportFailedError(
                f'{lines[-1]}, but at most {TOLERANCES[name]:g} is rounding; '
                'no file was written.'
            )
    return lines


def _differences(
    runner: 'OnnxRunner',  # noqa: F821
    reference: nn.Module,
    pictures: Tensor,
    sizes: tuple[int, ...],
) -> Iterator[tuple[str, float]]:
    """Yield each output's name and its largest absolute difference."""
    worst: dict[str, float] = {}
    for size in sizes:
        for images in pictures.split(size):
            with torch.no_grad():
                expected = reference(images)
            single = isinstance(expected, Tensor)
            expected = (expected,) if single else expected
            expected = dict(zip(reference.output_names, expected, strict=True))
            outputs = runner.run(images)
            for name, value in _differing(outputs, expected, reference):
                worst[name] = max(worst.get(name, 0.0), value)
    yield from worst.items()


def _differing(
    outputs: dict[str, Tensor], expected: dict[str, Tensor], model: nn.Module
) -> Iterator[tuple[str, float]]:
    if 'image' not in outputs:
        for name, value in expected.items():
            yield name, (outputs[name] - value).abs().max().item()
        return
    # Suppressed or not may hang on the last digit: each detection is looked
    # for among PyTorch's candidates instead of beside its twin.
    rows = zip(*outputs.values(), strict=True)
    for image, label, box, score in rows:
        candidates = expected['scores'][image, :, label]
        boxes = (expected['boxes'][image] - box).abs().amax(1)
        # Of the priors that score the same, that with the same box.
        near = (candidates - score).abs() <= TOLERANCES['scores']
        yield 'scores', (candidates - score).abs().min().item()
        yield 'boxes', boxes[near].min().item() if near.any() else 0.0


def _evaluate(
    path: Path, model: BaseModel, cfg: Config, loader: DataLoader
) -> Iterator[str]:
    """Compute the test set's metrics with the file and with PyTorch."""
    from .onnx_runner import OnnxRunner

    runner = OnnxRunner(path)
    for name, predict in (
        ('PyTorch', model.test_step),
        ('ONNX Runtime', runner.predict),
    ):
        metrics = evaluate(predict, cfg, loader)
        shown = ', '.join(f'{k} {v:.4f}' for k, v in metrics.items())
        yield f'{name}: {shown}'


def evaluate(
    predict: Callable[[dict], list],
    cfg: Config,
    loader: DataLoader,
) -> dict[str, float]:
    """Return the metrics of the config's ``test_evaluator``.

    Args:
        predict: Maps a loader's batch to samples with predictions.
        cfg: The config.
        loader: Of the test data.
    """
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        with torch.no_grad():
            samples = predict(copy.deepcopy(batch))
        evaluator.process(data_samples=samples, data_batch=batch)
    return evaluator.evaluate(len(loader.dataset))
