"""Bad input gets one sentence and exit code 2, before a model is built."""

import subprocess
import sys
from unittest.mock import Mock

import pytest
from mmengine.runner import Runner

from sb_mm.engine import cli, runner

from .conftest import MAIN, REPOSITORY, assert_says


@pytest.fixture(autouse=True)
def _no_model_is_built(monkeypatch):
    build = Mock(side_effect=AssertionError('built before the check'))
    monkeypatch.setattr(Runner, 'build_model', build)


def _one_sentence(result: tuple[int, str], *words: str) -> None:
    code, error = result
    assert code == 2, error
    assert 'Traceback' not in error
    assert_says(error.strip().splitlines()[-1], 'error: ', *words)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (None, 'mine.py does not exist'),
        ('model = dict(\n', 'mine.py cannot be read'),
        ('model = dict(type=nothing)\n', "name 'nothing' is not defined"),
        ('x = 1\n', 'has no model'),
        (
            "custom_imports = dict(imports=['mine'])\n"
            'custom_imports["allow_failed_imports"] = False\n',
            "No module named 'absent'",
        ),
        (
            f'_base_ = "{MAIN}"\nmodel = dict(backbone=dict(lamda_init=1))\n',
            'did you mean lambda_init',
        ),
    ],
    ids=['none', 'syntax', 'name', 'no model', 'import', 'argument'],
)
def test_a_config_that_cannot_be_used(
    tool, tmp_path, monkeypatch, text, words
):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/__init__.py').write_text('import absent')
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / 'mine.py'
    if text is not None:
        config.write_text(text)
    work_dir = tmp_path / 'run'
    _one_sentence(tool('train', config, '--work-dir', work_dir), words)
    assert not work_dir.exists()


def test_an_mmpretrain_that_newer_transformers_break(
    tool, tmp_path, monkeypatch
):
    (tmp_path / 'likehost.py').write_text('class Bert(None):\n    pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, 'version', lambda name: f'{name} 5.1')
    config = tmp_path / 'mine.py'
    config.write_text("custom_imports = dict(imports=['likehost'])\n")
    result = tool('train', config)
    _one_sentence(result, 'transformers 5.1', 'pip install "transformers<5"')

    (tmp_path / 'mmpretrain.py').write_text('class Bert(None):\n    pass\n')
    monkeypatch.delitem(sys.modules, 'mmpretrain', raising=False)
    _one_sentence(tool('train', MAIN), 'pip install "transformers<5"')


@pytest.mark.parametrize('option', ['--data-root', '--cfg-options data_root='])
def test_a_missing_data_root_is_named(tool, tmp_path, option):
    words = f'{option} {tmp_path}/no'.replace('= ', '=').split()
    _one_sentence(tool('train', MAIN, *words), f'{tmp_path}/no/VOC2007/Image')


@pytest.fixture
def broken(devkit):
    """The devkit without one of its images."""
    (devkit / 'JPEGImages/a.jpg').unlink()


NEEDS_GPU = {
    '--amp': '(--amp) needs a GPU',
    '--cfg-options optim_wrapper.type=AmpOptimWrapper': 'AmpOptimWrapper',
    '--cfg-options val_cfg.fp16=True': 'val_cfg.fp16 needs a GPU',
    '--launcher pytorch --cfg-options sync_bn=torch': 'needs GPUs',
    '--launcher pytorch --cfg-options model.backbone.norm_cfg.type=SyncBN': (
        'SyncBN in several processes needs GPUs'
    ),
}


@pytest.mark.parametrize(('options', 'words'), NEEDS_GPU.items())
@pytest.mark.usefixtures('broken')
def test_what_needs_a_gpu_is_refused_before_the_data_are_looked_at(
    tool, config, monkeypatch, options, words
):
    monkeypatch.setattr(runner, 'get_device', lambda: 'cpu')
    _one_sentence(tool('train', config, *options.split()), words)


@pytest.mark.parametrize(
    ('name', 'options', 'rank', 'checked'),
    [
        ('train', '', '1', True),  # of something else
        ('train', '--no-check', '0', False),
        ('test x.pth', '--no-check', '0', False),
        ('train', '--launcher pytorch', '0', True),
        ('test x.pth', '--launcher pytorch', '1', False),
    ],
)
@pytest.mark.usefixtures('broken')
def test_only_the_first_process_checks_and_only_if_it_shall(
    tool, config, monkeypatch, name, options, rank, checked
):
    build = Mock(side_effect=InterruptedError('built'))
    monkeypatch.setattr(runner, 'build_runner', build)
    monkeypatch.setenv('RANK', rank)
    name, *checkpoint = name.split()
    argv = [name, config, *checkpoint, *options.split()]
    if checked:
        _one_sentence(tool(*argv), 'a (no image)')
    else:
        with pytest.raises(InterruptedError, match='built'):
            tool(*argv)


def test_the_exit_code_reaches_the_shell(tmp_path):
    tool = REPOSITORY / 'tools/make_synthetic_voc.py'
    command = [sys.executable, tool, '--out', tmp_path, '--images', '0']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().startswith('error: num_train must be')


def test_a_work_dir_that_is_a_file(tool, config):
    _one_sentence(tool('train', config, '--work-dir', config), str(config))


@pytest.mark.parametrize('out', ['file/x.pkl', 'x.json'])
@pytest.mark.usefixtures('broken')
def test_predictions_that_cannot_be_written_are_refused_first(
    tool, config, tmp_path, out
):
    (tmp_path / 'file').touch()
    argv = ('test', config, 'x.pth', '--out', tmp_path / out)
    _one_sentence(tool(*argv), f"{out}' cannot be written")
