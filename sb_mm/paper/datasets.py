"""The paper's three datasets, and what is trained on each of them."""

from dataclasses import dataclass

from torch.utils.data import Dataset


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset of the paper.

    Attributes:
        title: Its name in text.
        val_title: Of the part that the result is measured on.
        folder: Of its configs, in ``configs/``.
        suffix: How the configs' names end: batch, epochs and dataset.
        image_size: Pixels of a side of the network's input.
        train_images: How many the paper trains on.
        val_images: How many it measures on.
        classes: How many there are.
        task: What is learnt, in the words of model indices.
        metric: The result's name in MMEngine.
        factor: From that to percent.
        printed: The result's name in ``tables.json``.
        metric_title: The result's name in text.
        chance: Share of images of which a network that learnt nothing names
            the class; None where there is no such number.
    """

    title: str
    val_title: str
    folder: str
    suffix: str
    image_size: int
    train_images: int
    val_images: int
    classes: int
    task: str = 'Image Classification'
    metric: str = 'accuracy/top1'
    factor: float = 1.0
    printed: str = 'top1'
    metric_title: str = 'top-1'
    chance: float | None = None


DATASETS = {
    'imagenet': DatasetSpec(
        title='ImageNet-1k',
        val_title='ImageNet-1k',
        folder='imagenet',
        suffix='_1xb256-300e_in1k.py',
        image_size=224,
        train_images=1_281_167,
        val_images=50_000,
        classes=1000,
        chance=1 / 1000,
    ),
    'cifar10': DatasetSpec(
        title='CIFAR-10',
        val_title='CIFAR-10',
        folder='cifar10',
        suffix='_1xb128-200e_cifar10.py',
        image_size=32,
        train_images=50_000,
        val_images=10_000,
        classes=10,
        chance=1 / 10,
    ),
    'voc0712': DatasetSpec(
        title='PASCAL VOC 2007+2012',
        val_title='PASCAL VOC 2007',
        folder='voc',
        suffix='_1xb32-200e_voc0712.py',
        image_size=300,
        train_images=5_011 + 11_540,
        val_images=4_952,
        classes=20,
        task='Object Detection',
        metric='pascal_voc/mAP',
        factor=100.0,
        printed='map_percent',
        metric_title='11-point mAP',
    ),
}


def describe_data(dataset: Dataset) -> dict:
    """Return who reads a dataset's images, and how many there are.

    Returns:
        ``types`` of the classes of Python, ``images`` and ``classes``.
    """
    # Whatever holds the images, IndexedImages and its like left out.
    source = getattr(dataset, 'dataset', dataset)
    leaves = getattr(source, 'datasets', None) or [source]
    return dict(
        types=sorted({type(leaf).__name__ for leaf in leaves}),
        images=len(dataset),
        classes=len(dataset.metainfo.get('classes') or ()),
    )
