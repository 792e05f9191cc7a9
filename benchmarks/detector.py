"""Training steps of the detector, also on a GPU."""

import functools
from collections.abc import Callable, Iterator

import mmdet.models  # noqa: F401  fills the registry
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import DataLoader

from .measurement import Measurement, Settings, rates_in_turns, take_turns
from .networks import SB, SE, STATIC
from .pipeline import CONFIG, build_dataset

BACKBONES = {
    STATIC: 'sb_mm.AttentionMobileNetV2',
    SE: 'sb_mm.SEMobileNetV2',
    SB: 'sb_mm.SBMobileNetV2',
}
LOADERS = 16  # dataloader workers, beside a GPU
_SIZE = 300  # pixels
_BOXES = 3  # objects an image: VOC has 2.4 on average


def detector_step(settings: Settings) -> Iterator[Measurement]:
    """Measure a training step of SSDLite x1.0.

    On a GPU, the networks are compiled, as ``sb_mm.CompileHook`` does.
    """
    case = _case(settings)
    steps = {
        kind: functools.partial(
            _trainer(_build(kind), settings), _batch(case['batch'])
        )
        for kind in BACKBONES
    }
    yield from take_turns(case, steps, min(5, settings.rounds))


def detector_loop(settings: Settings) -> Iterator[Measurement]:
    """Count the images/s of a GPU's training with VOC2007's files.

    Without a GPU, the network alone takes the time: see ``detector_step``.
    """
    case = _case(settings)
    if case['device'] != 'cuda' and not settings.tiny:
        settings.notes.append('no --device cuda: not run')
        return
    workers = 1 if settings.tiny else LOADERS
    batch = case['batch']
    dataset = build_dataset(settings, 2 * batch if settings.tiny else None)
    loader = Runner.build_dataloader(
        dict(
            dataset=dataset,
            batch_size=batch,
            num_workers=workers,
            persistent_workers=True,
            drop_last=True,  # another size would be compiled again
            pin_memory=case['device'] == 'cuda',
            sampler=dict(type='DefaultSampler', shuffle=True),
        )
    )
    epochs = {
        kind: _epoch(loader, _trainer(_build(kind), settings))
        for kind in (STATIC, SB)
    }
    images = len(loader) * batch
    case.update(workers=workers, images=images)
    yield from rates_in_turns(case, epochs, min(5, settings.rounds), images)


def _case(settings: Settings) -> dict:
    device = torch.device(settings.device).type
    return dict(
        width=1.0,
        batch=2 if settings.tiny else 32,
        size=_SIZE,
        device=device,
        compiled=device == 'cuda',
    )


def _build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = Config.fromfile(CONFIG).model
    config.backbone.type = BACKBONES[kind]
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(config).train()


def _trainer(model: nn.Module, settings: Settings) -> Callable[[dict], dict]:
    """Return what takes a step with a batch."""
    model = model.to(settings.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0, momentum=0.9)
    wrapper = OptimWrapper(optimizer)
    if settings.device.startswith('cuda'):
        # As sb_mm.CompileHook does it.
        model.extract_feat = torch.compile(model.extract_feat, dynamic=False)
    return lambda data: model.train_step(data, wrapper)


def _epoch(
    loader: DataLoader, step: Callable[[dict], dict]
) -> Callable[[], None]:
    def run() -> None:
        for data in loader:
            step(data)

    return run


def _batch(number: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        256, (number, 3, _SIZE, _SIZE), dtype=torch.uint8, generator=generator
    )
    return dict(
        inputs=list(images),
        data_samples=[_sample(generator) for _ in range(number)],
    )


def _sample(generator: torch.Generator) -> DetDataSample:
    corners = torch.rand(_BOXES, 2, generator=generator) * _SIZE / 2
    sides = 20 + torch.rand(_BOXES, 2, generator=generator) * _SIZE / 3
    labels = torch.randint(20, (_BOXES,), generator=generator)
    shape = (_SIZE, _SIZE)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.cat([corners, corners + sides], 1), labels=labels
    )
    return sample
