"""Trainings small enough for a test: SB-SSDLite x0.35, and LeNet."""

import itertools
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor, nn
from yapf.yapflib import yapf_api

from sb_mm.engine.checks.data import check_data
from sb_mm.engine.cli import run_tool
from sb_mm.errors import UserInputError

_NUMBERS = itertools.count()
REPOSITORY = Path(__file__).resolve().parents[2]
MAIN = REPOSITORY / 'configs/ssd_sb_voc.py'
CUSTOM = REPOSITORY / 'configs/voc/ssd_sb_custom.py'
(CIFAR,) = REPOSITORY.glob('configs/cifar10/mobilenetv2-sb-w0.35_*.py')
# What makes a run fit for a test; nothing of the model.
SHORT = (
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=1',
    *(
        f'{loader}_dataloader.{key}'
        for loader in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ),
    'model.backbone.widen_factor=0.35',
    'model.neck.in_channels=(192,1280)',
    'model.bbox_head.in_channels=(192,1280,512,256,256,64)',
    'randomness.seed=0',
)


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Let trainings start at once: without git, compilers and yapf."""
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)
    monkeypatch.setattr('mmengine.runner.runner.get_git_hash', lambda: '')
    monkeypatch.setattr(
        yapf_api, 'FormatCode', lambda text, **_: (text, False)
    )


@pytest.fixture
def devkit(tiny_devkit) -> Path:
    """A devkit as configs/voc/ssd_sb_custom.py expects it."""
    return tiny_devkit(lists={'train': ['a', 'b', 'c'], 'val': ['a', 'd']})


@pytest.fixture
def config(devkit, tmp_path) -> Path:
    """ssd_sb_custom.py with its two lines changed, in the user's folder."""
    text = CUSTOM.read_text()
    text = text.replace("'data/my_devkit/'", repr(f'{devkit}/'))
    text = text.replace("('cat', 'dog')", "('square', 'disc')")
    text = text.replace("'../ssd_sb_voc.py'", repr(str(MAIN)))
    # MMEngine keeps one visualiser a name and process: without this, the next
    # test's curves would go to the folder of the first one.
    text += f'visualizer = dict(name={tmp_path.name!r})\n'
    path = tmp_path / 'mine.py'
    path.write_text(text)
    return path


class Tiny(BaseModel):
    """A network of one weight, and its loss."""

    def __init__(self, loss: Callable[[nn.Parameter], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.loss_of = loss

    def forward(self, inputs, data_samples=None, mode='loss'):
        if mode == 'loss':
            return dict(loss=self.loss_of(self.weight))
        return [BaseDataElement(weight=self.weight.item())]


def loader_of(dataset: list, **settings) -> dict:
    """A dataloader that keeps the order."""
    sampler = dict(type='DefaultSampler', shuffle=False)
    return dict(dataset=dataset, sampler=sampler, num_workers=0) | settings


VALIDATION = dict(val_dataloader=loader_of([0]), val_cfg={}, val_evaluator=[])


def tiny_runner(
    model: BaseModel, folder: Path, length: int, **changes
) -> Runner:
    """A training of 2 epochs of `length` images, which writes nothing."""
    settings = dict(
        model=model,
        work_dir=str(folder),
        train_dataloader=loader_of([*range(length)], batch_size=1),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        default_hooks=dict(checkpoint=None, logger=None),
        log_level='ERROR',
        # Runners of one name share their logs and metrics.
        experiment_name=f'{folder} {next(_NUMBERS)}',
    )
    return Runner(**settings | changes)


IMAGES = dict(train=24, val=22)
LABELS = 6


@pytest.fixture(scope='session')
def images(tmp_path_factory) -> Path:
    """Random grey images of six classes, of which LeNet takes them."""
    root = tmp_path_factory.mktemp('images')
    for split, count in IMAGES.items():
        rng = np.random.default_rng(count)
        for index, label in enumerate(rng.integers(LABELS, size=count)):
            path = root / split / f'{label}/{index}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return root


def images_loader(root: Path, split: str, *transforms: dict) -> dict:
    """A dataloader of `images`, in batches of 5."""
    read = dict(type='LoadImageFromFile', color_type='grayscale')
    return dict(
        batch_size=5,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
        dataset=dict(
            type='CustomDataset',
            data_root=str(root),
            data_prefix=split,
            pipeline=[read, *transforms, dict(type='PackInputs')],
        ),
    )


def classifier(root: Path, **changes) -> Config:
    """A stock config of mmpretrain: LeNet and its images."""
    random = [
        dict(type='RandomCrop', crop_size=32, padding=4),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    ]
    head = dict(type='LinearClsHead', num_classes=LABELS, in_channels=120)
    # Else all images are of one class.
    head['init_cfg'] = dict(type='Normal', layer='Linear', std=5.0)
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='LeNet5'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(head, loss=dict(type='CrossEntropyLoss'), topk=(1,)),
    )
    settings = dict(
        default_scope='mmpretrain',
        model=model,
        data_preprocessor=dict(mean=[127.0], std=[64.0], num_classes=LABELS),
        train_dataloader=images_loader(root, 'train', *random),
        val_dataloader=images_loader(root, 'val'),
        val_evaluator=dict(type='Accuracy', topk=(1,)),
        val_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    return Config(settings | changes)


@pytest.fixture
def tool(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Run a tool as the shell would: `tool('train', ...)`.

    Returns the exit code and what went to standard error.
    """

    def run(name: str, *argv: object) -> tuple[int, str]:
        words = [str(word) for word in argv]
        monkeypatch.setattr('sys.argv', [f'{name}.py', *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_tool(runpy.run_path(REPOSITORY / f'tools/{name}.py')['main'])
        return stop.value.code, capsys.readouterr().err

    return run


TRAINING = ('train_dataloader', 'val_dataloader')


def data_config(
    scope: str, model: dict, datasets: list[dict], **more
) -> Config:
    """A config of nothing but a model and loaders."""
    names = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    loaders = {
        name: dict(dataset=dataset)
        for name, dataset in zip(names, datasets, strict=False)
    }
    return Config(dict(default_scope=scope, model=model, **loaders, **more))


def error_of(cfg: Config) -> str:
    """What the check of the data says."""
    with pytest.raises(UserInputError) as caught:
        check_data(cfg, TRAINING)
    message = str(caught.value)
    assert '\n' not in message
    return message


def assert_says(message: str, *words: str) -> None:
    assert [word for word in words if word not in message] == [], message
