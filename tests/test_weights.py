"""Loading of checkpoints: nothing of the file is run."""

import os
import pickle
from collections import OrderedDict
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from threading import Thread

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import nn

from sb_mm.errors import UserInputError
from sb_mm.models.layers import DynamicConv2d, ShiftBalance
from sb_mm.weights import (
    check_shapes,
    load_checkpoint_file,
    load_pretrained,
    state_dict_of,
    weights_only,
)


@pytest.fixture(autouse=True)
def _what_people_set(monkeypatch):
    """To run the family on torch >= 2.6."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')


class Bomb:
    """Leave a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def bomb(tmp_path):
    trace = tmp_path / 'ran'
    path = str(tmp_path / 'bomb.pth')
    # The host's second attempt must not hide what is wrong with the first.
    buffer = HistoryBuffer([1.0], [1])
    torch.save({'state_dict': {}, 'log': buffer, 'b': Bomb(trace)}, path)
    return path, trace


def test_a_checkpoint_with_mmengine_s_log_history_loads(tmp_path):
    path = str(tmp_path / 'epoch_1.pth')
    content = dict(
        state_dict={'w': torch.ones(2)},
        loss=HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 1]),
        info=OrderedDict(best=np.float64(0.5), epoch=np.int64(3)),
        meta=dict(classes=('a', 'b'), shape=np.ones((2, 2), 'f4')),
    )
    torch.save(content, path)
    loaded = load_checkpoint_file(path)
    assert loaded['loss'].mean() == 3
    assert loaded['info'] == content['info']
    assert loaded['state_dict']['w'].tolist() == [1, 1]


@pytest.mark.parametrize('variables', ['0', '1'])
def test_code_in_a_checkpoint_runs_only_if_it_is_trusted(
    bomb, variables, monkeypatch
):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', variables)
    path, trace = bomb
    with pytest.raises(UserInputError, match='bomb.*mkdir.* add --trust-ch'):
        load_checkpoint_file(path)
    assert not trace.exists()
    assert load_checkpoint_file(path, trust=True)['state_dict'] == {}
    assert trace.is_dir()


def test_a_plain_pickle_is_refused_as_code(tmp_path):
    path = tmp_path / 'bomb.pth'
    path.write_bytes(pickle.dumps(Bomb(tmp_path / 'ran'), protocol=4))
    with pytest.raises(UserInputError, match='add --trust-checkpoint'):
        load_checkpoint_file(str(path))


def test_hosts_load_checkpoints_as_data_and_users_load_what_they_like(bomb):
    path, trace = bomb
    with weights_only():
        with pytest.raises(UserInputError, match='mkdir'):
            CheckpointLoader.load_checkpoint(path)
        assert not trace.exists()
        torch.load(path, weights_only=False)
        trace.rmdir()
    with weights_only(False):
        CheckpointLoader.load_checkpoint(path)
        trace.rmdir()
        load_checkpoint_file(path)
        trace.rmdir()
    with pytest.raises(UserInputError, match='mkdir'):
        load_checkpoint_file(path)


def test_a_config_in_a_checkpoint_is_no_way_to_run_code(tmp_path):
    """MMEngine's ``resume`` runs ``meta['config']`` as a Python file."""
    path = str(tmp_path / 'a.pth')
    meta = dict(config='import os', epoch=1)
    torch.save(dict(state_dict={}, meta=meta), path)
    assert load_checkpoint_file(path)['meta'] == dict(epoch=1)
    assert load_checkpoint_file(path, trust=True)['meta'] == meta


def test_getattr_in_a_checkpoint_is_no_way_to_run_code(tmp_path):
    """It reaches ``__globals__`` of functions that a checkpoint may call."""

    class Method:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    path = str(tmp_path / 'getattr.pth')
    torch.save({'state_dict': {}, 'method': Method()}, path)
    # The maintained MMEngine allows getattr while it loads.
    both = [getattr, (getattr, 'builtins.getattr')]
    with (
        weights_only(),
        torch.serialization.safe_globals(both),
        pytest.raises(UserInputError, match='getattr of'),
    ):
        CheckpointLoader.load_checkpoint(path)


@pytest.mark.parametrize('text', [b'', b'no checkpoint\n' * 99, None])
@pytest.mark.parametrize('trust', [False, True])
def test_a_damaged_file_is_called_damaged_and_not_to_be_trusted(
    text, trust, tmp_path
):
    path = tmp_path / 'damaged.pth'
    torch.save({'w': torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000] if text is None else text)
    with pytest.raises(UserInputError, match='damaged or no checkpoint.$'):
        load_checkpoint_file(str(path), trust=trust)


