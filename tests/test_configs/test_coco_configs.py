"""The COCO configs train and are evaluated by mmdet's own parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from sb_mm.engine.config import load_config
from sb_mm.engine.runner import train

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SSD = CONFIGS / 'coco/ssdlite_mobilenetv2-sb-w1.0_8xb24-600e_coco.py'
RETINANET = CONFIGS / 'coco/retinanet_mobilenetv2-sb_fpn_1xb16-1x_coco.py'
CUSTOM = CONFIGS / 'coco/ssd_sb_custom_coco.py'
# What makes a run fit for a test; nothing of the model.
SHORT = {
    'train_cfg.max_epochs': 1,
    'train_cfg.val_interval': 1,
    'train_dataloader.batch_size': 4,
    **{
        f'{loader}_dataloader.{key}': value
        for loader in ('train', 'val', 'test')
        for key, value in (('num_workers', 0), ('persistent_workers', False))
    },
}


def write_coco(root, file, images, classes, count=4):
    """Make images of one object each, and their annotations."""
    (root / images).mkdir(parents=True, exist_ok=True)
    (root / file).parent.mkdir(exist_ok=True)
    content = dict(
        images=[
            dict(id=i, file_name=f'{i}.jpg', width=96, height=64)
            for i in range(count)
        ],
        annotations=[
            dict(
                id=i,
                image_id=i,
                category_id=10 * (i % len(classes)) + 3,
                bbox=[8, 4, 60, 50],
                area=3000,
                iscrowd=0,
            )
            for i in range(count)
        ],
        # As in COCO, their numbers have gaps.
        categories=[
            dict(id=10 * i + 3, name=name) for i, name in enumerate(classes)
        ],
    )
    rng = np.random.default_rng(0)
    for image in content['images']:
        pixels = rng.integers(0, 256, (64, 96, 3), np.uint8)
        Image.fromarray(pixels).save(root / images / image['file_name'])
    (root / file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('config', 'options'),
    [
        (
            SSD,
            {
                'train_dataloader.dataset.times': 1,
                'train_dataloader.dataset.dataset.filter_cfg.min_size': 1,
            },
        ),
        (
            RETINANET,
            {
                'train_dataloader.dataset.filter_cfg.min_size': 1,
                'train_dataloader.dataset.pipeline.2.scale': (96, 64),
                'val_dataloader.dataset.pipeline.1.scale': (96, 64),
            },
        ),
    ],
    ids=['ssdlite', 'retinanet'],
)
def test_one_iteration_on_coco(config, options, tmp_path):
    root = tmp_path / 'coco'
    for split in ('train2017', 'val2017'):
        file = f'annotations/instances_{split}.json'
        write_coco(root, file, split, CocoDataset.METAINFO['classes'])
    options = {**SHORT, **options, 'model.test_cfg.score_thr': -1.0}
    options['visualizer.name'] = tmp_path.name
    metrics = train(
        load_config(
            config, options, data_root=str(root), work_dir=str(tmp_path / 'w')
        )
    )
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    assert (tmp_path / 'w/best_coco_bbox_mAP_epoch_1.pth').is_file()


def test_one_iteration_on_own_classes_in_coco_s_format(tmp_path):
    root, classes = tmp_path / 'mine', ('square', 'disc', 'bar')
    for name in ('a/train.json', 'a/val.json'):
        write_coco(root, name, 'images', classes)
    text = CUSTOM.read_text()
    for old, new in (
        ("'data/my_coco/'", repr(f'{root}/')),
        ("'annotations/train.json'", "'a/train.json'"),
        ("'annotations/val.json'", "'a/val.json'"),
        ("('cat', 'dog')", str(classes)),
        ("'../ssd_sb_voc.py'", repr(str(CONFIGS / 'ssd_sb_voc.py'))),
    ):
        assert old in text
        text = text.replace(old, new)
    config = tmp_path / 'mine.py'
    config.write_text(text)
    options = {**SHORT, 'model.test_cfg.score_thr': -1.0}
    options['visualizer.name'] = tmp_path.name
    work_dir = tmp_path / 'w'
    metrics = train(load_config(config, options, work_dir=str(work_dir)))
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    content = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    assert content['meta']['dataset_meta']['classes'] == classes
    # Four classes with the background, six priors a cell.
    last = content['state_dict']['bbox_head.cls_convs.5.1.weight']
    assert len(last) == 4 * 6


def test_a_data_root_moves_the_evaluator_s_file_too(tmp_path):
    cfg = load_config(CUSTOM, data_root=str(tmp_path))
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.ann_file == f'{tmp_path}/annotations/val.json'


def test_the_ssdlite_is_set_up_as_mmdet_s_own():
    ours = Config.fromfile(SSD)
    theirs = get_config(
        'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'
    )
    for key in ('optim_wrapper', 'auto_scale_lr', 'train_cfg'):
        assert {**theirs[key], **ours[key]} == ours[key], key
    for key in ('strides', 'min_sizes', 'max_sizes', 'ratios'):
        generators = [
            c.model.bbox_head.anchor_generator[key] for c in (ours, theirs)
        ]
        assert generators[0] == generators[1], key


def test_the_metafile_counts_the_parameters():
    meta = yaml.safe_load((CONFIGS / 'coco/metafile.yml').read_text())
    readme = (CONFIGS / 'coco/README.md').read_text()
    files = {SSD.stem, RETINANET.stem}
    assert {m['Name'] for m in meta['Models']} == files
    for model in meta['Models']:
        cfg = Config.fromfile(CONFIGS.parent / model['Config'])
        init_default_scope('mmdet')
        with torch.device('meta'):
            network = MODELS.build(cfg.model)
        count = sum(p.numel() for p in network.parameters())
        assert model['Metadata']['Parameters'] == count
        assert f'| {count:,} |' in readme


@pytest.mark.parametrize(
    'file', sorted((CONFIGS / 'coco').glob('*.py')), ids=lambda p: p.stem
)
def test_every_config_says_that_the_paper_has_no_coco_numbers(file):
    lines = file.read_text().splitlines()
    comment = ' '.join(line[2:] for line in lines[:3])
    assert 'arXiv:2103.13080 has no numbers' in comment
