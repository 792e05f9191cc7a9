"""The paper's tables as data, and the three datasets in them."""

import json
from dataclasses import dataclass
from importlib.resources import files

# Titles, datasets, rows and claims of the ten tables.
TABLES = json.loads(files(__package__).joinpath('tables.json').read_text())


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset of the paper, and how it is trained on.

    Attributes:
        folder: Of its configs, in ``configs/``.
        suffix: How the configs' names end: batch, epochs and dataset.
        image_size: Pixels of a side of the network's input.
        train_images: How many the paper trains on.
        val_images: How many it measures on.
        classes: How many there are.
        printed: The result's name in ``tables.json``.
        title: The result's name in text.
        metric: The result's name in MMEngine.
        factor: From that to percent.
    """

    folder: str
    suffix: str
    image_size: int
    train_images: int
    val_images: int
    classes: int
    printed: str = 'top1'
    title: str = 'top-1'
    metric: str = 'accuracy/top1'
    factor: float = 1.0


DATASETS = {
    name: DatasetSpec(**fields) for name, fields in TABLES['datasets'].items()
}
