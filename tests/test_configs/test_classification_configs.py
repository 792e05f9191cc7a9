"""The configs of ImageNet and CIFAR-10: recipes, training, one forward."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from sb_mm.engine.on_device import use_device_data

from .learning_rates import learning_rates

pytest.importorskip('mmpretrain')

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
IMAGENET = sorted((CONFIGS / 'imagenet').glob('*.py'))
CIFAR = sorted((CONFIGS / 'cifar10').glob('*.py'))
every_config = pytest.mark.parametrize(
    'path', IMAGENET + CIFAR, ids=lambda p: p.stem
)


@every_config
def test_the_recipe_is_the_papers(path):
    cfg = Config.fromfile(path)
    imagenet = path in IMAGENET
    assert cfg.optim_wrapper.optimizer == dict(
        type='SGD',
        lr=0.1,
        momentum=0.9,
        weight_decay=4e-5 if imagenet else 5e-4,
    )
    assert cfg.train_dataloader.batch_size == (256 if imagenet else 128)
    assert cfg.train_cfg.max_epochs == (300 if imagenet else 200)
    assert cfg.model.head.num_classes == (1000 if imagenet else 10)
    # Nothing of it is lost when MMEngine writes it for --resume.
    Config.fromstring(cfg.pretty_text, '.py')


@pytest.mark.parametrize(
    'name',
    [
        'imagenet/mnasnet-sb-w0.5_1xb256-300e_in1k.py',
        'imagenet/shufflenetv2-dyconv-w0.5_1xb256-300e_in1k.py',
        'imagenet/mobilenetv2-se-w0.35_1xb256-300e_in1k.py',
        'cifar10/mobilenetv2-dyconv-w0.35_1xb128-200e_cifar10.py',
    ],
)
def test_a_classifier_learns_a_batch(name):
    cfg = Config.fromfile(CONFIGS / name)
    size, classes = (64, 1000) if 'imagenet' in name else (32, 10)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    images = torch.randn(8, 3, size, size)
    labels = torch.arange(8) % classes
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(classes), rel=0.2)
    assert losses[-1] < 0.9 * losses[0]


def test_images_are_prepared_as_the_official_example_does():
    cfg = Config.fromfile(IMAGENET[0])
    load, crop, flip, _ = cfg.train_dataloader.dataset.pipeline
    assert load.type == 'LoadImageFromFile'
    assert crop.scale == 224
    assert crop.crop_ratio_range == (0.08, 1.0)
    assert crop.aspect_ratio_range == (3 / 4, 4 / 3)
    assert flip.prob == 0.5
    _, resize, centre, _ = cfg.val_dataloader.dataset.pipeline
    assert (resize.scale, resize.edge, centre.crop_size) == (256, 'short', 224)


def test_the_example_on_the_device_is_the_same_training():
    folder = CONFIGS / 'cifar10'
    example = Config.fromfile(folder / 'mobilenetv2-sb-w0.35_on-device.py')
    cfg = Config.fromfile(
        folder / 'mobilenetv2-sb-w0.35_1xb128-200e_cifar10.py'
    )
    use_device_data(cfg)
    written, derived = (
        {
            **(c.model.get('data_preprocessor') or c.data_preprocessor),
            **dict(num_classes=None, to_rgb=None, channels_last=None),
        }
        for c in (example, cfg)
    )
    assert written == derived
    for name in ('train', 'val', 'test'):
        a, b = (c[f'{name}_dataloader'] for c in (example, cfg))
        assert a.dataset.dataset == b.dataset.dataset
        assert {**a, 'batch_size': 0} == {**b, 'batch_size': 0}
    assert example.train_dataloader.batch_size == 128
    for name in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'val_cfg'):
        assert example[name] == cfg[name]
    assert example.model.backbone == cfg.model.backbone


def test_cifar_images_are_cropped_from_36_pixels():
    cfg = Config.fromfile(CIFAR[0])
    crop, flip, _ = cfg.train_dataloader.dataset.pipeline
    assert (crop.crop_size, crop.padding, flip.prob) == (32, 2, 0.5)
    assert [s.type for s in cfg.val_dataloader.dataset.pipeline] == [
        'PackInputs'
    ]


@pytest.mark.parametrize('epochs', [1, 3, 300])
def test_the_rate_of_imagenet_falls_linearly_to_0(epochs, tmp_path):
    last = 2 * epochs - 1
    expected = [0.1 * (1 - i / last) for i in range(last + 1)]
    found = learning_rates(IMAGENET[0], epochs, tmp_path)
    assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize('epochs', [1, 4])
def test_the_rate_of_cifar_falls_as_a_cosine(epochs, tmp_path):
    expected = [
        0.05 * (1 + math.cos(math.pi * (i // 2) / epochs))
        for i in range(2 * epochs)
    ]
    found = learning_rates(CIFAR[0], epochs, tmp_path)
    assert found == pytest.approx(expected, abs=1e-8)
