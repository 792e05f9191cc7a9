"""Two processes train CIFAR-10's way: images on the device, read by index."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sb_mm.engine.runner import train

from .conftest import IMAGES, classifier

pytest.importorskip('mmpretrain')


@HOOKS.register_module()
class SeenHook(Hook):
    """Write down what a process of a training sees, and where it ends."""

    def __init__(self, folder):
        self.folder = folder

    def before_train(self, runner):
        self.seen = dict(images=[], hits=[])

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.seen['images'] += data_batch['indices'].tolist()

    def after_val_iter(self, runner, batch_idx, data_batch, outputs):
        hits = [(s.pred_label == s.gt_label).item() for s in outputs]
        self.seen['hits'] += hits

    def after_val_epoch(self, runner, metrics):
        self.seen['metrics'] = metrics

    def after_train(self, runner):
        weights = [p.flatten() for p in runner.model.parameters()]
        self.seen['weights'] = torch.cat(weights).tolist()
        file = Path(self.folder, f'{get_rank()}.json')
        file.write_text(json.dumps(self.seen))


def _train_as(rank, port, cfg):
    """Be one of two processes, as torchrun starts them."""
    torch.set_num_threads(1)  # those of the parent are not here
    place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_PORT=port)
    os.environ.update({k: str(v) for k, v in place.items()})
    os.environ['MASTER_ADDR'] = '127.0.0.1'
    train(cfg)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason='two processes cannot share a GPU'
)
def test_two_processes_share_the_images(images, tmp_path):
    cfg = classifier(images)
    cfg.data_preprocessor = dict(
        type='sb_mm.OnDeviceAugmentation', mean=[127.0], std=[64.0], padding=4
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = dict(loader.dataset, pipeline=loader.dataset.pipeline[:1])
        loader.dataset = dict(type='sb_mm.IndexedImages', dataset=dataset)
        loader.collate_fn = dict(type='sb_mm.whole_batch')
    cfg.update(launcher='pytorch', work_dir=str(tmp_path / 'run'))
    cfg.custom_hooks = [
        dict(type='SeenHook', folder=str(tmp_path)),
        dict(type='sb_mm.DivergenceHook'),
    ]
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    fork = multiprocessing.get_context('fork')
    jobs = [
        fork.Process(target=_train_as, args=(r, port, cfg)) for r in (0, 1)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0]
    first, second = (
        json.loads((tmp_path / f'{rank}.json').read_text()) for rank in (0, 1)
    )
    halves = first['images'], second['images']
    assert [len(half) for half in halves] == [IMAGES['train'] // 2] * 2
    assert sorted(halves[0] + halves[1]) == list(range(IMAGES['train']))
    assert first['weights'] == second['weights']
    # One checkpoint, of both.
    assert (tmp_path / 'run/epoch_1.pth').is_file()
    # Both are told the accuracy over the images of both.
    assert len(first['hits']) == len(second['hits']) == IMAGES['val'] // 2
    accuracy = 100 * sum(first['hits'] + second['hits']) / IMAGES['val']
    assert first['metrics'] == {'accuracy/top1': pytest.approx(accuracy)}
    assert first['metrics'] == second['metrics']
