"""A training step of the detector, with target assignment and losses."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import mmdet.models  # noqa: F401  fills the registry
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from .measure import Pair, Row, Settings, in_turns
from .networks import KINDS, SB, SE, STATIC

_CONFIG = Path(__file__).resolve().parents[1] / 'configs/ssd_sb_voc.py'
_SIZE = 300  # pixels
_BOXES = 3  # objects an image: VOC has 2.4 on average


def detector_step(settings: Settings) -> Iterator[Row]:
    """Time steps of SSDLite x1.0."""
    batch = 2 if settings.tiny else 32
    data = _batch(batch)
    steps = {
        kind: functools.partial(_train_step(kind, settings.device), data)
        for kind in (STATIC, SE, SB)
    }
    target = None if settings.device == 'cpu' else 1.25
    pairs = [Pair(SB, STATIC, target), Pair(SB, SE, 1)]
    what = f'training step of SSDLite x1.0, batch {batch}'
    yield from in_turns(what, steps, pairs, settings)


def _train_step(kind: str, device: str) -> Callable[[dict], dict]:
    torch.manual_seed(0)
    config = Config.fromfile(_CONFIG).model
    config.backbone.update(type='sb_mm.AttentionMobileNetV2', **KINDS[kind])
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0, momentum=0.9)
    return functools.partial(
        model.train_step, optim_wrapper=OptimWrapper(optimizer)
    )


def _batch(images: int) -> dict:
    torch.manual_seed(0)
    shape = (images, 3, _SIZE, _SIZE)
    return dict(
        inputs=list(torch.randint(256, shape, dtype=torch.uint8)),
        data_samples=[_sample() for _ in range(images)],
    )


def _sample() -> DetDataSample:
    corners = torch.rand(_BOXES, 2) * _SIZE / 2
    sides = 20 + torch.rand(_BOXES, 2) * _SIZE / 3
    size = (_SIZE, _SIZE)
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.cat([corners, corners + sides], 1),
        labels=torch.randint(20, (_BOXES,)),
    )
    return sample
