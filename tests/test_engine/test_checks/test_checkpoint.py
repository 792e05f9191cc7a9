"""Checkpoints before a training or test: what does not fit or is hostile."""

import os
from argparse import Namespace

import pytest
import torch
from mmengine.config import Config
from tiny_detector import cut_networks, detector, model_config

from sb_mm.engine import runner
from sb_mm.engine.checks import checkpoint as checkpoints
from sb_mm.engine.checks.checkpoint import (
    check_checkpoint,
    check_start,
    newest_checkpoint,
)
from sb_mm.errors import UserInputError

from ..conftest import Tiny, data_config, tiny_runner

pytest.importorskip('mmdet')


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    cut_networks(monkeypatch)


@pytest.fixture
def cfg():
    classes = dict(classes=('square', 'disc'))
    dataset = dict(type='sb_mm.VOCDevkitDataset', metainfo=classes)
    schedule = [dict(type='ConstantLR')]
    return data_config(
        'mmdet', model_config(), [dataset], param_scheduler=schedule
    )


@pytest.fixture
def save(tmp_path):
    """Write a checkpoint of the config's network; return its path."""

    def write(change=lambda state: None, classes=('square', 'disc'), **more):
        state = detector().state_dict()
        change(state)
        meta = dict(dataset_meta=dict(classes=classes))
        path = tmp_path / 'x.pth'
        torch.save(dict(state_dict=state, meta=meta, **more), path)
        return str(path)

    return write


WEIGHT = 'neck.extra_layers.0.conv.0.conv.weight'


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(classes=('square', 'star')), r'\(square, star\) and the datas'),
        (dict(classes=('disc', 'square')), 'disc, square at another place'),
        (dict(classes=('square',)), 'disc in one of them only'),
        (dict(classes=3), 'holds a int as classes'),
        (dict(change=lambda s: s.pop(WEIGHT)), f'1 tensors are .*{WEIGHT}'),
        (dict(change=lambda s: s.update(a=s[WEIGHT])), r'of this .* \(a\)'),
        (
            dict(change=lambda s: s.update({WEIGHT: torch.ones(1)})),
            rf'do not fit .*{WEIGHT} is \(1,\) instead',
        ),
        (dict(evil=Namespace()), 'x.pth .* add --trust-checkpoint'),
    ],
)
def test_a_checkpoint_of_another_network_or_other_classes(
    cfg, save, change, words
):
    with pytest.raises(UserInputError, match=words):
        check_checkpoint(cfg, save(**change))


def test_what_old_and_other_checkpoints_lack_is_no_fault(cfg, save):
    def drop_counters(state):
        for name in [k for k in state if k.endswith('num_batches_tracked')]:
            del state[name]

    check_checkpoint(cfg, save(drop_counters, ()))


def test_a_checkpoint_with_code_is_refused_until_it_is_trusted(cfg, save):
    path = save(evil=Namespace())
    pretrained = dict(type='Pretrained', checkpoint=path)
    for key, value in (
        ('load_from', path),
        ('model.init_cfg', pretrained),
        ('model.backbone.init_cfg', [pretrained]),
    ):
        start = Config(cfg.to_dict())
        start.merge_from_dict({key: value})
        with pytest.raises(UserInputError, match='x.pth .* add --trust-chec'):
            check_start(start)
        check_start(start, trust=True)


def test_a_training_starts_from_something_that_fits(cfg, save, tmp_path):
    cfg.load_from = save()
    check_start(cfg)
    cfg.load_from = str(tmp_path / 'other.pth')
    torch.save(dict(state_dict=dict(a=torch.ones(1))), cfg.load_from)
    with pytest.raises(UserInputError, match='No tensor of .*other.pth fits'):
        check_start(cfg)


@pytest.mark.parametrize(
    'command',
    [
        'test {config} {path}',
        'train {config} --resume --work-dir {path.parent}',
    ],
)
def test_the_tools_trust_nothing_by_themselves(
    command, tool, config, tmp_path
):
    path = tmp_path / 'x.pth'
    torch.save(dict(a=Namespace()), path)
    (tmp_path / 'last_checkpoint').write_text(str(path))
    code, error = tool(*command.format(config=config, path=path).split())
    assert code == 2, error
    assert error.splitlines()[-1].endswith('add --trust-checkpoint.')


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
    with pytest.raises(UserInputError, match='last_checkpoint is not what'):
        newest_checkpoint(tmp_path)
    name.write_text(5000 * 'x')  # longer than a name can be
    assert newest_checkpoint(tmp_path) == 5000 * 'x'
    name.unlink()
    os.mkfifo(name)
    with pytest.raises(UserInputError, match='last_checkpoint .* a fold'):
        newest_checkpoint(tmp_path)


HUB = dict(log_scalars={}, runtime_info={}, resumed_keys={})
WHOLE = dict(
    state_dict=dict(weight=torch.ones(1)),
    meta=dict(epoch=1, iter=3, seed=0),
    message_hub=HUB,
    optimizer=torch.optim.SGD([torch.ones(1)], 0.1).state_dict(),
    param_schedulers=[{}],
)


@pytest.mark.parametrize(
    ('change', 'name'),
    [
        (dict(meta=dict(epoch=-1, iter=3)), 'meta.epoch'),
        (dict(meta=dict(epoch=1, iter=True)), 'meta.iter'),
        (dict(message_hub=None), 'message_hub'),
        (dict(optimizer=None), 'optimizer'),
        (dict(param_schedulers=None), 'param_schedulers'),
    ],
    ids=str,
)
def test_a_checkpoint_that_cannot_be_resumed(cfg, monkeypatch, change, name):
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


@pytest.mark.parametrize(
    'change',
    [
        dict(meta=dict(epoch=1, iter=3, seed='a')),
        dict(message_hub=dict(a=5)),
        dict(message_hub=dict(HUB, runtime_info=[1])),
        dict(optimizer=dict(state={}, param_groups=[5])),
        dict(param_schedulers=5),
    ],
    ids=str,
)
def test_a_malformed_checkpoint_ends_a_resume(tmp_path, monkeypatch, change):
    path = tmp_path / 'x.pth'
    torch.save(WHOLE | change, path)
    settings = dict(
        param_scheduler=[dict(type='ConstantLR')],
        load_from=str(path),
        resume=True,
        randomness=dict(seed=0),
    )
    tiny = tiny_runner(Tiny(None), tmp_path, 2, **settings)
    monkeypatch.setattr(runner, 'build_runner', lambda _: tiny)
    common = dict(launcher='none', work_dir=str(tmp_path), model={})
    cfg = Config(settings | common)
    with pytest.raises(UserInputError, match='x.pth does not fit this train'):
        runner.train(cfg, check=False)
