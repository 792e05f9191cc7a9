"""A network of two stages and two classes: little to build or to export."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb_mm.models import AttentionMobileNetV2, AttentionShuffleNetV2

CONFIG = Path(__file__).parents[1] / 'configs/voc/ssd_sb_custom.py'
CLASSES = ('square', 'disc')
SIDE = 48  # pixels
TEST_CFG = dict(
    Config.fromfile(CONFIG).to_dict()['model']['test_cfg'],
    score_thr=0.05,
    candidates_per_class=30,
)


def cut_networks(monkeypatch):
    """Leave two stages of MobileNetV2, and four blocks of ShuffleNetV2."""
    two = AttentionMobileNetV2.arch_settings[:2]
    monkeypatch.setattr(AttentionMobileNetV2, 'arch_settings', two)
    monkeypatch.setattr(AttentionMobileNetV2, 'last_channels', 24)
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
    """Return the model of the configs, with other sizes."""
    cfg = Config.fromfile(CONFIG).to_dict()['model']
    # Another of every channel, which tells RGB from BGR.
    cfg['data_preprocessor'].update(mean=[127, 120, 110], std=[128, 120, 110])
    cfg['backbone'].update(
        widen_factor=0.5, expand_indices=(1,), out_indices=(2,)
    )
    cfg['neck'].update(
        in_channels=(48, 24), out_channels=(16,), hidden_channels=(16,)
    )
    cfg['bbox_head'].update(num_classes=2, in_channels=(48, 24, 16))
    cfg['bbox_head']['anchor_generator'].update(
        input_size=SIDE,
        strides=[2, 4, 8],
        min_sizes=[8, 16, 24],
        max_sizes=[16, 24, 40],
        ratios=[[2, 3]] * 3,
    )
    return dict(cfg, test_cfg=dict(test_cfg))


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
    cfg = Config.fromfile(CONFIG)
    cfg.model = model_config()
    cfg.val_dataloader.update(batch_size=2, num_workers=2)
    cfg.val_dataloader.dataset.update(
        data_root=str(devkit),
        ann_file='ImageSets/Main/test.txt',
        metainfo=dict(classes=CLASSES),
    )
    cfg.val_dataloader.dataset.pipeline[1].scale = (SIDE, SIDE)
    cfg.test_dataloader = cfg.val_dataloader
    cfg.dump(path)
    return path
