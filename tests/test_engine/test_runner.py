"""A detector is trained, tested and resumed through the tools."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.fileio import load
from PIL import Image

from sb_mm.engine.memory import keep_freed_memory
from sb_mm.visualization.detections import read_scalars

from .conftest import REPOSITORY, SHORT


def _val_records(work_dir: Path) -> list[dict]:
    return [r for r in read_scalars(work_dir) if 'pascal_voc/mAP' in r]


def test_training_then_testing_then_resuming(
    tool, config, tmp_path, monkeypatch
):
    """One training, several looks: it is the slow part."""
    trained = tmp_path / 'run'
    two = [*SHORT, 'train_cfg.max_epochs=2', 'train_cfg.val_interval=1']
    train = ['train', config, '--work-dir', trained]
    hook = 'default_hooks.attention.type=sb_mm.AttentionStatsHook'
    code, error = tool(*train, '--cfg-options', *two, hook)
    assert code == 0, error
    # Best and last checkpoint, TensorBoard's file, an ETA in the log.
    assert len(list(trained.glob('best_pascal_voc_mAP_epoch_*.pth'))) == 1
    checkpoint = trained / 'epoch_2.pth'
    assert checkpoint.is_file()
    assert list(trained.glob('*/vis_data/events.out.tfevents*'))
    log = next(trained.glob('*/*.log')).read_text()
    assert re.search(r'eta: 0:\d\d:\d\d', log)
    assert re.search(r'\| square +\|', log)
    assert 'aeroplane' not in log.split('Epoch(val)')[-1]
    info = load(next(trained.glob('*/vis_data/run_info.json')))
    assert (info['start_epoch'], info['processes']) == (0, 1)
    assert info['train'] == dict(types=['VOCDevkitDataset'], images=3)
    assert info['seed'] == 0
    assert info['commit']
    assert 'torch' in info['versions']
    # The one line that switches the attention statistics on.
    assert len(list(trained.glob('*/vis_data/attention_stats.json'))) == 1

    # tools/test.py gives the number that the training gave.
    out = tmp_path / 'predictions.pkl'
    code, error = tool(
        'test', config, checkpoint, '--work-dir', tmp_path / 'test',
        '--out', out, '--show-dir', 'painted', '--cfg-options', *SHORT,
    )  # fmt: skip
    assert code == 0, error
    assert len(list((tmp_path / 'test').glob('*/painted/*'))) == 2
    (tested,) = (tmp_path / 'test').glob('*/*.json')
    expected = _val_records(trained)[-1]
    got = load(tested)
    for name in ('pascal_voc/mAP', 'pascal_voc/mAP_area'):
        assert got[name] == pytest.approx(expected[name], abs=1e-6)
    # As mmdet's eval_metric.py reads the file, which has the true boxes.
    evaluator = Evaluator(dict(type='sb_mm.PascalVOCMetric'))
    evaluator.dataset_meta = dict(
        classes=('square', 'disc'), dataset_type='VOC'
    )
    offline = evaluator.offline_evaluate(load(out))
    assert offline == pytest.approx({k: got[k] for k in offline}, abs=1e-6)

    # --resume goes on behind the last epoch, from any working directory.
    monkeypatch.chdir(tmp_path)
    code, error = tool(
        *train, '--resume', trained / 'epoch_1.pth', '--cfg-options', *two
    )
    assert code == 0, error
    log = sorted(trained.glob('*/*.log'))[-1].read_text()
    assert 'resumed epoch: 1' in log
    assert 'Epoch(train) [2][3/3]' in log
    assert 'Epoch(train) [1]' not in log
    # The validation of epoch 1, which may have been cut, comes first.
    assert 'Epoch(val) [1]' in log.split('Epoch(train) [2]')[0]
    starts = sorted(trained.glob('*/vis_data/run_info.json'))
    assert [load(s)['start_epoch'] for s in starts] == [0, 1]
    assert not list(starts[-1].parent.glob('attention_stats.json'))

    # More epochs are another schedule, which a resume would not follow.
    longer = [*SHORT, 'train_cfg.max_epochs=3', 'train_cfg.val_interval=3']
    code, error = tool(*train, '--resume', '--cfg-options', *longer)
    assert code == 2
    (line,) = [x for x in error.splitlines() if x.startswith('error: ')]
    assert 'param_scheduler.0.end 2, not 3' in line
    assert 'load_from=CHECKPOINT' in line
    # Unless it is said that the old one is meant.
    old = ['param_scheduler.0.end=2', 'param_scheduler.0.T_max=2']
    code, error = tool(*train, '--resume', '--cfg-options', *longer, *old)
    assert code == 0, error
    assert (trained / 'epoch_3.pth').is_file()

    # Another optimizer is told in a sentence.
    other = [*two, 'optim_wrapper.paramwise_cfg.norm_decay_mult=0']
    code, error = tool(*train, '--resume', '--cfg-options', *other)
    assert code == 2, error
    assert 'epoch_3.pth does not fit this training' in error
    assert 'parameter groups' in error


def test_mmdets_own_tool_trains_our_config(config, tmp_path):
    train = Path(mmdet.__file__).parent / '.mim/tools/train.py'
    if not train.is_file():
        pytest.skip('this mmdet was installed without its tools')
    command = [sys.executable, train, config, '--work-dir', tmp_path / 'run']
    command += ['--cfg-options', *SHORT]
    # As where sb_mm is installed, which a checkout under test may not be.
    env = {'PYTHONPATH': str(REPOSITORY), 'PATH': ''}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / 'run/epoch_1.pth').is_file()


def test_an_mmpretrain_config_trains_with_the_same_tool(tool, tmp_path):
    pytest.importorskip('mmpretrain')
    rng = np.random.default_rng(0)
    for label, level in (('dark', 40), ('light', 200)):
        folder = tmp_path / 'images' / label
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(level, level + 40, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f'{i}.png')
    config = tmp_path / 'classifier.py'
    config.write_text(f"""
