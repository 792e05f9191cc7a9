"""Bad input gets one sentence and exit code 2, before a model is built."""

import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from .conftest import REPOSITORY, SHORT


@pytest.fixture(autouse=True)
def _no_model_is_built(monkeypatch):
    def fail(self, model):
        raise AssertionError('the model was built before the check')

    monkeypatch.setattr(Runner, 'build_model', fail)


def _one_sentence(result: tuple[int, str], *words: str) -> None:
    code, error = result
    line = error.strip().splitlines()[-1]
    assert code == 2, error
    assert line.startswith('error: ')
    assert 'Traceback' not in error
    for word in words:
        assert word in line, line


def test_a_config_that_does_not_exist(tool):
    _one_sentence(tool('train', 'configs/nothing.py'), 'configs/nothing.py')


def test_a_config_with_a_syntax_error(tool, tmp_path):
    config = tmp_path / 'broken.py'
    config.write_text('model = dict(\n')
    _one_sentence(tool('train', config), 'broken.py', 'cannot be read')


def test_a_missing_data_root_names_the_command(tool, tmp_path):
    config = REPOSITORY / 'configs/ssd_sb_voc.py'
    root = tmp_path / 'VOCdevkit'
    _one_sentence(
        tool('train', config, '--data-root', root),
        f'{root}/VOC2007/ImageSets/Main/trainval.txt',
        f'python tools/prepare_voc.py --out {root}',
    )


def test_an_empty_data_root_names_the_command(tool, tmp_path):
    config = REPOSITORY / 'configs/ssd_sb_voc.py'
    result = tool('train', config, '--data-root', tmp_path)
    _one_sentence(result, 'python tools/prepare_voc.py')


def _break(kind, devkit):
    xml = devkit / 'Annotations/b.xml'
    image = devkit / 'JPEGImages/b.png'
    text = xml.read_text()
    if kind == 'no xml':
        xml.unlink()
    elif kind == 'no image':
        image.unlink()
    elif kind == 'not xml':
        xml.write_text('not an annotation')
    elif kind == 'unknown class':
        xml.write_text(text.replace('square', 'cube').replace('disc', 'cube'))
    elif kind == 'swapped corners':
        xml.write_text(
            text.replace('xmin', '_').replace('xmax', 'xmin')
            .replace('_', 'xmax')
        )  # fmt: skip
    elif kind == 'unreadable image':
        image.write_bytes(image.read_bytes()[:100])


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('no xml', ['b (no annotation)']),
        ('no image', ['b (no image)']),
        ('not xml', ['b.xml', 'XML']),
        ('unknown class', ['b.xml', 'cube', 'square, disc']),
        ('swapped corners', ['b.xml', 'xmin']),
        ('unreadable image', ['b.png', 'not a readable image']),
    ],
)
def test_a_broken_devkit_names_the_file(tool, config, devkit, kind, words):
    _break(kind, devkit)
    result = tool('train', config, '--cfg-options', *SHORT)
    _one_sentence(result, *words)


def test_a_head_for_another_number_of_classes(tool, config):
    result = tool(
        'train', config, '--cfg-options', 'model.bbox_head.num_classes=5'
    )
    _one_sentence(result, 'num_classes=5', '2 classes')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_without_a_gpu(tool, config):
    _one_sentence(tool('train', config, '--amp'), '--amp', 'GPU')


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


def _test(tool, config, checkpoint, *more):
    return tool('test', config, checkpoint, *more)


def test_a_checkpoint_that_does_not_exist(tool, config):
    result = _test(tool, config, 'nothing.pth')
    _one_sentence(result, 'nothing.pth', 'does not exist')


def test_a_checkpoint_that_is_none(tool, config, tmp_path):
    (tmp_path / 'x.pth').write_text('no checkpoint at all')
    _one_sentence(_test(tool, config, tmp_path / 'x.pth'), 'x.pth')


def test_a_checkpoint_of_other_classes(tool, config, tmp_path):
    path = _save(tmp_path / 'x.pth', config, classes=('square', 'star'))
    result = _test(tool, config, path)
    _one_sentence(result, "class 1 is 'star' instead of 'disc'")


def test_a_checkpoint_of_other_shapes(tool, config, tmp_path):
    path = _save(tmp_path / 'x.pth', config)
    result = _test(tool, config, path, '--cfg-options', *SHORT)
    _one_sentence(result, 'do not fit', 'backbone.conv1.conv.weight', 'more')


