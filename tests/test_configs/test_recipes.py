"""Every config has its size and follows its recipe."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from sb_mm.engine.config import load_config

from .learning_rates import learning_rates

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
IMAGENET = 'imagenet/mobilenetv2-sb-w1.0_1xb256-300e_in1k.py'
CIFAR = 'cifar10/mobilenetv2-sb-w0.35_1xb128-200e_cifar10.py'
COCO = 'coco/ssdlite_mobilenetv2-sb-w1.0_8xb24-600e_coco.py'
RETINANET = 'coco/retinanet_mobilenetv2-sb_fpn_1xb16-1x_coco.py'


def read(name):
    return Config.fromfile(CONFIGS / name)


def count(cfg):
    init_default_scope('mmdet')
    with torch.device('meta'):
        model = MODELS.build(cfg)
    return sum(p.numel() for p in model.parameters())


def test_the_headline_is_sb_at_width_1():
    assert count(read('ssd_sb_voc.py').model) == 11_413_134


def test_the_metafile_of_coco_counts_the_parameters():
    """Those of the paper's datasets are tested with its tables."""
    meta = yaml.safe_load((CONFIGS / 'coco/metafile.yml').read_text())
    files = {Path(COCO).stem, Path(RETINANET).stem}
    assert {m['Name'] for m in meta['Models']} == files
    for model in meta['Models']:
        cfg = Config.fromfile(CONFIGS.parent / model['Config'])
        assert model['Metadata']['Parameters'] == count(cfg.model)


# Rate, weight decay, batch, epochs, classes.
RECIPES = {
    'voc/ssdlite_*': (0.01, 4e-5, 32, 200, 20),
    'imagenet/*': (0.1, 4e-5, 256, 300, 1000),
    'cifar10/*': (0.1, 5e-4, 128, 200, 10),
}


@pytest.mark.parametrize('files', RECIPES)
def test_the_recipe_is_the_papers(files):
    lr, decay, batch, epochs, classes = RECIPES[files]
    found = sorted(CONFIGS.glob(f'{files}.py'))
    assert len(found) > 15
    for cfg in map(Config.fromfile, found):
        sgd = dict(type='SGD', lr=lr, momentum=0.9, weight_decay=decay)
        cfg.optim_wrapper.optimizer.pop('fused', None)
        assert cfg.optim_wrapper.optimizer == sgd
        assert cfg.train_dataloader.batch_size == batch
        assert cfg.train_cfg.max_epochs == epochs
        head = cfg.model.get('bbox_head') or cfg.model.head
        assert head.num_classes == classes


@pytest.mark.parametrize(
    'file', ['ssd_sb_voc.py', 'voc/ssd_sb_finetune.py', IMAGENET, CIFAR, COCO]
)
def test_nothing_is_lost_when_mmengine_writes_a_config_for_a_resume(file):
    cfg = read(file)
    again = Config.fromstring(cfg.pretty_text, '.py')
    assert again.to_dict() == cfg.to_dict()


def cosine(rate, epochs, batches):
    return [
        rate * (1 + math.cos(math.pi * (i // batches) / epochs)) / 2
        for i in range(batches * epochs)
    ]


@pytest.mark.parametrize(
    ('file', 'epochs', 'expected'),
    [
        (IMAGENET, 1, [0.1, 0]),
        (IMAGENET, 3, [0.1, 0.08, 0.06, 0.04, 0.02, 0]),
        (CIFAR, 1, cosine(0.1, 1, 2)),
        (CIFAR, 4, cosine(0.1, 4, 2)),
        ('ssd_sb_voc.py', 4, cosine(0.01, 4, 2)),
    ],
)
def test_the_rate_falls_over_any_length(file, epochs, expected, tmp_path):
    found = learning_rates(CONFIGS / file, epochs, tmp_path)
    assert found == pytest.approx(expected, abs=1e-8)


# ---- images ------------------------------------------------------------


def test_imagenet_is_prepared_as_the_official_example_does():
    cfg = read(IMAGENET)
    _, crop, flip, _ = cfg.train_dataloader.dataset.pipeline
    assert (crop.scale, crop.crop_ratio_range) == (224, (0.08, 1.0))
    assert crop.aspect_ratio_range == (3 / 4, 4 / 3)
    assert flip.prob == 0.5
    _, resize, centre, _ = cfg.val_dataloader.dataset.pipeline
    assert (resize.scale, resize.edge, centre.crop_size) == (256, 'short', 224)


def test_cifar_images_are_cropped_from_36_pixels_on_the_device():
    cfg = read(CIFAR)
    step = cfg.data_preprocessor
    assert (step.crop_size, step.padding, step.flip_prob) == (32, 2, 0.5)
    assert step.mean == [125.307, 122.961, 113.8575]
    assert step.std == [51.5865, 50.847, 51.255]
    # Without it, a resume would draw the first epochs' crops again.
    assert cfg.custom_hooks == [dict(type='sb_mm.EpochSeedHook')]
    data = [cfg[f'{n}_dataloader'].dataset for n in ('train', 'val')]
    assert [d.dataset.split for d in data] == ['train', 'test']
    assert cfg.test_dataloader.dataset == {
        **data[1].dataset,
        'pipeline': [dict(type='PackInputs')],
    }


def test_the_ssdlite_of_coco_is_set_up_as_mmdet_s_own():
    ours = read(COCO)
    theirs = get_config(
        'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'
    )
    for key in ('optim_wrapper', 'auto_scale_lr', 'train_cfg'):
        assert {**theirs[key], **ours[key]} == ours[key], key
    a, b = (c.model.bbox_head.anchor_generator for c in (ours, theirs))
    for key in ('strides', 'min_sizes', 'max_sizes', 'ratios'):
        assert a[key] == b[key], key


def test_a_data_root_moves_the_evaluator_s_file_too(tmp_path):
    path = CONFIGS / 'coco/ssd_sb_custom_coco.py'
    cfg = load_config(path, data_root=str(tmp_path))
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.ann_file == f'{tmp_path}/annotations/val.json'
