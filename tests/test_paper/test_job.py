"""Jobs: their configs, and trainings from the launch to the record."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from sb_mm.engine.hooks import DivergenceHook
from sb_mm.errors import DivergedError, UserInputError
from sb_mm.paper.cells import find_cell
from sb_mm.paper.job import Job, train_job
from sb_mm.paper.job_hook import JobHook, read_job
from sb_mm.paper.records import read_records

pytest.importorskip('mmpretrain')


def _weights(job):
    checkpoint = torch.load(
        job.folder / f'epoch_{job.options["train_cfg.max_epochs"]}.pth',
        weights_only=False,
    )
    return checkpoint['state_dict']


def _cut_after(monkeypatch, epoch, written):
    """Let a training end like one that is killed at its validation's end."""
    whole = JobHook.after_val_epoch

    def cut(self, runner, metrics=None):
        if runner.epoch < epoch or written:
            whole(self, runner, metrics)
        if runner.epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(JobHook, 'after_val_epoch', cut)


def test_the_paper_recipe_is_the_cells_config(cifar):
    cell = find_cell('t8-x0.35-lambda_init-0.01')
    cfg = Job(cell, 3, data_root=cifar).config()
    assert cfg.model.backbone == cell.resolve().model.backbone
    assert cfg.train_cfg.max_epochs == 200
    assert cfg.train_dataloader.batch_size == 128
    assert cfg.randomness.seed == 3
    assert cfg.optim_wrapper.optimizer.lr == 0.1
    # Every image of the host's pipeline, on the device.
    assert cfg.model.data_preprocessor.padding == 2
    # The best epoch on the test images would be no result.
    assert 'save_best' not in cfg.default_hooks.checkpoint


def test_images_of_files_have_their_colours(make_job):
    job = make_job()
    cfg = job.config()
    init_default_scope('mmpretrain')
    batch = DATASETS.build(cfg.val_dataloader.dataset).__getitems__([0])
    preprocessor = cfg.model.data_preprocessor
    seen = MODELS.build(preprocessor)(batch, False)['inputs'][0]
    image = Image.open(f'{job.data_root}/test/class0/0.png').convert('RGB')
    stored = (np.asarray(image) - preprocessor.mean) / preprocessor.std
    assert np.allclose(seen.permute(1, 2, 0), stored, atol=1e-4)


@pytest.mark.parametrize(
    ('options', 'settings', 'message'),
    [
        ({'model.backbone.attention.lamda_init': 1}, {}, 'lambda_init'),
        ({'custom_hooks': []}, {}, 'no effect, as this tool sets it itself'),
        ({'train_dataloader.num_workers': 2}, {}, 'or add --host-loader'),
        ({'train_dataloader.dataset.indices': 3}, {}, 'must divide the 20'),
        (
            {},
            dict(channels_last=True, host_loader=True),
            '--channels-last is for batches',
        ),
    ],
)
def test_what_has_no_effect_is_refused(make_job, options, settings, message):
    job = make_job('t6-x0.35-sb', options=options, **settings)
    with pytest.raises(UserInputError, match=message):
        job.config()


def test_a_part_of_folders_has_images_of_every_class(make_job):
    options = {'train_dataloader.dataset.indices': 10}
    cfg = make_job(options=options).config()
    indices = cfg.train_dataloader.dataset.dataset.indices
    assert list(indices) == [*range(0, 20, 2)]


def test_what_is_computed_otherwise_has_a_folder_of_its_own(make_job):
    jobs = [make_job(), make_job(epochs=2), make_job(data_root='x')]
    assert len({job.folder for job in jobs}) == 3
    # This changes no number: such a training goes on in the same folder.
    assert make_job(compile='default').folder == jobs[0].folder


def test_a_launch_is_written_down_and_becomes_the_record(make_job, tmp_path):
    job = make_job('t6-x0.35-sb', epochs=2)
    record = train_job(job, tmp_path)
    launched = read_job(job.folder)
    assert len(launched.pop('seconds')) == 2
    assert {k: getattr(record, k) for k in launched} == launched
    assert record.options == job.options
    assert record.train == dict(images=20, classes=10)
    assert record.parameters == 1_440_510
    (start,) = record.starts
    assert start['execution']['on_device']
    assert {'commit', 'hardware', 'torch'} <= {*start['environment']}
    assert [epoch for epoch, _ in record.history] == [1, 2]
    assert record.final == record.history[-1][1]
    assert record.hours > 0
    assert read_records(tmp_path) == [record]
    # What is finished is not trained again, whoever asks.
    (job.folder / 'epoch_2.pth').unlink()
    assert train_job(job, tmp_path / 'other') == record


def test_a_training_that_was_cut_ends_as_the_uncut_one(
    make_job, tmp_path, monkeypatch
):
    job = make_job(epochs=3)
    with monkeypatch.context() as patch:
        _cut_after(patch, 2, written=True)
        with pytest.raises(KeyboardInterrupt):
            train_job(job, tmp_path)
    assert [epoch for epoch, _ in read_job(job.folder)['history']] == [1, 2]
    record = train_job(job, tmp_path)
    assert [epoch for epoch, _ in record.history] == [1, 2, 3]
    assert [start['epoch'] for start in record.starts] == [0, 2]
    uncut = replace(job, out=tmp_path / 'uncut')
    train_job(uncut, tmp_path / 'results')
    expected = _weights(uncut)
    for name, value in _weights(job).items():
        assert torch.equal(value, expected[name]), name


def test_a_training_cut_after_its_last_epoch_is_validated_only(
    make_job, tmp_path, monkeypatch
):
    job = make_job(epochs=1)
    with monkeypatch.context() as patch:
        _cut_after(patch, 1, written=False)
        with pytest.raises(KeyboardInterrupt):
            train_job(job, tmp_path)
    assert train_job(job, tmp_path).history[0][0] == 1


def test_other_images_in_the_folder_of_a_job_are_refused(make_job, tmp_path):
    job = make_job()
    job.folder.mkdir(parents=True)
    launched = dict(cell=job.cell.id, train=dict(images=19, classes=10))
    (job.folder / 'job.json').write_text(json.dumps(launched))
    with pytest.raises(UserInputError, match='holds another training .train'):
        train_job(job, tmp_path)
    (job.folder / 'job.json').write_text('{')
    with pytest.raises(UserInputError, match='is damaged: delete'):
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
