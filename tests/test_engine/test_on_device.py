"""From a host's config to images on the device: configs, loops, runs."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

pytest.importorskip('mmpretrain')

from sb_mm.engine import loops  # noqa: E402
from sb_mm.engine.config import read_config  # noqa: E402
from sb_mm.engine.on_device import (  # noqa: E402
    use_device_data,
)
from sb_mm.errors import UserInputError  # noqa: E402

from .conftest import REPOSITORY  # noqa: E402

SB = REPOSITORY / 'configs/cifar10/mobilenetv2-sb-w0.35_1xb128-200e_cifar10.py'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
CLASSES = 6
TRAIN, VAL = 24, 22
TOP1 = dict(type='Accuracy', topk=(1,))
NUMBERS = itertools.count()


def _save_images(folder, count):
    rng = np.random.default_rng(count)
    for index, label in enumerate(rng.integers(CLASSES, size=count)):
        path = folder / f'{label}/{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Random grey images of six classes, of which LeNet takes them."""
    root = tmp_path_factory.mktemp('images')
    _save_images(root / 'train', TRAIN)
    _save_images(root / 'val', VAL)
    return root


def _loader(root, split, transforms, batch_size):
    read = dict(type='LoadImageFromFile', color_type='grayscale')
    return dict(
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
        dataset=dict(
            type='CustomDataset',
            data_root=str(root),
            data_prefix=split,
            pipeline=[read, *transforms, dict(type='PackInputs')],
        ),
    )


def _model():
    return dict(
        type='ImageClassifier',
        backbone=dict(type='LeNet5'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=CLASSES,
            in_channels=120,
            loss=dict(type='CrossEntropyLoss'),
            # Else all images are of one class.
            init_cfg=dict(type='Normal', layer='Linear', std=5.0),
        ),
    )


