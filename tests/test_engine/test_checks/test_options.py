"""An override that names nothing is an error, with the closest name."""

import argparse
import copy
import re

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from sb_mm.engine.checks.options import apply_options, check_values
from sb_mm.engine.cli import Options
from sb_mm.errors import UserInputError

from ..conftest import CIFAR, CUSTOM, MAIN, REPOSITORY

pytest.importorskip('mmpretrain')

VOC = Config.fromfile(MAIN)
REFUSED = {
    'traincfg.max_epochs': "no setting 'traincfg': did you mean train_",
    'model.backbone.lamda_init': 'SBMobileNetV2.* mean lambda_init',
    'model.backbone.norm_eva': 'did you mean norm_eval',
    'train_dataloader.batchsize': 'did you mean batch_size',
    'train_dataloader.dataset.datasets.0.ann_fil': 'datasets.0 .sb_mm.* ann_f',
    'default_hooks.checkpiont.interval': 'did you mean checkpoint',
    'default_hooks.checkpoint.max_keep': 'did you mean max_keep_ckpts',
    'model.bbox_head.zzz': "no setting 'zzz': it has",
    'randomness.sead': 'did you mean seed',
    'env_cfg.cudnn_bench': 'did you mean cudnn_benchmark',
    'model.test_cfg.score_thrr': 'did you mean score_thr',
    'model.backbone.norm_cfg.momentum': 'give .*norm_cfg.type too',
    # Variables of the file, and what they were used for.
    'train_pipeline': 'set train_dataloader.dataset.datasets.0.pipeline',
    'input_size': 'set .*anchor_generator.input_size',
    'custom_imports.imports': 'change the file',
    # Written without their paths.
    'lr': 'did you mean optim_wrapper.optimizer.lr',
    'seed': "no setting 'seed'",
    'classes': 'did you mean metainfo.classes of the dataset',
}


@pytest.mark.parametrize(('key', 'message'), REFUSED.items())
def test_a_name_that_nothing_reads_is_refused(key, message):
    with pytest.raises(UserInputError, match=message):
        apply_options(copy.deepcopy(VOC), {key: 1})


def test_a_variable_of_a_config_names_what_it_was_used_for():
    message = 'set train_dataloader.dataset.metainfo.classes, val_dataloader'
    with pytest.raises(UserInputError, match=message):
        apply_options(Config.fromfile(CUSTOM), dict(classes=('a', 'b')))


READ = {
    'model.backbone.lambda_init': 0.5,  # not written in the config
    'model.backbone.norm_eval': True,  # of the base class
    'model.backbone.norm_cfg.type': 'BN',
    'model.backbone.norm_cfg.requires_grad': False,
    'model.test_cfg.min_bbox_size': 0,
    'train_dataloader.dataset.datasets.0.indices': 8,
    'train_dataloader.num_batch_per_epoch': 2,
    'train_cfg.dynamic_intervals': [(1, 2)],
    'model.backbone.init_cfg': dict(
        type='Xavier',
        layer='Conv2d',
        override=[dict(type='Normal', name='conv1', std=0.01)],
    ),
    'default_hooks.ema.type': 'EMAHook',
    'default_hooks.ema.begin': 1,
    'default_hooks.checkpoint.meta': dict(a=1),  # of the saving
    'custom_hooks': [dict(type='EMAHook')],
    'optim_wrapper.clip_grad.max_norm': 3,
    'optim_wrapper.paramwise_cfg.norm_decay_mult': 0,
    'optim_wrapper.optimizer.nesterov': True,
    'param_scheduler.0.convert_to_iter_based': True,
    'sync_bn': 'torch',
}


def test_names_that_are_read_are_merged():
    cfg = copy.deepcopy(VOC)
    apply_options(cfg, READ)
    merged = copy.deepcopy(VOC)
    merged.merge_from_dict(READ)
    assert cfg.to_dict() == merged.to_dict()
    replaced = dict(type='AdamW', betas=(0.9, 0.99))
    options = dict(replaced, _delete_=True)
    apply_options(
        cfg, {f'optim_wrapper.optimizer.{k}': v for k, v in options.items()}
    )
    assert cfg.optim_wrapper.optimizer == replaced