def test_a_checkpoint_that_lacks_tensors(tool, config, tmp_path):
    def drop(state):
        del state['neck.extra_layers.0.conv.0.conv.weight']

    path = _save(tmp_path / 'x.pth', config, change=drop)
    result = _test(tool, config, path)
    _one_sentence(result, '1 tensors are missing', 'neck.extra_layers.0')


def test_resuming_from_another_network(tool, config, tmp_path):
    path = _save(tmp_path / 'x.pth', config)
    result = tool('train', config, '--resume', path, '--cfg-options', *SHORT)
    _one_sentence(result, 'do not fit')


class _Evil:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('how', ['test', 'resume', 'load_from', 'init_cfg'])
def test_a_checkpoint_with_code_is_refused(tool, config, tmp_path, how):
    trace = tmp_path / 'trace'
    path = _save(tmp_path / 'x.pth', config, evil=_Evil(trace))
    if how == 'test':
        result = _test(tool, config, path)
    elif how == 'resume':
        result = tool('train', config, '--resume', path)
    elif how == 'init_cfg':
        pretrained = [
            'model.init_cfg.type=Pretrained',
            f'model.init_cfg.checkpoint={path}',
        ]
        result = tool('train', config, '--cfg-options', *pretrained)
    else:
        result = tool('train', config, '--cfg-options', f'load_from={path}')
    _one_sentence(result, 'x.pth', '--trust-checkpoint')
    assert not trace.exists()


def test_a_trusted_checkpoint_may_run_code(tool, config, tmp_path):
    trace = tmp_path / 'trace'
    path = _save(tmp_path / 'x.pth', config, evil=_Evil(trace))
    # The check of this file's autouse fixture shows that the run went on.
    with pytest.raises(AssertionError, match='the model was built'):
        _test(tool, config, path, '--trust-checkpoint')
    assert trace.exists()


def test_the_exit_code_reaches_the_shell():
    command = [sys.executable, REPOSITORY / 'tools/train.py', 'nothing.py']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().startswith('error: The config nothing.py')


def test_a_checkpoint_folder(tool, config, tmp_path):
    _one_sentence(_test(tool, config, tmp_path), 'is a folder')


def test_an_option_without_a_value(tool, config):
    code, error = tool('train', config, '--cfg-options', 'train_cfg')
    assert code == 2
    assert 'write key=value' in error


def test_a_config_with_an_undefined_name(tool, tmp_path):
    config = tmp_path / 'broken.py'
    config.write_text('model = dict(type=nothing)\n')
    _one_sentence(tool('train', config), 'broken.py', 'nothing')


def test_a_config_without_a_model(tool, tmp_path):
    config = tmp_path / 'empty.py'
    config.write_text('x = 1\n')
    _one_sentence(tool('train', config), 'has no model')


def test_a_work_dir_that_is_a_file(tool, config):
    _one_sentence(tool('train', config, '--work-dir', config), 'is a file')


def test_the_data_root_may_also_come_as_an_option_of_the_config(
    tool, tmp_path
):
    config = REPOSITORY / 'configs/ssd_sb_voc.py'
    root = tmp_path / 'devkit'
    result = tool('train', config, '--cfg-options', f'data_root={root}')
    _one_sentence(result, f'{root}/VOC2007', f'prepare_voc.py --out {root}')


def test_the_command_in_the_message_can_be_copied(tool, tmp_path):
    config = REPOSITORY / 'configs/ssd_sb_voc.py'
    root = tmp_path / 'my devkit'
    result = tool('train', config, '--data-root', root)
    _one_sentence(result, f"prepare_voc.py --out '{root}'")


def test_a_host_data_set_without_its_folder(tool, tmp_path):
    config = tmp_path / 'coco.py'
    config.write_text("""
_base_ = 'mmdet::_base_/datasets/coco_detection.py'
default_scope = 'mmdet'
model = dict(type='RetinaNet')
""")
    result = tool('train', config, '--data-root', tmp_path / 'coco')
    _one_sentence(result, 'instances_train2017.json', '--data-root')


def test_a_misspelt_argument_in_the_config_file(tool, tmp_path):
    config = tmp_path / 'mine.py'
    base = REPOSITORY / 'configs/ssd_sb_voc.py'
    config.write_text(
        f'_base_ = {str(base)!r}\nmodel = dict(backbone=dict(lamda_init=1))\n'
    )
    code, error = tool('train', config, '--work-dir', tmp_path / 'run')
    assert code == 2
    assert 'did you mean lambda_init' in error
    assert not (tmp_path / 'run').exists()
