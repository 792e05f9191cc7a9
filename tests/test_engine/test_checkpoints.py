"""Checkpoints in every tool: what does not fit, and what would run code."""

import errno
import os
import signal
import time

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from sb_mm.engine import checkpoints, runner, work_dir
from sb_mm.engine.checkpoints import check_start, newest_checkpoint
from sb_mm.errors import UserInputError

from .conftest import CUSTOM, SHORT
from .test_bad_input import _no_model_is_built, _one_sentence  # noqa: F401


@pytest.fixture(autouse=True)
def _what_people_set(monkeypatch):
    """To run the family on torch >= 2.6."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')


def _save(path, config, classes=('square', 'disc'), change=None, **more):
    """Write a checkpoint of the config's network."""
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    state = MODELS.build(cfg.model).state_dict()
    if change is not None:
        change(state)
    meta = dict(dataset_meta=dict(classes=classes))
    torch.save(dict(state_dict=state, meta=meta, **more), path)
    return path


def test_a_checkpoint_that_is_none(tool, config, tmp_path):
    (tmp_path / 'x.pth').write_text('no checkpoint at all')
    _one_sentence(tool('test', config, tmp_path / 'x.pth'), 'x.pth')
    _one_sentence(tool('test', config, tmp_path), 'is a folder')
    result = tool('test', config, 'nothing.pth')
    _one_sentence(result, 'nothing.pth', 'does not exist')
    address = 'http://127.0.0.1:1/x.pth'
    result = tool('train', config, '--cfg-options', f'load_from={address}')
    _one_sentence(result, address, 'refused', 'the network')


def test_a_checkpoint_of_another_network_or_other_classes(
    tool, config, tmp_path
):
    def drop(state):
        del state['neck.extra_layers.0.conv.0.conv.weight']

    path = _save(tmp_path / 'x.pth', config, classes=('square', 'star'))
    result = tool('test', config, path)
    _one_sentence(result, "class 1 is 'star' instead of 'disc'")
    path = _save(path, config, classes=3)
    _one_sentence(tool('test', config, path), 'holds a int as classes')
    path = _save(path, config)
    result = tool('test', config, path, '--cfg-options', *SHORT)
    _one_sentence(result, 'do not fit', 'backbone.conv1.conv.weight', 'more')
    result = tool('train', config, '--resume', path, '--cfg-options', *SHORT)
    _one_sentence(result, 'do not fit')
    result = tool('train', config, '--resume', path)
    _one_sentence(result, 'how far', f'load_from={path}')
    path = _save(path, config, change=drop)
    result = tool('test', config, path)
    _one_sentence(result, '1 tensors are missing', 'neck.extra_layers.0')


class _Evil:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_checkpoint_with_code_is_refused_until_it_is_trusted(
    tool, config, tmp_path, monkeypatch
):
    monkeypatch.setattr('sb_mm.deploy.export.require_packages', lambda *_: 0)
    trace, run = tmp_path / 'trace', tmp_path / 'run'
    path = _save(tmp_path / 'x.pth', config, evil=_Evil(trace))
    run.mkdir()
    (run / 'last_checkpoint').write_text(str(path))
    Config.fromfile(config).dump(run / 'config.py')
    options = ['train', config, '--work-dir', run, '--cfg-options']
    for argv in (
        ['test', config, path],
        ['train', config, '--resume', path],
        ['train', config, '--resume', '--work-dir', run],
        [*options, f'load_from={path}'],
        *(
            [*options, f'{part}.type=Pretrained', f'{part}.checkpoint={path}']
            for part in ('model.init_cfg', 'model.backbone.init_cfg')
        ),
        ['export_onnx', config, path, '--out', tmp_path / 'x.onnx'],
        ['convert_weights', path, tmp_path / 'y.pth'],
        ['plot', 'shift', run],
        ['plot', 'shift', run, '--checkpoint', path],
    ):
        _one_sentence(tool(*argv), 'x.pth', '--trust-checkpoint')
        assert not trace.exists(), argv
    # The fixture shows that the test went on.
    with pytest.raises(AssertionError, match='the model was built'):
        tool('test', config, path, '--trust-checkpoint')
    assert trace.exists()


