"""A run small enough for a test: four images, SB-SSDLite x0.35."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MAIN = REPOSITORY / 'configs/ssd_sb_voc.py'
CUSTOM = REPOSITORY / 'configs/voc/ssd_sb_custom.py'
# What makes a run fit for a test; nothing of the model.
SHORT = (
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=1',
    *(
        f'{loader}_dataloader.{key}'
        for loader in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ),
    'model.backbone.widen_factor=0.35',
    'model.neck.in_channels=(192,1280)',
    'model.bbox_head.in_channels=(192,1280,512,256,256,64)',
    'randomness.seed=0',
)


@pytest.fixture
def devkit(tiny_devkit) -> Path:
    """A devkit as configs/voc/ssd_sb_custom.py expects it."""
    return tiny_devkit(lists={'train': ['a', 'b', 'c'], 'val': ['a', 'd']})


@pytest.fixture
def config(devkit, tmp_path) -> Path:
    """ssd_sb_custom.py with its two lines changed, in the user's folder."""
    text = CUSTOM.read_text()
    text = text.replace("'data/my_devkit/'", repr(f'{devkit}/'))
    text = text.replace("('cat', 'dog')", "('square', 'disc')")
    text = text.replace("'../ssd_sb_voc.py'", repr(str(MAIN)))
    # MMEngine keeps one visualiser a name and process: without this, the next
    # test's curves would go to the folder of the first one.
    text += f'visualizer = dict(name={tmp_path.name!r})\n'
    path = tmp_path / 'mine.py'
    path.write_text(text)
    return path


def load_tool(name: str) -> object:
    """Import tools/<name>.py as a module."""
    path = REPOSITORY / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'tool_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Run a tool as the shell would: `tool('train', ...)`.

    Returns the exit code and what went to standard error.
    """
    from sb_mm.engine.cli import run_tool

    def run(name: str, *argv: object) -> tuple[int, str]:
        words = [str(word) for word in argv]
        monkeypatch.setattr('sys.argv', [f'{name}.py', *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_tool(load_tool(name).main)
        return stop.value.code, capsys.readouterr().err

    return run
