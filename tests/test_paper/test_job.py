"""Jobs: their configs, and trainings from the launch to the record."""

import json
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from sb_mm.engine.hooks import DivergenceHook
from sb_mm.errors import DivergedError, UserInputError
from sb_mm.paper import job as job_module
from sb_mm.paper.cells import find_cell
from sb_mm.paper.job import Execution, Job, train_job
from sb_mm.paper.job_hook import JobHook, is_finished, read_history
from sb_mm.paper.records import read_results

pytest.importorskip('mmpretrain')


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _weights(job):
    checkpoint = torch.load(
        job.folder / f'epoch_{job.options["train_cfg.max_epochs"]}.pth',
        weights_only=False,
    )
    return checkpoint['state_dict']


def _cut_after(monkeypatch, epoch):
    """Let a training end like one that is killed while it validates."""
    whole = JobHook.after_val_epoch

    def cut(self, runner, metrics=None):
        if runner.epoch == epoch:
            raise KeyboardInterrupt
        whole(self, runner, metrics)

    monkeypatch.setattr(JobHook, 'after_val_epoch', cut)


def test_the_paper_recipe_is_the_cells_config(cifar, tmp_path):
    cell = find_cell('t8-x0.35-lambda_init-0.01')
    cfg = Job(cell, 3, {}, Execution(cifar), tmp_path).config()
    assert cfg.model.backbone == cell.resolve().model.backbone
    assert cfg.train_cfg.max_epochs == 200
    assert cfg.train_dataloader.batch_size == 128
    assert cfg.randomness.seed == 3
    assert cfg.optim_wrapper.optimizer.lr == 0.1
    # Every image of the host's pipeline, on the device.
    assert cfg.model.data_preprocessor.padding == 2
    assert cfg.model.data_preprocessor.to_rgb  # files have blue first
    # The best epoch on the test images would be no result.
    assert 'save_best' not in cfg.default_hooks.checkpoint


def test_images_of_files_and_of_the_pickles_are_the_same(make_job):
    """Red is red, whoever reads it."""
    job = make_job()
    cfg = job.config()
    init_default_scope('mmpretrain')
    batch = DATASETS.build(cfg.val_dataloader.dataset).__getitems__([0])
    model = MODELS.build(cfg.model.data_preprocessor)
    seen = model(batch, False)['inputs'][0]
    stored = torch.from_numpy(_read_rgb(job.execution.data_root))
    mean = torch.tensor(cfg.model.data_preprocessor.mean)[:, None, None]
    std = torch.tensor(cfg.model.data_preprocessor.std)[:, None, None]
    assert torch.allclose(seen, (stored - mean) / std, atol=1e-4)


def _read_rgb(root):
    image = Image.open(f'{root}/test/class0/0.png').convert('RGB')
    return np.asarray(image, np.float32).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ('how', 'options', 'message'),
    [
        ({}, {'model.backbone.attention.lamda_init': 1}, 'lambda_init'),
        ({}, {'custom_hooks': []}, 'set by this tool itself'),
        ({}, {'train_dataloader.num_workers': 2}, 'no effect on images'),
        ({}, {'train_dataloader.dataset.indices': 3}, 'must divide the 20'),
        (
            dict(channels_last=True, on_device=False),
            {},
            '--channels-last is for batches',
        ),
    ],
)
def test_what_has_no_effect_is_refused(make_job, how, options, message):
    job = make_job('t6-x0.35-sb', how=how, **options)
    with pytest.raises(UserInputError, match=message):
        job.config()


def test_a_part_of_folders_has_images_of_every_class(make_job):
    cfg = make_job(**{'train_dataloader.dataset.indices': 10}).config()
    assert list(cfg.train_dataloader.dataset.dataset.indices) == [
        *range(0, 20, 2)
    ]


def test_what_is_computed_otherwise_has_a_folder_of_its_own(make_job):
    jobs = [make_job(), make_job(epochs=2), make_job(how=dict(data_root='x'))]
    assert len({job.folder for job in jobs}) == 3
    # These change no number: such a training goes on in the same folder.
    assert make_job(how=dict(compile='default')).folder == jobs[0].folder


def test_a_launch_is_written_down_and_becomes_the_record(make_job, tmp_path):
    job = make_job('t6-x0.35-sb', epochs=2)
    record = train_job(job, tmp_path)
    launched = json.loads((job.folder / 'job.json').read_text())
    assert launched['options'] == job.options
    assert launched['train'] == dict(
        types=['CustomDataset'], images=20, classes=10
    )
    assert launched['val']['images'] == 10
    assert launched['parameters'] == 1_440_510
    (start,) = launched['starts']
    assert start['execution']['on_device']
    assert {'commit', 'hardware', 'torch', 'PyTorch'} <= {
        *start['environment']
    }
    assert {k: getattr(record, k) for k in launched} == launched
    assert [epoch for epoch, _ in record.history] == [1, 2]
    assert record.final == record.history[-1][1]
    assert record.hours > 0
    assert not record.is_full
    assert read_results(tmp_path).records == [record]
    # What is finished is not trained again, whoever asks.
    (job.folder / 'epoch_2.pth').unlink()
    assert train_job(job, tmp_path / 'other') == record


def test_a_training_that_was_cut_ends_as_the_uncut_one(
    make_job, tmp_path, monkeypatch
):
    job = make_job(epochs=3)
    with monkeypatch.context() as patch:
        _cut_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train_job(job, tmp_path)
    assert [epoch for epoch, _ in read_history(job.folder)] == [1]
    assert not is_finished(job.folder)
    record = train_job(job, tmp_path)
    assert [epoch for epoch, _ in record.history] == [1, 2, 3]
    assert [start['epoch'] for start in record.starts] == [0, 2]
    uncut = replace(job, root=tmp_path / 'uncut')
    train_job(uncut, tmp_path / 'results')
    expected = _weights(uncut)
    for name, value in _weights(job).items():
        assert torch.equal(value, expected[name]), name


def test_a_training_cut_after_its_last_epoch_is_validated_only(
    make_job, tmp_path, monkeypatch
):
    job = make_job(epochs=1)
    with monkeypatch.context() as patch:
        _cut_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train_job(job, tmp_path)
    assert train_job(job, tmp_path).history[0][0] == 1


def test_other_images_in_the_folder_of_a_job_are_refused(
    make_job, tmp_path, monkeypatch
):
    job = make_job()
    train_job(job, tmp_path)
    launched = json.loads((job.folder / 'job.json').read_text())
    launched['train']['images'] = 19
    launched['epochs'] = 2  # it is not finished
    (job.folder / 'job.json').write_text(json.dumps(launched))
    with pytest.raises(UserInputError, match='holds another training'):
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
    assert read_results(tmp_path).records == [record]


def test_a_second_process_waits_and_trains_nothing(
    make_job, make_record, tmp_path, monkeypatch
):
    job = make_job()
    job.folder.mkdir(parents=True)
    asked = threading.Event()
    monkeypatch.setattr(job_module, 'is_finished', lambda folder: asked.set())
    monkeypatch.setattr(job_module, 'train', lambda *_, **__: math.nan)
    monkeypatch.setattr(
        job_module, 'read_record', lambda folder: make_record(job.cell.id)
    )
    found = []
    thread = threading.Thread(
        target=lambda: found.append(train_job(job, tmp_path))
    )
    with FileLock(job.folder / 'job.lock'):
        thread.start()
        assert not asked.wait(0.3)
    thread.join(10)
    assert asked.is_set()
    assert found == [make_record(job.cell.id)]
