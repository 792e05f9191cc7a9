"""An override that names nothing is an error, with the closest name."""

import argparse
import copy
import re

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from sb_mm.engine.cli import Options
from sb_mm.engine.options import (
    apply_options,
    check_own_arguments,
    check_values,
)
from sb_mm.errors import UserInputError

from .conftest import CUSTOM, MAIN, REPOSITORY

VOC = Config.fromfile(MAIN)


def _apply(**options):
    cfg = copy.deepcopy(VOC)
    apply_options(cfg, {k.replace('__', '.'): v for k, v in options.items()})
    return cfg


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('traincfg__max_epochs', "no setting 'traincfg': did you mean train_"),
        ('train_cfg__max_epoch', 'did you mean max_epochs'),
        ('model__backbone__lamda_init', 'SBMobileNetV2.* mean lambda_init'),
        ('model__backbone__norm_eva', 'did you mean norm_eval'),
        ('model__backbon', 'model .SingleStageDetector.* mean backbone'),
        ('train_dataloader__batchsize', 'did you mean batch_size'),
        ('val_dataloader__dataset__indexes', 'did you mean indices'),
        (
            'train_dataloader__dataset__datasets__0__ann_fil',
            'datasets.0 .sb_mm.VOCDevkitDataset.* ann_file',
        ),
        ('default_hooks__checkpiont__interval', 'did you mean checkpoint'),
        ('default_hooks__checkpoint__max_keep', 'did you mean max_keep_ckpts'),
        ('optim_wrapper__optimizer__nestrov', 'did you mean nesterov'),
        ('optim_wrapper__clipgrad', 'did you mean clip_grad'),
        ('param_scheduler__0__T_maxx', 'did you mean T_max'),
        ('log_processor__windowsize', 'did you mean window_size'),
        ('model__bbox_head__zzz', "no setting 'zzz': it has"),
        ('randomness__sead', 'did you mean seed'),
        ('env_cfg__cudnn_bench', 'did you mean cudnn_benchmark'),
        ('auto_scale_lr__enabled', 'did you mean enable'),
        ('model__test_cfg__score_thrr', 'did you mean score_thr'),
        ('model__backbone__norm_cfg__momentum', 'give .*norm_cfg.type too'),
        # Variables of the file, and what they were used for.
        ('train_pipeline', 'set train_dataloader.dataset.datasets.0.pipeline'),
        ('input_size', 'set train_dataloader.* and 1 more'),
        ('custom_imports__imports', 'change the file'),
        # Written without their paths.
        ('lr', 'did you mean optim_wrapper.optimizer.lr'),
        ('max_epochs', 'did you mean train_cfg.max_epochs'),
        ('classes', 'did you mean metainfo.classes of the dataset'),
    ],
)
def test_a_name_that_nothing_reads_is_refused(key, message):
    with pytest.raises(UserInputError, match=message):
        _apply(**{key: 1})


@pytest.mark.parametrize(
    'options',
    [
        dict(model__backbone__lambda_init=0.5),  # not written in the config
        dict(model__backbone__norm_eval=True),  # of the base class
        dict(train_dataloader__dataset__datasets__0__indices=8),
        dict(train_dataloader__pin_memory=True),
        dict(train_dataloader__num_batch_per_epoch=2),
        dict(default_hooks__ema__type='EMAHook', default_hooks__ema__begin=1),
        dict(default_hooks__checkpoint__save_optimizer=False),
        dict(default_hooks__checkpoint__meta=dict(a=1)),  # of the saving
        dict(optim_wrapper__clip_grad__max_norm=3),
        dict(optim_wrapper__paramwise_cfg__norm_decay_mult=0),
        dict(optim_wrapper__optimizer__nesterov=True),
        dict(param_scheduler__0__convert_to_iter_based=True),
        dict(randomness__seed=0, randomness__deterministic=True),
        dict(auto_scale_lr__enable=True, env_cfg__cudnn_benchmark=False),
        dict(compile=True),
        dict(model__backbone__norm_cfg=dict(type='BN', eps=1e-3)),
        dict(
            model__backbone__norm_cfg__type='BN',
            model__backbone__norm_cfg__requires_grad=False,
        ),
        dict(model__bbox_head__anchor_generator__input_size=320),
        dict(train_cfg__val_begin=3, train_cfg__dynamic_intervals=[(1, 2)]),
        dict(custom_hooks=[dict(type='EMAHook')], sync_bn='torch'),
        dict(model__test_cfg__min_bbox_size=0, val_cfg__fp16=True),
        {
            'optim_wrapper.optimizer._delete_': True,
            'optim_wrapper.optimizer.type': 'AdamW',
            'optim_wrapper.optimizer.betas': (0.9, 0.99),
        },
    ],
    ids=str,
)
def test_a_name_that_is_read_is_merged(options):
    cfg = _apply(**options)
    for key, value in options.items():
        node = cfg
        for part in key.replace('__', '.').split('.')[:-1]:
            node = node[int(part)] if part.isdigit() else node[part]
        last = key.replace('__', '.').split('.')[-1]
        if last != '_delete_':
            assert node[last] == value


