"""Records, and trainings that take a second, of ten classes of noise."""

import numpy as np
import pytest
from PIL import Image

from sb_mm.paper.cells import find_cell
from sb_mm.paper.job import Job
from sb_mm.paper.records import Record

CLASSES = 10


@pytest.fixture(scope='session')
def make_record():
    """Return a function that makes the record of a full training."""

    def make(cell_id, final=91.0, **changes):
        spec = find_cell(cell_id).spec
        place = dict(hardware='GPU', commit='abc')
        start = dict(date='2026-01-01T10:00:00+00:00', environment=place)
        fields = dict(
            cell=cell_id,
            seed=0,
            options={},
            train=dict(images=spec.train_images, classes=spec.classes),
            val=dict(images=spec.val_images, classes=spec.classes),
            epochs=200,
            batch=128,
            parameters=1_440_510,
            starts=[start],
            history=[[199, 90.0], [200, final]],
            final=final,
            hours=1.0,
        )
        return Record(**{**fields, **changes})

    return make


@pytest.fixture(scope='session')
def cifar(tmp_path_factory):
    """Folder of a CIFAR-10 of 20 and 10 images in class folders."""
    root = tmp_path_factory.mktemp('cifar')
    rng = np.random.default_rng(0)
    for i in range(30):
        split = 'train' if i < 20 else 'test'
        folder = root / split / f'class{i % CLASSES}'
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
    return str(root)


@pytest.fixture
def make_job(cifar, tmp_path):
    """Return a function that makes a short job with batches of 8 images."""

    def make(cell='t6-x0.35-static', seed=0, epochs=1, options=(), **settings):
        options = {
            'train_dataloader.batch_size': 8,
            'train_cfg.max_epochs': epochs,
            **dict(options),
        }
        settings = dict(data_root=cifar, out=tmp_path / 'out') | settings
        return Job(find_cell(cell), seed, options, **settings)

    return make
