"""A training step of the detector, also on a GPU."""

from collections.abc import Callable, Iterator

import mmdet.models  # noqa: F401  fills the registry
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from .measurement import Measurement, Settings, take_turns
from .networks import SB, SE, STATIC
from .pipeline import CONFIG

BACKBONES = {
    STATIC: 'sb_mm.AttentionMobileNetV2',
    SE: 'sb_mm.SEMobileNetV2',
    SB: 'sb_mm.SBMobileNetV2',
}
_SIZE = 300  # pixels
_BOXES = 3  # objects a picture: VOC has 2.4 on average


def detector_step(settings: Settings) -> Iterator[Measurement]:
    """Measure a training step of SSDLite x1.0.

    On a GPU, the networks are compiled, as ``compile=True`` in a config
    does.
    """
    device = torch.device(settings.device)
    batch = 2 if settings.tiny else 32
    compiles = device.type == 'cuda'
    case = dict(
        width=1.0,
        batch=batch,
        size=_SIZE,
        device=device.type,
        compiled=compiles,
    )
    steps = {
        kind: _step(_build(kind).to(device), batch, compiles)
        for kind in BACKBONES
    }
    yield from take_turns(case, steps, min(5, settings.rounds))


def _build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = Config.fromfile(CONFIG).model
    config.backbone.type = BACKBONES[kind]
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(config).train()


def _step(model: nn.Module, batch: int, compiles: bool) -> Callable[[], None]:
    data = _batch(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0, momentum=0.9)
    wrapper = OptimWrapper(optimizer)
    if compiles:
        model.forward = torch.compile(model.forward)  # as mmengine's runner
    return lambda: model.train_step(data, wrapper)


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