def test_nothing_is_merged_if_one_name_is_wrong():
    cfg = copy.deepcopy(VOC)
    options = {'train_cfg.max_epochs': 3, 'train_cfg.nonsense': 1}
    with pytest.raises(UserInputError):
        apply_options(cfg, options)
    assert cfg.train_cfg.max_epochs == 200


def test_a_classifiers_names_are_those_of_its_hosts_constructors():
    pytest.importorskip('mmpretrain')
    path = 'configs/cifar10/mobilenetv2-sb-w0.35_1xb128-200e_cifar10.py'
    before = DefaultScope.get_current_instance()
    cfg = Config.fromfile(REPOSITORY / path)
    with pytest.raises(UserInputError, match='did you mean num_classes'):
        apply_options(cfg, {'model.head.numclasses': 3})
    assert DefaultScope.get_current_instance() is before
    # A loop without a type, too.
    cfg.train_cfg = dict(by_epoch=True, max_epochs=3)
    with pytest.raises(UserInputError, match='did you mean val_begin'):
        apply_options(cfg, {'train_cfg.val_begn': 3})
    augments = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    options = {
        'train_cfg.val_begin': 3,
        'train_cfg.dynamic_intervals': [(150, 1)],
        'model.train_cfg.augments': augments,
    }
    apply_options(cfg, options)
    assert cfg.model.train_cfg.augments == augments
    assert cfg.train_cfg.val_begin == 3


def test_the_classes_of_a_custom_config_are_where_they_are_used():
    cfg = Config.fromfile(CUSTOM)
    message = 'set train_dataloader.dataset.metainfo.classes, val_dataloader'
    with pytest.raises(UserInputError, match=message):
        apply_options(cfg, dict(classes=('a', 'b')))


def test_a_misspelt_argument_in_a_config_is_named():
    cfg = copy.deepcopy(VOC)
    check_own_arguments(cfg)
    cfg.merge_from_dict({'train_dataloader.dataset.datasets.1.indexes': 1})
    message = r'datasets.1 .sb_mm.VOCDevkitDataset. has .* mean indices'
    with pytest.raises(UserInputError, match=message):
        check_own_arguments(cfg)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('custom_hooks', 5, 'custom_hooks is 5, but must be a list'),
        ('custom_hooks', dict(type='EMAHook'), 'must be a list of hooks'),
        ('custom_hooks', [dict(type='NoSuchHook')], 'hook NoSuchHook is unk'),
        ('custom_hooks', [5], 'hook 5 is unknown'),
        ('default_hooks.mine', dict(type='SSDHead'), 'hook SSDHead is unkno'),
        ('train_cfg.max_epochs', 0, r'train_cfg.max_epochs must be an int'),
        ('train_dataloader.num_workers', 0, 'persistent_workers=True needs'),
    ],
)
def test_a_value_that_mmengine_would_stop_at_later(key, value, message):
    cfg = copy.deepcopy(VOC)
    cfg.pop('custom_hooks')
    cfg.merge_from_dict({key: value})
    with pytest.raises(UserInputError, match=message):
        check_values(cfg, ['train_dataloader'])
    hooks = [dict(type='EMAHook'), dict(type='YOLOXModeSwitchHook')]
    cfg = copy.deepcopy(VOC)
    cfg.custom_hooks = hooks  # of MMEngine and of mmdet
    check_values(cfg, ['train_dataloader'])


def test_every_config_gives_known_arguments():
    configs = [
        p
        for p in (REPOSITORY / 'configs').rglob('*.py')
        if '_base_' not in p.parts and not re.search('w0|static|-se-', p.name)
    ]
    assert len(configs) > 10
    for path in configs:
        cfg = Config.fromfile(path)
        check_own_arguments(cfg)
        check_values(cfg, ['train_dataloader', 'val_dataloader'])


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        (
            "custom_hooks=[dict(type='EMAHook', begin=-1)]",
            [dict(type='EMAHook', begin=-1)],
        ),
        (
            "model.train_cfg.augments=dict(type='Mixup', alpha=0.8)",
            dict(type='Mixup', alpha=0.8),
        ),
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
    assert first.cfg_options == {'x': 1, text.split('=')[0]: value}


@pytest.mark.parametrize('text', ['a=dict(x())', 'a=dict(b=c)', 'a=dict('])
def test_an_option_runs_no_code(text):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--cfg-options', nargs='+', action=Options)
    with pytest.raises(argparse.ArgumentError, match='write key=value'):
        parser.parse_args(['--cfg-options', text])
