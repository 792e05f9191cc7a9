"""A training that is killed at any moment of a write loses nothing."""

import builtins
import errno
import io
import os
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator

from sb_mm.engine.checks.checkpoint import newest_checkpoint
from sb_mm.engine.hooks import AtomicCheckpointHook, ValidateResumedHook
from sb_mm.errors import UserInputError
from sb_mm.weights import load_checkpoint_file, weights_only

from ..conftest import VALIDATION, Tiny, tiny_runner

EPOCHS, KILLED = 2, 9
LEFT = {f'epoch_{EPOCHS}.pth', f'best_score_epoch_{EPOCHS}.pth'}


class Smallness(BaseMetric):
    """Better in each epoch, so that each has a new best checkpoint."""

    def __init__(self, bonus):
        super().__init__(prefix='')
        self.bonus = bonus

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(score=self.bonus - results[0]['weight'])


def train(work_dir, resume=False, bonus=0):
    start = newest_checkpoint(work_dir) if resume else None
    checkpoint = dict(type=AtomicCheckpointHook, interval=1, rule='greater')
    checkpoint |= dict(max_keep_ckpts=1, save_best='score')
    runner = tiny_runner(
        Tiny(torch.sum),
        work_dir,
        1,
        **VALIDATION | dict(val_evaluator=Evaluator(Smallness(bonus))),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[dict(type=ValidateResumedHook)],
        load_from=start,
        resume=start is not None,
    )
    with weights_only():
        runner.train()


def train_until(step, work_dir):
    """Train in a process that dies at a step of its work with files.

    A step lies before each change, and one after each opening to write.
    """
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    steps = count()

    def dying(function, name):
        def call(path, *args, **kwargs):
            watched = '.pth' in str(path) or 'last_check' in str(path)
            reads = name == 'open' and 'r' in (*args, 'r')[0]
            if watched and not reads and next(steps) == step:
                os._exit(KILLED)
            result = function(path, *args, **kwargs)
            opened = name == 'open' and not reads
            if watched and opened and next(steps) == step:
                os._exit(KILLED)
            return result

        return call

    for module, name in [
        (builtins, 'open'),
        (io, 'open'),
        (os, 'replace'),
        (os, 'unlink'),
        (os, 'remove'),
    ]:
        setattr(module, name, dying(getattr(module, name), name))
    try:
        train(work_dir)
    finally:
        os._exit(0)


def checkpoints(work_dir):
    return {path.name for path in Path(work_dir).glob('*.pth')}


def test_killed_at_any_step_nothing_is_lost(tmp_path):
    for step in count():
        folder = tmp_path / str(step)
        code = train_until(step, folder)
        for name in checkpoints(folder):
            load_checkpoint_file(str(folder / name))
        assert newest_checkpoint(folder) or not any(folder.glob('best_*'))
        train(folder, resume=True)
        assert checkpoints(folder) == LEFT, step
        assert not any(folder.glob('.*')), step
        if code != KILLED:
            break
    assert step > 8 * EPOCHS


def test_a_best_checkpoint_of_the_same_name_is_kept(tmp_path):
    train(tmp_path)
    train(tmp_path, resume=True, bonus=1)
    assert checkpoints(tmp_path) == LEFT


@pytest.mark.parametrize('listed', ['victim.pth', '../victim.pth', '..', 5])
def test_a_checkpoint_names_no_file_elsewhere_to_delete(tmp_path, listed):
    victim = tmp_path / 'victim.pth'
    victim.touch()
    train(tmp_path / 'work')
    path = newest_checkpoint(tmp_path / 'work')
    content = load_checkpoint_file(path)
    names = [str(victim) if listed == victim.name else listed, 5]
    names = 5 if listed == 5 else names
    content['message_hub']['runtime_info']['outdated_ckpts'] = names
    torch.save(content, path)
    train(tmp_path / 'work', resume=True)
    assert victim.exists()


def test_a_full_disk_costs_no_checkpoint(tmp_path, monkeypatch):
    def full(_):
        if checkpoints(tmp_path):
            raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left.*best_score_epoch_1'):
        train(tmp_path)
    assert checkpoints(tmp_path) == {'epoch_1.pth'}
    load_checkpoint_file(newest_checkpoint(tmp_path))
    assert not any(tmp_path.glob('.*'))


def test_a_best_of_a_metric_that_is_not_measured():
    hook = AtomicCheckpointHook(save_best='voc/map', rule='greater')
    runner = SimpleNamespace(epoch=1, iter=1)
    with pytest.raises(UserInputError, match="names 'voc/map', .* voc/mAP:"):
        hook._save_best_checkpoint(runner, {'voc/mAP': 0.5})
