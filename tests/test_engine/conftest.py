"""Trainings small enough for a test: SB-SSDLite x0.35, and LeNet."""

import itertools
import json
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from torch import nn
from yapf.yapflib import yapf_api

_NUMBERS = itertools.count()
REPOSITORY = Path(__file__).resolve().parents[2]
MAIN = REPOSITORY / 'configs/ssd_sb_voc.py'
CUSTOM = REPOSITORY / 'configs/voc/ssd_sb_custom.py'
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


def tiny_runner(
    model: nn.Module, folder: Path, length: int, **changes
) -> Runner:
    """A training of 2 epochs of `length` images, which writes nothing."""
    settings = dict(
        model=model,
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=list(range(length)),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
            num_workers=0,
        ),
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
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='LeNet5'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=LABELS,
            in_channels=120,
            loss=dict(type='CrossEntropyLoss'),
            topk=(1,),
            # Else all images are of one class.
            init_cfg=dict(type='Normal', layer='Linear', std=5.0),
        ),
    )
    settings = dict(
        default_scope='mmpretrain',
        custom_imports=dict(
            imports=['sb_mm.models'], allow_failed_imports=False
        ),
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
    from sb_mm.engine.cli import run_tool

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
    from sb_mm.engine.checks.data import check_data
    from sb_mm.errors import UserInputError

    with pytest.raises(UserInputError) as caught:
        check_data(cfg, TRAINING)
    message = str(caught.value)
    assert '\n' not in message
    return message


def assert_says(message: str, *words: str) -> None:
    assert [word for word in words if word not in message] == [], message


@pytest.fixture
def coco(tmp_path):
    """Write a dataset in COCO's format and return a config for it."""
    content = dict(
        images=[
            dict(id=i, file_name=f's/{i}.png', width=8, height=6)
            for i in range(3)
        ],
        categories=[dict(id=7, name='cat'), dict(id=5, name='dog')],
        annotations=[
            dict(id=i, image_id=i, category_id=7, bbox=[1, 1, 4, 4], area=16)
            for i in range(3)
        ],
    )

    def make(change=lambda content: None, classes=('cat', 'dog')):
        (tmp_path / 'images/s').mkdir(parents=True, exist_ok=True)
        for i in range(3):
            Image.new('RGB', (8, 6)).save(tmp_path / f'images/s/{i}.png')
        change(content)
        (tmp_path / 'a.json').write_text(json.dumps(content))
        data = dict(
            type='CocoDataset',
            data_root=str(tmp_path),
            ann_file='a.json',
            data_prefix=dict(img='images'),
            metainfo=dict(classes=classes),
        )
        model = dict(bbox_head=dict(num_classes=2))
        return data_config('mmdet', model, [dict(data) for _ in range(3)])

    return make