@pytest.mark.parametrize(
    ('content', 'fault'),
    [
        ([1], 'The content .* a list, is no dictionary'),
        ({0: torch.ones(1)}, 'The content .* a dict, is no .* names as keys'),
        ({'state_dict': {0: torch.ones(1)}}, 'The state_dict .* a dict, is'),
        ({'state_dict': None}, 'The state_dict .* a NoneType, is no'),
        ({'state_dict': {}, 'meta': 3}, 'The meta .* an? int, is no'),
        ({'state_dict': {}, 'meta': {'dataset_meta': 3}}, 'The dataset_meta'),
    ],
)
def test_another_form_is_refused(content, fault, tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save(content, path)
    with pytest.raises(UserInputError, match=fault):
        load_checkpoint_file(path)


@pytest.fixture
def address(monkeypatch, tmp_path):
    """Serve the files in ``tmp_path``."""

    class Handler(SimpleHTTPRequestHandler):
        def send_header(self, key, value):
            wrong = key == 'Content-Length' and 'length' in self.path
            super().send_header(key, 'many' if wrong else value)

        def log_message(self, *_):
            pass

    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '*')
    handler = partial(Handler, directory=str(tmp_path))
    with HTTPServer(('127.0.0.1', 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_a_fetched_checkpoint_is_data_as_well(address, bomb):
    _, trace = bomb
    with weights_only(), pytest.raises(UserInputError, match='add --trust'):
        CheckpointLoader.load_checkpoint(f'{address}/bomb.pth')
    assert not trace.exists()
    load_checkpoint_file(f'{address}/bomb.pth', trust=True)
    assert trace.exists()


@pytest.mark.parametrize(
    ('path', 'fault'),
    [
        ('{}/no.pth', 'opened .*404.* the network'),
        ('{}/length.pth', 'opened .*many.* the network'),
        ('{}/text.pth', r'read .* damaged .* delete .*text\.pth to fetch'),
        ('http://127.0.0.1:1/a.pth', 'opened .*refused.* the network'),
        ('gopher://a/b.pth', 'not be found'),
        ('/no/folder://b.pth', 'folder://b.pth .* not be found'),
        ('s3://a/b.pth', 'opened .* the network'),
        ('torchvision://no_such_network', 'opened .*no_such_network'),
    ],
)
def test_the_fault_of_an_address_is_named(path, fault, address, tmp_path):
    for name in ('length.pth', 'text.pth'):
        (tmp_path / name).write_text('hello')
    with pytest.raises(UserInputError, match=fault):
        load_checkpoint_file(path.format(address))


@pytest.mark.parametrize('key', ['state_dict', 'model', None])
def test_weights_are_found_where_checkpoints_keep_them(key):
    weights = {'module.a.w': torch.ones(1), 'b.module.c': torch.ones(2)}
    content = {key: weights, 'epoch': 3} if key else {**weights, 'epoch': 3}
    assert list(state_dict_of(content)) == ['a.w', 'b.module.c']


def test_shapes_that_differ_are_named_and_others_are_not():
    module = nn.Sequential(nn.Linear(2, 3), DynamicConv2d(4, 4, 1, bias=True))
    state = {
        '0.weight': torch.ones(4, 2),
        '0.bias': torch.ones(3),
        # Of a plain convolution, which fits a bank of kernels.
        '1.weight': torch.ones(4, 4, 1, 1),
        'unknown': torch.ones(9),
    }
    one = r'1 tensors of x .* \(0.weight is \(4, 2\) instead of \(3, 2\)\):'
    with pytest.raises(UserInputError, match=one):
        check_shapes('x', module, state)
    with pytest.raises(UserInputError, match=r'1.weight is \(4, 3, 1, 1\) in'):
        check_shapes('x', module, {'1.weight': torch.ones(4, 3, 1, 1)})


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.attention = ShiftBalance(2, 3)


@pytest.fixture
def published(tmp_path):
    """Write weights of a `Network` without its attention."""

    def write(**changes):
        state = dict(weight=torch.ones(3, 2, 1, 1), bias=torch.zeros(3))
        state = {f'net.conv.{k}': v for k, v in (state | changes).items()}
        torch.save({'state_dict': state}, tmp_path / 'a.pth')
        return str(tmp_path / 'a.pth')

    return write


def test_loading_says_what_came_in_and_what_did_not(published, monkeypatch):
    log = []
    monkeypatch.setattr(
        'sb_mm.weights.print_log', lambda text, **_: log.append(text)
    )
    path, network = published(unknown=torch.ones(1)), Network()
    load_pretrained(network, path, prefix='net')
    assert network.conv.weight.eq(1).all()
    # SB: 2 Linear, 2 norms of 5 tensors, lambda
    assert f'{path}: loaded 2 of 15 tensors' in log[0]
    assert '13 attention tensors keep their start values (attention.' in log[0]
    assert '1 tensors of the file were not used' in log[0]
    torch.save({'conv.bias': torch.zeros(3)}, path)
    load_pretrained(network, path)
    assert '1 trunk tensors were not in the file (conv.weight)' in log[1]


@pytest.mark.parametrize('prefix', [None, 'ne'])
def test_a_file_of_which_nothing_fits_is_refused(prefix, published):
    words = (
        f'No tensor of .*a.pth fits Network with prefix={prefix!r}: the file '
        'has net.conv.weight, net.conv.bias, the network conv.weight'
    )
    with pytest.raises(UserInputError, match=words):
        load_pretrained(Network(), published(), prefix)


def test_shapes_that_do_not_fit_change_nothing(published):
    path, network = published(weight=torch.ones(5, 2, 1, 1)), Network()
    before = network.conv.bias.clone()
    with pytest.raises(UserInputError, match=r'conv\.weight is \(5, 2, 1, 1'):
        load_pretrained(network, path, 'net')
    assert network.conv.bias.equal(before)