def test_a_classifiers_names_are_those_of_its_hosts_constructors():
    before = DefaultScope.get_current_instance()
    cfg = Config.fromfile(CIFAR)
    with pytest.raises(UserInputError, match='did you mean num_classes'):
        apply_options(copy.deepcopy(cfg), {'model.head.numclasses': 3})
    augments = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    apply_options(cfg, {'model.train_cfg.augments': augments})
    assert cfg.model.train_cfg.augments == augments
    # A loop without a type, too.
    loop = dict(_delete_=True, by_epoch=False, max_iters=3)
    apply_options(cfg, dict(train_cfg=loop))
    with pytest.raises(UserInputError, match='did you mean val_begin'):
        apply_options(cfg, {'train_cfg.val_begn': 3})
    intervals = {'train_cfg.dynamic_intervals': [(150, 1)]}
    apply_options(cfg, intervals)
    assert DefaultScope.get_current_instance() is before


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('custom_hooks', 5, '5 is no hook: write custom_hooks as'),
        ('custom_hooks', dict(type='EMAHook'), 'is no hook: write'),
        ('custom_hooks', [dict(type='NoSuchHook')], "NoSuchHook'} is no hook"),
        ('custom_hooks', ['EMAHook'], 'EMAHook is no hook'),
        ('default_hooks.mine', dict(type='SSDHead'), "SSDHead'} is no hook"),
        ('train_cfg.max_epochs', 0, r'train_cfg.max_epochs must be an int'),
        ('train_dataloader.num_workers', 0, 'persistent_workers=True needs'),
        ('train_dataloader.num_workers', -1, 'num_workers must be an integ'),
        ('train_dataloader.batch_size', 'x', 'batch_size must be an integer'),
        ('optim_wrapper.optimizer.lr', float('nan'), 'lr must be a number'),
        ('randomness.seed', -3, 'seed must be an integer'),
        ('log_level', 'NOPE', "log_level must be one of 'DEBUG'"),
    ],
)
def test_a_value_that_mmengine_would_stop_at_later(key, value, message):
    cfg = copy.deepcopy(VOC)
    cfg.pop('custom_hooks')
    cfg.merge_from_dict({key: value})
    with pytest.raises(UserInputError, match=message):
        check_values(cfg, ['train_dataloader'])


def test_every_config_gives_known_arguments():
    for path in (REPOSITORY / 'configs').rglob('*.py'):
        if '_base_' in path.parts or re.search('w0|static|-se-', path.name):
            continue
        cfg = Config.fromfile(path)
        # A hook of MMEngine, and in a detector's config one of mmdet.
        names = ['EMAHook', 'YOLOXModeSwitchHook']
        detects = cfg.default_scope == 'mmdet'
        cfg.custom_hooks = [dict(type=n) for n in names[: 1 + detects]]
        apply_options(cfg, {})
        check_values(cfg, ['train_dataloader', 'val_dataloader'])


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        (
            "a=[dict(type='EMAHook', begin=-1)]",
            [dict(type='EMAHook', begin=-1)],
        ),
        ("a=dict(type='Mixup', alpha=0.8)", dict(type='Mixup', alpha=0.8)),
        ("a={'b': [dict(), (1, None)]}", dict(b=[{}, (1, None)])),
        # As MMEngine reads them.
        ('a=[x,(1,2)]', ['x', (1, 2)]),
        ('a=1,2', [1, 2]),
        ('a=x=y', 'x=y'),
    ],
)
def test_an_option_may_be_written_as_in_a_config(text, value):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=Options)
    first = parser.parse_args(['--cfg-options', 'x=1', '--cfg-options', text])
    assert first.cfg_options == dict(x=1, a=value)


@pytest.mark.parametrize(
    'text', ['train_cfg', 'a=dict(x())', 'a=dict(b=c)', 'a=dict(']
)
def test_an_option_runs_no_code(text):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--cfg-options', nargs='+', action=Options)
    with pytest.raises(argparse.ArgumentError, match='write key=value'):
        parser.parse_args(['--cfg-options', text])