default_scope = 'mmpretrain'
custom_imports = dict(imports=['sb_mm.models'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='sb_mm.SBMobileNetV2', widen_factor=0.35),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=2,
        in_channels=1280,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1,),
    ),
)
data_preprocessor = dict(mean=[127] * 3, std=[128] * 3, num_classes=2)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root={str(tmp_path / 'images')!r},
        pipeline=pipeline,
    ),
)
val_dataloader = dict(
    **dict(train_dataloader, sampler=dict(type='DefaultSampler'))
)
val_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
""")
    code, error = tool('train', config, '--work-dir', tmp_path / 'run')
    assert code == 0, error
    assert (tmp_path / 'run/epoch_1.pth').is_file()


@pytest.mark.slow
def test_two_processes_train_one_model(config, tmp_path):
    script = REPOSITORY / 'tools/dist_train.sh'
    bin_dir = Path(sys.executable).parent
    if not (bin_dir / 'torchrun').is_file():
        pytest.skip('torchrun is not beside this Python')
    env = {
        'PATH': f'{bin_dir}:/usr/bin:/bin',
        'PORT': '29617',
        'OMP_NUM_THREADS': '1',
        # Two processes cannot share a GPU through NCCL.
        'CUDA_VISIBLE_DEVICES': '',
    }
    done = subprocess.run(
        ['bash', script, config, '2', '--work-dir', tmp_path / 'run',
         '--cfg-options', *SHORT],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    # 3 images on 2 processes: 2 each.
    state = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    assert state['meta']['iter'] == 2


def test_a_detector_that_diverges_ends_without_a_checkpoint(
    tool, config, tmp_path
):
    code, error = tool(
        'train', config, '--work-dir', tmp_path / 'run', '--cfg-options',
        *SHORT, 'optim_wrapper.optimizer.lr=1e20', 'param_scheduler=None',
    )  # fmt: skip
    assert code == 4
    assert error.splitlines()[-1].startswith('error: The ')
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_scaling_the_rate_reaches_the_optimizer(tool, config, tmp_path):
    code, error = tool(
        'train', config, '--work-dir', tmp_path / 'run', '--auto-scale-lr',
        '--cfg-options', *SHORT, 'val_dataloader=None', 'val_cfg=None',
        'val_evaluator=None', 'default_hooks.checkpoint.save_best=None',
    )  # fmt: skip
    assert code == 0, error
    rates = [r['lr'] for r in read_scalars(tmp_path / 'run') if 'lr' in r]
    # batch 1 instead of 32
    assert rates[0] == pytest.approx(0.01 * 1 / 32)


def test_slurm_gets_the_tool_and_its_options(tmp_path):
    fake = tmp_path / 'srun'
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    script = REPOSITORY / 'tools/slurm_train.sh'
    done = subprocess.run(
        ['bash', script, 'part', 'job', 'my config.py', 'out', '--amp'],
        env={'PATH': f'{tmp_path}:/usr/bin:/bin', 'GPUS': '2'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert '--partition=part --job-name=job' in done.stdout
    assert '--ntasks=2' in done.stdout
    assert done.stdout.strip().endswith(
        'train.py my config.py --work-dir out --launcher slurm --amp'
    )


def test_freed_memory_is_kept_where_the_allocator_is_glibcs():
    libc = ctypes.CDLL(None)
    assert keep_freed_memory() == hasattr(libc, 'mallopt')
