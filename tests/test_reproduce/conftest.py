"""Trainings that take a second: a few images in CIFAR-10's format."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sb_mm.datasets.packed_cifar10 import PackedCIFAR10

# 16 images in batches of 8; the counts are deviations of every run.
OPTIONS = {'train_dataloader.batch_size': 8}
COUNTS = dict(train=(10, 6), test=(10,))


def _write_part(path: Path, count: int, rng: np.random.Generator) -> None:
    files = []
    for image in rng.integers(0, 256, (count, 32, 32, 3), np.uint8):
        file = io.BytesIO()
        Image.fromarray(image).save(file, 'WEBP', lossless=True)
        files.append(file.getvalue())
    np.savez(
        path,
        webp=np.frombuffer(b''.join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.arange(count, dtype=np.uint8) % 10,
        classes=np.array(PackedCIFAR10.METAINFO['classes']),
    )


@pytest.fixture(scope='session')
def cifar(tmp_path_factory) -> str:
    """Folder of a packed CIFAR-10 with 16 and 10 images."""
    folder = tmp_path_factory.mktemp('cifar')
    rng = np.random.default_rng(0)
    names = ('train-0.npz', 'train-1.npz', 'test.npz')
    for name, count in zip(names, (10, 6, 10), strict=True):
        _write_part(folder / name, count, rng)
    return str(folder)
