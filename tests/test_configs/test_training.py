"""What the configs build trains and predicts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from PIL import Image

from sb_mm.engine.config import load_config
from sb_mm.engine.runner import train

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


# ---- classifiers -------------------------------------------------------


@pytest.mark.parametrize(
    'name',
    [
        'imagenet/mnasnet-sb-w0.5_1xb256-300e_in1k.py',
        'imagenet/shufflenetv2-dyconv-w0.5_1xb256-300e_in1k.py',
        'cifar10/mobilenetv2-static-w0.35_1xb128-200e_cifar10.py',
    ],
)
def test_a_classifier_learns_a_batch(name):
    cfg = Config.fromfile(CONFIGS / name)
    classes = cfg.model.head.num_classes
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(classes), rel=0.2)
    assert losses[-1] < 0.95 * losses[0]


# ---- detectors ---------------------------------------------------------


@pytest.mark.parametrize('name', ['faster_rcnn', 'retinanet'])
def test_a_stock_detector_trains_and_predicts_on_our_network(name):
    file = f'voc/{name}_mobilenetv2-sb_fpn_1x_voc0712.py'
    cfg = Config.fromfile(CONFIGS / file)
    options = cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg)
    options.score_thr = 0.0  # no class is likely yet
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    torch.manual_seed(0)
    batch = demo_mm_inputs(2, (3, 64, 96), [2, 2], num_classes=20)
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    model.parse_losses(losses)[0].backward()
    gradients = [p.grad for p in model.backbone.parameters()]
    used = [g for g in gradients if g is not None]
    assert all(g.isfinite().all() and g.any() for g in used)
    assert len(used) > 300
    assert len(used) == len(gradients) or cfg.find_unused_parameters

    found = model.eval().test_step(batch)[0].pred_instances
    assert len(found) > 10
    assert found.labels.max() < 20
    assert found.bboxes.isfinite().all()


# ---- COCO's format -----------------------------------------------------

# What makes a run fit for a test; nothing of the model.
SHORT = {
    'train_cfg.max_epochs': 1,
    'train_cfg.val_interval': 1,
    'train_dataloader.batch_size': 2,
    'model.test_cfg.score_thr': -1.0,
    'model.test_cfg.max_per_img': 20,
}
for _loader in ('train', 'val', 'test'):
    SHORT[f'{_loader}_dataloader.num_workers'] = 0
    SHORT[f'{_loader}_dataloader.persistent_workers'] = False


def write_coco(root, file, images, classes):
    """Make two images of one object each, and their annotations."""
    (root / images).mkdir(parents=True, exist_ok=True)
    (root / file).parent.mkdir(exist_ok=True)
    # As in COCO, the numbers of the categories have gaps.
    categories = [dict(id=10 * i + 3, name=n) for i, n in enumerate(classes)]
    content = dict(images=[], annotations=[], categories=categories)
    rng = np.random.default_rng(0)
    for i in range(2):
        name = f'{i}.jpg'
        pixels = rng.integers(0, 256, (64, 96, 3), np.uint8)
        Image.fromarray(pixels).save(root / images / name)
        image = dict(id=i, file_name=name, width=96, height=64)
        content['images'].append(image)
        box = dict(bbox=[8, 4, 60, 50], area=3000, iscrowd=0)
        box.update(id=i + 1, image_id=i, category_id=10 * i + 3)
        content['annotations'].append(box)
    (root / file).write_text(json.dumps(content))


def run_short(file, work_dir, options=(), **settings):
    """Train a config for an iteration; return the mean average precision."""
    options = {**SHORT, 'visualizer.name': str(work_dir), **dict(options)}
    cfg = load_config(file, options, work_dir=str(work_dir), **settings)
    return train(cfg)['coco/bbox_mAP']


def test_one_iteration_on_coco(tmp_path):
    for split in ('train2017', 'val2017'):
        annotations = f'annotations/instances_{split}.json'
        classes = CocoDataset.METAINFO['classes']
        write_coco(tmp_path, annotations, split, classes)
    options = {
        'train_dataloader.dataset.times': 1,
        'train_dataloader.dataset.dataset.filter_cfg.min_size': 1,
    }
    file = CONFIGS / 'coco/ssdlite_mobilenetv2-sb-w1.0_8xb24-600e_coco.py'
    work_dir = tmp_path / 'w'
    found = run_short(file, work_dir, options, data_root=str(tmp_path))
    assert 0 <= found <= 1
    assert (work_dir / 'best_coco_bbox_mAP_epoch_1.pth').is_file()


def test_one_iteration_on_own_classes_in_coco_s_format(tmp_path):
    root, classes = tmp_path / 'mine', ('square', 'disc', 'bar')
    for split in ('train', 'val'):
        write_coco(root, f'annotations/{split}.json', 'images', classes)
    text = (CONFIGS / 'coco/ssd_sb_custom_coco.py').read_text()
    for old, new in (
        ("'data/my_coco/'", repr(f'{root}/')),
        ("('cat', 'dog')", str(classes)),
        ("'../ssd_sb_voc.py'", repr(str(CONFIGS / 'ssd_sb_voc.py'))),
    ):
        assert old in text
        text = text.replace(old, new)
    config = tmp_path / 'mine.py'
    config.write_text(text)
    assert 0 <= run_short(config, tmp_path / 'w') <= 1
    content = torch.load(tmp_path / 'w/epoch_1.pth', weights_only=False)
    assert content['meta']['dataset_meta']['classes'] == classes
    # Four classes with the background, six priors a cell.
    last = content['state_dict']['bbox_head.cls_convs.5.1.weight']
    assert len(last) == 4 * 6
