"""A network of two stages and two classes: little to build or to export."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb_mm.models import AttentionMobileNetV2, AttentionShuffleNetV2

SIDE = 48  # pixels
TEST_CFG = dict(
    nms_pre=60000,
    score_thr=0.05,
    candidates_per_class=30,
    nms=dict(type='nms', iou_threshold=0.45),
    min_bbox_size=0,
    max_per_img=4000,
)


def cut_networks(monkeypatch):
    """Leave two stages of MobileNetV2, and four blocks of ShuffleNetV2."""
    two = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3))
    monkeypatch.setattr(AttentionMobileNetV2, 'arch_settings', two)
    monkeypatch.setattr(AttentionMobileNetV2, 'num_stages', 3)
    monkeypatch.setattr(
        AttentionMobileNetV2, 'last_channels', staticmethod(lambda _: 24)
    )
    monkeypatch.setattr(AttentionShuffleNetV2, 'stage_blocks', (2, 1, 1))


def trained(model):
    """Norms, gates and lambda as training leaves them: none is neutral."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith('lambda_'):
            nn.init.uniform_(parameter, -0.5, 0.5)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            module.running_mean.normal_(std=0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def model_config(test_cfg=TEST_CFG):
    return dict(
        type='SingleStageDetector',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[127, 120, 110],
            std=[128, 120, 110],
            bgr_to_rgb=True,
        ),
        backbone=dict(
            type='sb_mm.SBMobileNetV2',
            widen_factor=0.5,
            expand_indices=(1,),
            out_indices=(2,),
        ),
        neck=dict(
            type='sb_mm.SSDLiteNeck',
            in_channels=(48, 24),
            out_channels=(16,),
            hidden_channels=(16,),
        ),
        bbox_head=dict(
            type='sb_mm.SSDLiteHead',
            num_classes=2,
            in_channels=(48, 24, 16),
            anchor_generator=dict(
                type='sb_mm.SSDLitePriorGenerator',
                scale_major=False,
                input_size=SIDE,
                strides=[2, 4, 8],
                min_sizes=[8, 16, 24],
                max_sizes=[16, 24, 40],
                ratios=[[2, 3]] * 3,
            ),
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0.0] * 4,
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
        ),
        test_cfg=dict(test_cfg),
    )


def detector(test_cfg=TEST_CFG, **preprocessing):
    """Return a detector of decided scores."""
    torch.manual_seed(1)
    config = model_config(test_cfg)
    config['data_preprocessor'].update(preprocessing)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = trained(MODELS.build(Config(config)))
    for convs in (model.bbox_head.cls_convs, model.bbox_head.reg_convs):
        for level in convs:
            nn.init.normal_(level[-1].weight, std=1)
    return model


def write_config(devkit: Path, path: Path) -> Path:
    """Write a config that validates and tests on the devkit's ``test``."""
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    loader = dict(
        batch_size=2,
        num_workers=2,
        persistent_workers=True,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='sb_mm.VOCDevkitDataset',
            data_root=str(devkit),
            data_prefix=dict(sub_data_root=''),
            ann_file='ImageSets/Main/test.txt',
            metainfo=dict(classes=('square', 'disc')),
            test_mode=True,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(SIDE, SIDE), keep_ratio=False),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs', meta_keys=keys),
            ],
        ),
    )
    Config(
        dict(
            default_scope='mmdet',
            model=model_config(),
            val_dataloader=loader,
            test_dataloader=loader,
            test_evaluator=dict(type='sb_mm.PascalVOCMetric'),
        )
    ).dump(path)
    return path
