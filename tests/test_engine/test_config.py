"""One option reaches every loader, from any working directory."""

import pytest
from mmengine.config import Config

from sb_mm.engine import config
from sb_mm.engine.config import dataset_configs, load_config, set_data_root
from sb_mm.errors import UserInputError

from .conftest import MAIN, REPOSITORY


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


def _coco(root):
    leaf = dict(type='CocoDataset', data_root=root)
    file = f'{root}/annotations/val.json'
    return Config(
        dict(
            train_dataloader=dict(
                dataset=dict(type='RepeatDataset', dataset=leaf)
            ),
            val_evaluator=dict(ann_file=file),
            test_evaluator=[dict(ann_file=file)],
        )
    )


@pytest.mark.parametrize(
    ('before', 'root', 'after'),
    [
        ('data/coco', 'elsewhere', 'elsewhere'),
        ('data', 'data/coco', 'data/coco'),
        # A folder of the repository, seen from another one.
        ('configs/voc', None, f'{REPOSITORY}/configs/voc'),
        ('data', 'configs/voc', f'{REPOSITORY}/configs/voc'),
        # One of the working directory wins.
        ('configs', None, 'configs'),
    ],
)
def test_wrapped_datasets_and_annotation_files_follow(
    tmp_path, monkeypatch, before, root, after
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').mkdir()
    cfg = _coco(before)
    set_data_root(cfg, root)
    assert _roots(cfg) == [('train_dataloader', after)]
    file = f'{after}/annotations/val.json'
    assert cfg.val_evaluator.ann_file == file
    assert cfg.test_evaluator[0].ann_file == file


def test_a_host_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(config, 'find_spec', lambda name: None)
    with pytest.raises(UserInputError, match='needs mmdet, which is not'):
        load_config(MAIN)
