"""Jobs: their configs, and trainings from the launch to the record."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from sb_mm.engine.hooks import DivergenceHook
from sb_mm.engine.runner import test as run_test
from sb_mm.errors import DivergedError, UserInputError
from sb_mm.paper.cells import find_cell
from sb_mm.paper.job import Job, JobHook, train_job
from sb_mm.paper.records import read_job, read_records

pytest.importorskip('mmpretrain')


def _cut_after(monkeypatch, job, results, epoch, written):
    """Train a job that is killed at the end of an epoch's validation."""
    whole = JobHook.after_val_epoch

    def cut(self, runner, metrics=None):
        if runner.epoch < epoch or written:
            whole(self, runner, metrics)
        if runner.epoch == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(JobHook, 'after_val_epoch', cut)
        with pytest.raises(KeyboardInterrupt):
            train_job(job, results)


def test_the_paper_recipe_is_the_cells_config(cifar):
    cell = find_cell('t8-x0.35-lambda_init-0.01')
    cfg, plain = Job(cell, 3, data_root=cifar).config(), cell.resolve()
    assert cfg.randomness.seed == 3
    for key in ('model', 'train_cfg', 'optim_wrapper', 'default_hooks'):
        assert cfg[key] == plain[key]
    hooks = [hook.type for hook in cfg.custom_hooks]
    assert hooks == ['sb_mm.EpochSeedHook', 'sb_mm.JobHook']
    fast = Job(cell, data_root=cifar, channels_last=True, compile='default')
    assert fast.config().data_preprocessor.channels_last
    assert fast.config().custom_hooks[-1].mode == 'default'


def test_images_of_files_have_their_colours(make_job):
    job = make_job()
    cfg = job.config()
    init_default_scope('mmpretrain')
    batch = DATASETS.build(cfg.val_dataloader.dataset)[0]
    preprocessor = cfg.data_preprocessor
    seen = MODELS.build(preprocessor)(batch, False)['inputs'][0]
    image = Image.open(f'{job.data_root}/test/class0/20.png').convert('RGB')
    stored = (np.asarray(image) - preprocessor.mean) / preprocessor.std
    assert np.allclose(seen.permute(1, 2, 0), stored, atol=1e-4)


def test_what_changes_numbers_has_a_folder_of_its_own(make_job):
    changes = {}, dict(epochs=2), dict(data_root='x'), dict(compile='default')
    folders = [make_job(**change).folder for change in changes]
    assert len(set(folders)) == 3
    assert folders[0] == folders[3]


def test_a_launch_is_written_down_and_becomes_the_record(make_job, tmp_path):
    half = {'train_dataloader.dataset.indices': 10}
    job = make_job('t6-x0.35-sb', epochs=2, options=half)
    record = train_job(job, tmp_path)
    assert read_job(job.folder) == record
    assert record.options == job.options
    assert record.train == dict(images=10, classes=10)
    assert record.parameters == 1_440_510
    (start,) = record.starts
    assert start['execution'] == dict(channels_last=False, compile=None)
    assert {'commit', 'hardware', 'torch'} <= {*start['environment']}
    assert [epoch for epoch, _ in record.history] == [1, 2]
    assert record.final == record.history[-1][1]
    assert record.hours > 0
    assert read_records(tmp_path) == [record]
    # tools/test.py reads the same images in the host's form.
    cfg, checkpoint = job.config(), str(job.folder / 'epoch_2.pth')
    metrics = run_test(cfg, checkpoint, show_dir=str(tmp_path / 'shown'))
    assert metrics['accuracy/top1'] == pytest.approx(record.final)
    assert list((tmp_path / 'shown').rglob('*.png'))
    # What is finished is not trained again, whoever asks.
    (job.folder / 'epoch_2.pth').unlink()
    assert train_job(job, tmp_path / 'other') == record


def test_a_training_that_was_cut_ends_as_the_uncut_one(
    make_job, tmp_path, monkeypatch
):
    job = make_job(epochs=3)
    _cut_after(monkeypatch, job, tmp_path, 2, written=True)
    before = read_job(job.folder)
    assert [epoch for epoch, _ in before.history] == [1, 2]
    assert before.final is None
    # After the last epoch, it is validated only.
    _cut_after(monkeypatch, job, tmp_path, 3, written=False)
    record = train_job(job, tmp_path)
    assert [epoch for epoch, _ in record.history] == [1, 2, 3]
    assert [start['epoch'] for start in record.starts] == [0, 2, 3]
    assert record.hours > before.hours
    uncut = replace(job, out=tmp_path / 'uncut')
    train_job(uncut, tmp_path / 'results')
    weights, expected = (
        torch.load(j.folder / 'epoch_3.pth', weights_only=False)['state_dict']
        for j in (job, uncut)
    )
    for name, value in weights.items():
        assert torch.equal(value, expected[name]), name


def test_other_images_in_the_folder_of_a_job_are_refused(
    make_job, make_record, tmp_path
):
    job = make_job()
    job.folder.mkdir(parents=True)
    make_record(job.cell.id, None).write(job.folder)
    with pytest.raises(UserInputError, match='holds another training'):
        train_job(job, tmp_path)
    (job.folder / 'job.json').write_text('{')
    with pytest.raises(UserInputError, match='is damaged or .* delete'):
        train_job(job, tmp_path)


def test_a_training_that_diverges_is_a_result(make_job, tmp_path, monkeypatch):
    def diverge(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.epoch == 1:
            raise DivergedError('The loss became NaN.')

    monkeypatch.setattr(DivergenceHook, 'after_train_iter', diverge)
    record = train_job(make_job(epochs=3), tmp_path)
    assert record.final is None
    assert record.failed
    assert [epoch for epoch, _ in record.history] == [1]
    assert read_records(tmp_path) == [record]