def test_the_newest_checkpoint_of_a_work_directory(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    name = tmp_path / 'last_checkpoint'
    name.write_text('elsewhere/run/epoch_1.pth')
    assert newest_checkpoint(tmp_path) == 'elsewhere/run/epoch_1.pth'
    for i, file in enumerate(('epoch_1.pth', 'epoch_2.pth', 'best_2.pth')):
        (tmp_path / file).touch()
        os.utime(tmp_path / file, (i, i))
    assert newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_1.pth')
    name.write_text('')  # killed while it was written
    assert newest_checkpoint(tmp_path) == str(tmp_path / 'epoch_2.pth')
    name.write_bytes(b'\xff\x00\x80')
    with pytest.raises(UserInputError, match='last_checkpoint is not the tex'):
        newest_checkpoint(tmp_path)
    name.write_text(5000 * 'x')  # longer than a name can be
    with pytest.raises(UserInputError, match='last_checkpoint is not the tex'):
        newest_checkpoint(tmp_path)
    name.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(name)
        with pytest.raises(
            UserInputError, match='last_checkpoint .* a folder'
        ):
            newest_checkpoint(tmp_path)
        name.unlink() if name.is_fifo() else name.rmdir()


HUB = dict(log_scalars={}, runtime_info={}, resumed_keys={})
WHOLE = dict(
    meta=dict(epoch=1, iter=3, seed=0),
    message_hub=HUB,
    optimizer=dict(state={}, param_groups=[{}]),
    param_schedulers=[{}],
)


@pytest.mark.parametrize(
    ('change', 'name'),
    [
        (dict(meta=dict(epoch=-1, iter=3)), 'meta.epoch'),
        (dict(meta=dict(epoch=1, iter=True)), 'meta.iter'),
        (dict(meta=dict(epoch=1, iter=3, seed='a')), 'meta.seed'),
        (dict(message_hub=5), 'message_hub.log_scalars'),
        (dict(message_hub=dict(HUB, log_scalars=5)), 'message_hub.log_sc'),
        (dict(message_hub=dict(HUB, runtime_info=[1])), 'message_hub.runt'),
        (dict(optimizer=None), 'optimizer'),
        (dict(optimizer=dict(state={})), 'optimizer.param_groups'),
        (dict(param_schedulers=None), 'param_schedulers'),
        (dict(param_schedulers=[5]), 'param_schedulers'),
    ],
    ids=str,
)
def test_a_checkpoint_that_cannot_be_resumed(monkeypatch, change, name):
    cfg = Config.fromfile(CUSTOM)
    cfg.merge_from_dict(dict(resume=True, load_from='x.pth'))
    found = {}
    monkeypatch.setattr(
        checkpoints, 'check_checkpoint', lambda *_: {**WHOLE, **found}
    )
    check_start(cfg)
    found.update(change)
    with pytest.raises(UserInputError, match=f'x.pth .*no valid {name}'):
        check_start(cfg)
    if 'param_schedulers' in change:
        cfg.param_scheduler = None  # then none are saved
        check_start(cfg)


def test_one_training_a_work_directory(tool, config, tmp_path, monkeypatch):
    monkeypatch.setattr(work_dir, '_WAIT_SECONDS', 0.1)
    folder = tmp_path / 'run'
    argv = ['train', config, '--work-dir', folder]
    child = os.fork()
    if not child:
        with work_dir.lock_work_dir(folder):
            (folder / 'held').touch()
            time.sleep(600)
    while not (folder / 'held').exists():
        time.sleep(0.01)
    result = tool(*argv)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    _one_sentence(result, 'Another training goes on', str(folder))
    with pytest.raises(AssertionError, match='the model was built'):
        tool(*argv)


def test_a_full_disk_and_an_end_by_a_signal(
    tool, config, tmp_path, monkeypatch
):
    def fill(cfg):
        raise OSError(errno.ENOSPC, 'No space left on device', 'epoch_1.pth')

    def end(cfg):
        os.kill(os.getpid(), signal.SIGTERM)

    argv = ['train', config, '--work-dir', tmp_path / 'run']
    monkeypatch.setattr(runner, 'build_runner', fill)
    _one_sentence(tool(*argv), 'epoch_1.pth', 'No space left')
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(runner, 'build_runner', end)
    code, error = tool(*argv)
    signal.signal(signal.SIGTERM, handler)
    assert code == 143
    assert error.strip().splitlines()[-1] == 'terminated'
