"""One option reaches every loader, from any working directory."""

import os

import pytest
from mmengine.config import Config

from sb_mm.engine import config
from sb_mm.engine.config import (
    dataset_configs,
    load_config,
    resolve_data_roots,
    set_data_root,
)
from sb_mm.errors import UserInputError

from .conftest import REPOSITORY

MAIN = REPOSITORY / 'configs/ssd_sb_voc.py'


def _roots(cfg):
    return [(loader, d.data_root) for loader, d in dataset_configs(cfg)]


def test_the_data_root_reaches_every_loader():
    cfg = Config.fromfile(MAIN)
    set_data_root(cfg, 'elsewhere')
    assert _roots(cfg) == [
        ('train_dataloader', 'elsewhere'),  # VOC2007
        ('train_dataloader', 'elsewhere'),  # VOC2012
        ('val_dataloader', 'elsewhere'),
        ('test_dataloader', 'elsewhere'),
    ]


def test_wrapped_data_sets_and_annotation_files_follow():
    leaf = dict(type='CocoDataset', data_root='data/coco/')
    wrapped = dict(type='RepeatDataset', dataset=leaf)
    cfg = Config(
        dict(
            data_root='data/coco/',
            train_dataloader=dict(dataset=wrapped),
            val_evaluator=dict(ann_file='data/coco/annotations/val.json'),
        )
    )
    set_data_root(cfg, 'elsewhere')
    assert cfg.train_dataloader.dataset.dataset.data_root == 'elsewhere'
    assert cfg.val_evaluator.ann_file == os.path.join(
        'elsewhere', 'annotations/val.json'
    )


def test_a_relative_root_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(MAIN)
    set_data_root(cfg, 'configs/voc')  # a folder of the repository
    resolve_data_roots(cfg)
    assert {root for _, root in _roots(cfg)} == {
        str(REPOSITORY / 'configs/voc')
    }


def test_a_relative_root_of_the_working_directory_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs/voc').mkdir(parents=True)
    cfg = Config.fromfile(MAIN)
    set_data_root(cfg, 'configs/voc')
    resolve_data_roots(cfg)
    assert {root for _, root in _roots(cfg)} == {'configs/voc'}


def test_an_evaluators_file_follows_a_relative_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    leaf = dict(type='CocoDataset', data_root='configs/')
    cfg = Config(
        dict(
            val_dataloader=dict(dataset=leaf),
            val_evaluator=dict(ann_file='configs/val.json'),
        )
    )
    resolve_data_roots(cfg)
    assert cfg.val_evaluator.ann_file == str(REPOSITORY / 'configs/val.json')


def test_a_host_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(config, 'find_spec', lambda name: None)
    with pytest.raises(UserInputError, match='needs mmdet, which is not'):
        load_config(MAIN)