def classifier(root, evaluator=TOP1, **changes):
    """A stock config: LeNet and its images, read by the host."""
    random = [
        dict(type='RandomCrop', crop_size=32, padding=4),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    ]
    settings = dict(
        default_scope='mmpretrain',
        custom_imports=dict(
            imports=['sb_mm.models'], allow_failed_imports=False
        ),
        model=_model(),
        data_preprocessor=dict(mean=[127.0], std=[64.0], num_classes=CLASSES),
        train_dataloader=_loader(root, 'train', random, 5),
        val_dataloader=_loader(root, 'val', [], 5),
        val_evaluator=evaluator,
        val_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    return Config(settings | changes)


@pytest.fixture
def build(tmp_path):
    """Build the runner of a config."""

    def run(cfg):
        cfg.work_dir = str(tmp_path)
        # Runners of one name share their logs and metrics.
        cfg.experiment_name = f'{tmp_path.name}_{next(NUMBERS)}'
        cfg.default_hooks = dict(checkpoint=None, logger=None)
        return Runner.from_cfg(cfg)

    return run


class Witness(Hook):
    """Note every call in a validation, and what it brings."""

    def __init__(self):
        self.calls = []
        self.outputs = []

    def _iteration(self, name, batch_idx, data_batch):
        self.calls.append((name, batch_idx))
        assert data_batch is not None

    def before_val(self, runner):
        self.calls.append('before_val')

    def before_val_epoch(self, runner):
        self.calls.append('before_val_epoch')

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self._iteration('before', batch_idx, data_batch)

    def after_val_iter(self, runner, batch_idx, data_batch, outputs):
        self._iteration('after', batch_idx, data_batch)
        self.outputs.append(outputs)

    def after_val_epoch(self, runner, metrics):
        self.calls.append(('after_val_epoch', metrics))

    def after_val(self, runner):
        self.calls.append('after_val')


def on_device(root, *args, **changes):
    cfg = classifier(root, *args, **changes)
    use_device_data(cfg)
    return cfg


def validated(runner, **changes):
    """Validate and return the metrics and the witness."""
    witness = Witness()
    runner.register_hook(witness)
    for parameter in runner.model.parameters():
        parameter.data += changes.get('added', 0)
    return runner.val(), witness


# Validation


@pytest.mark.parametrize(
    'evaluator',
    [
        TOP1,
        dict(type='Accuracy', topk=(1, 5)),
        dict(type='Accuracy', topk=(1,), thrs=(0.0, 0.9, None)),
        [TOP1, dict(type='SingleLabelMetric', average=None)],
    ],
    ids=['top1', 'top5', 'thresholds', 'precision'],
)
def test_metrics_and_hooks_are_those_of_the_hosts_loop(
    images, build, evaluator
):
    theirs, expected = validated(build(classifier(images, evaluator)))
    runner = build(on_device(images, evaluator))
    ours, witness = validated(runner)
    assert type(runner.val_loop).__name__ == 'BatchedValLoop'
    assert ours == theirs
    assert witness.calls == expected.calls
    # 22 images in batches of 5.
    assert witness.calls.count(('after', 4)) == 1
    first = next(value for name, value in ours.items() if 'top1' in name)
    assert 0 < first < 100
    assert not runner.model.training


@pytest.mark.parametrize(
    ('evaluator', 'counts'),
    [(TOP1, [1] * 5), (dict(TOP1, topk=(1, 5)), [5, 5, 5, 5, 2])],
    ids=['top1', 'top5'],
)
def test_samples_are_made_only_if_a_metric_wants_them(
    images, build, evaluator, counts
):
    _, witness = validated(build(on_device(images, evaluator)))
    assert [len(outputs) for outputs in witness.outputs] == counts


def test_a_network_that_diverged_hits_nothing_in_either_loop(images, build):
    for cfg in (classifier(images), on_device(images)):
        metrics, _ = validated(build(cfg), added=float('nan'))
        assert metrics == {'accuracy/top1': 0.0}


def test_the_hosts_test_loop_takes_batches_of_indices(images, build):
    loader = _loader(images, 'val', [], 5)
    settings = dict(
        test_dataloader=loader, test_cfg=dict(), test_evaluator=TOP1
    )
    metrics = [
        build(make(images, **settings)).test()
        for make in (classifier, on_device)
    ]
    assert metrics[0] == metrics[1]
    assert metrics[0]['accuracy/top1'] > 0


def test_images_that_processes_cannot_share_are_refused(
    images, build, monkeypatch
):
    monkeypatch.setattr(loops, 'get_world_size', lambda: 4)
    runner = build(on_device(images))
    with pytest.raises(UserInputError, match='4 processes cannot share 22'):
        runner.train()
    assert runner.iter == 0  # not after the first epoch


def test_another_preprocessor_is_refused(images, build):
    cfg = classifier(images, val_cfg=dict(type='sb_mm.BatchedValLoop'))
    message = "needs sb_mm.OnDeviceAugmentation .* use MMEngine's ValLoop"
    with pytest.raises(UserInputError, match=message):
        build(cfg).val()


# Configs


def test_a_config_changes_where_it_must_and_nowhere_else():
    before, cfg = read_config(SB), read_config(SB)
    use_device_data(cfg)
    assert cfg.model.pop('data_preprocessor') == dict(
        type='sb_mm.OnDeviceAugmentation',
        **before.pop('data_preprocessor'),
        padding=2,
        crop_size=32,
        flip_prob=0.5,
        channels_last=False,
    )
    for name in LOADERS:
        theirs, ours = before.pop(name), cfg.pop(name)
        assert ours == dict(
            theirs,
            num_workers=0,
            persistent_workers=False,
            pin_memory=False,
            collate_fn=dict(type='sb_mm.whole_batch'),
            dataset=dict(
                type='sb_mm.IndexedImages',
                dataset=dict(theirs.dataset, pipeline=[]),
            ),
        )
    assert cfg.pop('val_cfg') == dict(type='sb_mm.BatchedValLoop')
    before.pop('val_cfg')
    assert cfg.to_dict() == before.to_dict()


def test_the_models_own_preprocessor_counts_as_in_the_host(images, build):
    own = dict(type='ClsDataPreprocessor', mean=[1.0], std=[2.0])
    cfg = classifier(images, model=_model() | dict(data_preprocessor=own))
    stock = build(cfg.copy()).model.data_preprocessor
    use_device_data(cfg)
    ours = build(cfg).model.data_preprocessor
    assert float(ours.mean) == float(stock.mean) == 1.0
    assert 'data_preprocessor' not in cfg


def _with(loader, index, **transform):
    """Put a transform into a pipeline, in the place of one or before it."""

    def change(cfg):
        pipeline = cfg[f'{loader}_dataloader'].dataset.pipeline
        end = index + (pipeline[index].type == transform['type'])
        pipeline[index:end] = [ConfigDict(transform)]

    return change


def _with_preprocessor(*absent, **given):
    def change(cfg):
        for name in absent:
            cfg.data_preprocessor.pop(name)
        cfg.data_preprocessor.update(given)

    return change


def _with_mixup(cfg):
    cfg.model.train_cfg = dict(augments=dict(type='Mixup', alpha=0.2))


def _repeated(cfg):
    loader = cfg.train_dataloader
    loader.dataset = dict(
        type='RepeatDataset', times=2, dataset=loader.dataset
    )


CROP, FLIP = dict(type='RandomCrop'), dict(type='RandomFlip')
PIPELINE = 'one RandomCrop .* one horizontal RandomFlip, .* pipeline has'
NEEDS = 'needs a data_preprocessor with mean and std'
REFUSED = {
    'another transform': (_with('train', 3, type='ColorJitter'), PIPELINE),
    'late resize': (_with('train', 3, type='Resize', scale=16), PIPELINE),
    'two crops': (_with('train', 3, **CROP, crop_size=28), PIPELINE),
    'padding': (
        _with('train', 1, **CROP, crop_size=32, padding_mode='reflect'),
        PIPELINE,
    ),
    'unequal crop': (_with('train', 1, **CROP, crop_size=(32, 2)), PIPELINE),
    'vertical flip': (
        _with('train', 2, **FLIP, prob=0.5, direction='vertical'),
        PIPELINE,
    ),
    'crop in validation': (
        _with('val', 1, **CROP, crop_size=32),
        'neither crops nor flips outside of training',
    ),
    'repeated': (_repeated, 'RepeatDataset wraps others'),
    'no mean': (_with_preprocessor('mean'), NEEDS),
    'one-hot labels': (_with_preprocessor(to_onehot=True), NEEDS),
    'mixup': (_with_mixup, NEEDS),
    'another preprocessor': (
        _with_preprocessor(type='SelfSupDataPreprocessor'),
        "Only mmpretrain's ClsDataPreprocessor .* has SelfSupDataPreproc",
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_the_device_cannot_do_is_refused(images, name):
    change, message = REFUSED[name]
    cfg = classifier(images)
    change(cfg)
    before = cfg.to_dict()
    with pytest.raises(UserInputError, match=message):
        use_device_data(cfg)
    assert cfg.to_dict() == before


def test_a_config_is_changed_once(images):
    cfg = on_device(images)
    with pytest.raises(UserInputError, match='has sb_mm.OnDeviceAug'):
        use_device_data(cfg)


# Trainings


def _weights(runner):
    return torch.cat([p.flatten() for p in runner.model.parameters()])


def test_a_training_is_reproduced_by_its_seed(images, build):
    ends = {}
    for name, seed in (('first', 3), ('second', 3), ('other', 4)):
        cfg = on_device(images, randomness=dict(seed=seed))
        cfg.optim_wrapper.optimizer.lr = 0.1
        runner = build(cfg)
        # The same start: what differs is the images.
        torch.nn.init.constant_(runner.model.head.fc.weight, 0.01)
        runner.train()
        assert runner.iter == 5
        ends[name] = _weights(runner)
    assert ends['first'].equal(ends['second'])
    assert not ends['first'].equal(ends['other'])


SEEN_HOOK = '''
"""Write down what a process of a training sees, and where it ends."""

import json
import os

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SeenHook(Hook):
    def before_train(self, runner):
        self.epochs, self.hits, self.metrics = [], [], []

    def before_train_epoch(self, runner):
        self.epochs.append([])

    def before_val_epoch(self, runner):
        self.hits.append([])

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.epochs[-1] += data_batch['indices'].tolist()

    def after_val_iter(self, runner, batch_idx, data_batch, outputs):
        (sample,) = outputs
        hits = (sample.pred_label == sample.gt_label).tolist()
        indices = data_batch['indices'].tolist()
        self.hits[-1] += list(zip(indices, hits, strict=True))

    def after_val_epoch(self, runner, metrics):
        self.metrics.append(metrics)

    def after_train(self, runner):
        weights = [p.flatten() for p in runner.model.parameters()]
        seen = dict(
            epochs=self.epochs,
            hits=self.hits,
            metrics=self.metrics,
            weights=torch.cat(weights).tolist(),
        )
        with open(f'{os.environ["SEEN"]}_{get_rank()}.json', 'w') as file:
            json.dump(seen, file)
'''


def _launch(cfg, folder):
    """Train with two processes and return what each of them saw."""
    bin_dir = Path(sys.executable).parent
    if not (bin_dir / 'torchrun').is_file():
        pytest.skip('torchrun is not beside this Python')
    (folder / 'seen_hook.py').write_text(SEEN_HOOK)
    config = folder / 'on_device.py'
    cfg.dump(config)
    env = {
        'PATH': f'{bin_dir}:/usr/bin:/bin',
        'PORT': '29631',
        'OMP_NUM_THREADS': '1',
        # Two processes cannot share a GPU through NCCL.
        'CUDA_VISIBLE_DEVICES': '',
        'PYTHONPATH': os.pathsep.join([str(REPOSITORY), str(folder)]),
        'SEEN': str(folder / 'seen'),
    }
    script = REPOSITORY / 'tools/dist_train.sh'
    done = subprocess.run(
        ['bash', script, config, '2', '--work-dir', folder / 'run'],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    texts = [(folder / f'seen_{rank}.json').read_text() for rank in (0, 1)]
    return [json.loads(text) for text in texts]


@pytest.mark.slow
def test_two_processes_share_the_images_of_an_epoch(images, tmp_path):
    cfg = on_device(images)
    cfg.train_cfg.max_epochs = 2
    cfg.custom_imports.imports.append('seen_hook')
    cfg.custom_hooks = [
        dict(type='SeenHook'),
        dict(type='sb_mm.DivergenceHook'),
    ]
    first, second = _launch(cfg, tmp_path)
    for halves in zip(first['epochs'], second['epochs'], strict=True):
        assert [len(half) for half in halves] == [TRAIN // 2] * 2
        assert sorted(halves[0] + halves[1]) == list(range(TRAIN))
    assert first['epochs'][0] != first['epochs'][1]
    assert first['weights'] == second['weights']
    # Both are told the accuracy over the images of both.
    for one, other, metrics in zip(
        first['hits'], second['hits'], first['metrics'], strict=True
    ):
        hits = dict(one) | dict(other)
        assert len(one) == len(other) == VAL // 2
        assert sorted(hits) == list(range(VAL))
        accuracy = 100 * sum(hits.values()) / VAL
        assert metrics == {'accuracy/top1': pytest.approx(accuracy)}
    assert first['metrics'] == second['metrics']
