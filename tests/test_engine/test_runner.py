"""Networks are trained, tested and resumed through the tools."""

import errno
import json
import multiprocessing
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from mmengine.evaluator import Evaluator
from mmengine.fileio import load

from sb_mm.engine import runner
from sb_mm.engine.config import load_config
from sb_mm.errors import UserInputError

from .conftest import CIFAR, MAIN, REPOSITORY, SHORT, classifier


def _scalars(work_dir: Path, name: str) -> list[dict]:
    """Return what the newest start logged together with ``name``."""
    file = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    records = map(json.loads, file.read_text().splitlines())
    return [record for record in records if name in record]


def test_a_detector_is_trained_tested_and_resumed(
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
    # The one line that switches the attention statistics on.
    layer = 'attention/backbone.layer1.0.conv.0/output_std'
    assert [r['step'] for r in _scalars(trained, layer)] == [1, 2]

    # tools/test.py gives the number that the training gave.
    out = tmp_path / 'predictions.pkl'
    code, error = tool(
        'test', config, checkpoint, '--work-dir', tmp_path / 'test',
        '--out', out, '--show-dir', 'painted', '--cfg-options', *SHORT,
    )  # fmt: skip
    assert code == 0, error
    assert len(list((tmp_path / 'test').glob('*/painted/*'))) == 2
    (tested,) = (tmp_path / 'test').glob('*/*.json')
    records = _scalars(trained, 'pascal_voc/mAP')
    got = load(tested)
    for name in ('pascal_voc/mAP', 'pascal_voc/mAP_area'):
        assert got[name] == pytest.approx(records[-1][name], abs=1e-6)
    # As mmdet's eval_metric.py reads the file, which has the true boxes.
    evaluator = Evaluator(dict(type='sb_mm.PascalVOCMetric'))
    evaluator.dataset_meta = dict(
        classes=('square', 'disc'), dataset_type='VOC'
    )
    offline = evaluator.offline_evaluate(load(out))
    assert offline == pytest.approx({k: got[k] for k in offline}, abs=1e-6)

    # --resume goes on behind the last epoch, from any working directory, and
    # with the old schedule.
    monkeypatch.chdir(tmp_path)
    other = 'param_scheduler.0.eta_min=0.5'
    code, error = tool(*train, '--resume', '--cfg-options', *two, other)
    assert code == 2
    assert 'param_scheduler.0.eta_min 0.0, not 0.5' in error
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


@pytest.fixture
def _nothing_is_built(monkeypatch):
    build = Mock(side_effect=InterruptedError)
    monkeypatch.setattr(runner, 'build_runner', build)


@pytest.mark.usefixtures('_nothing_is_built')
def test_options_of_a_training_reach_the_runner(config, tmp_path):
    cfg = load_config(config, work_dir=str(tmp_path / 'run'))
    with pytest.raises(InterruptedError):
        runner.train(cfg, auto_scale_lr=True)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=32)


@pytest.mark.parametrize(
    ('path', 'enabled', 'folder'),
    [(MAIN, 'draw', 'test_out_dir'), (CIFAR, 'enable', 'out_dir')],
)
@pytest.mark.usefixtures('_nothing_is_built')
def test_shown_predictions_are_in_the_words_of_the_host(path, enabled, folder):
    cfg = load_config(path)
    with pytest.raises(InterruptedError):
        runner.test(cfg, 'x.pth', show_dir='painted', check=False)
    hook = cfg.default_hooks.visualization
    assert (hook[enabled], hook[folder]) == (True, 'painted')


def test_dataloader_workers_end_with_their_training(images, tmp_path):
    pytest.importorskip('mmpretrain')
    cfg = classifier(images, launcher='none', work_dir=str(tmp_path))
    for split in ('train', 'val'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=1, persistent_workers=True)
    before = multiprocessing.active_children()
    runner.train(cfg, check=False)
    assert not {*multiprocessing.active_children()} - {*before}


def test_one_training_a_work_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, '_WAIT_SECONDS', 0.1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with runner.lock_work_dir(tmp_path):
            os.write(write, b'held')
            time.sleep(600)
    os.read(read, 4)
    try:
        with pytest.raises(UserInputError, match='Another training goes on'):
            runner.lock_work_dir(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with runner.lock_work_dir(tmp_path):
        pass


LAUNCHERS = {
    'slurm_train.sh part job my_config.py out --amp': (
        '--partition=part --job-name=job .*--ntasks=2 .*train.py '
        'my_config.py --work-dir out --launcher slurm --amp'
    ),
    'dist_train.sh my_config.py 2 --amp': (
        '--nproc_per_node=2 .*train.py my_config.py --launcher pytorch --amp'
    ),
    'dist_test.sh my_config.py x.pth 2 --show': (
        '--nproc_per_node=2 .*test.py my_config.py x.pth --launcher pytorch '
        '--show'
    ),
}


@pytest.mark.parametrize('command', LAUNCHERS)
def test_a_launcher_gets_the_tool_and_its_options(tmp_path, command):
    for name in ('srun', 'torchrun'):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    out = subprocess.check_output(
        ['bash', *command.split()],
        env={'PATH': f'{tmp_path}:/usr/bin:/bin', 'GPUS': '2'},
        cwd=REPOSITORY / 'tools',
        text=True,
    )
    assert re.search(f'{LAUNCHERS[command]}$', out.strip())


def test_a_full_disk_is_no_checkpoint_that_does_not_fit():
    full = OSError(errno.ENOSPC, 'No space left', 'x.pth')
    for error, expected in ((full, OSError), (KeyError('a'), UserInputError)):
        stub = Mock(load_or_resume=Mock(side_effect=error))
        runner._explain_misfits(stub, 'x.pth')
        with pytest.raises(expected):
            stub.load_or_resume()
