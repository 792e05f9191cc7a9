"""What tools/paper.py prints, and its exit codes."""

import runpy
import sys

import pytest

from sb_mm.files import repository
from sb_mm.paper import report
from sb_mm.paper.records import append_record, read_records

CELL = 't9-x0.35-gate-relu'
OPTIONS = '--cells', CELL, '--cfg-options'


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs the tool in this process."""

    def run(*words):
        argv = ['tools/paper.py', *map(str, words)]
        monkeypatch.setattr(sys, 'argv', argv)
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(repository() / argv[0]), run_name='__main__')
        return exit_.value.code or 0

    return run


def test_list_shows_configs_and_results(run, make_record, tmp_path, capsys):
    for seed, final in enumerate([90.0, 92.0]):
        append_record(make_record(CELL, final, seed=seed), tmp_path)
    words = ('list', '--table', 9, '--width', 0.35, '--results', tmp_path)
    assert run(*words) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines()}
    numbers = f'{CELL} 90.604 ± 0.728 91.000 ± 1.414 (runs: 2) configs/'
    assert ' '.join(lines[CELL].split()).startswith(numbers)
    assert lines[CELL].endswith('.py model.backbone.attention.gate=relu')
    assert ' not run ' in lines['t9-x0.35-gate-tanh']
    assert run(*words[:-1], tmp_path / 'nowhere') == 2
    assert 'nowhere holds no records' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'Nothing to train'),
        (['--cells', 't6-x0.35-zb'], 'did you mean t6-x0.35-sb'),
        (['--cells', CELL, '--only', 1], '--only must be an integer in'),
        (['--cells', CELL, '--seeds', -1], '--seeds must be an integer in [0'),
        (['--cells', CELL, '--epochs', 0], '--epochs must be an integer in'),
        (['--cells', CELL, '--ray', '--jobs', 2], 'not allowed with'),
        (['--cells', CELL, '--data-root', 'nowhere'], 'nowhere'),
        (['--cells', CELL, '--results', __file__], 'cannot be opened or wr'),
        ([*OPTIONS, 'model.backbone.attention.lamda_init=1'], 'lambda_init'),
        ([*OPTIONS, 'work_dir=x'], 'have no effect here'),
        ([*OPTIONS, 'train_cfg.val_begin=201'], 'val_begin comes after'),
        (['--cells', 't1-sb-x0.35', '--channels-last'], '--channels-last is'),
    ],
)
def test_what_cannot_be_trained_is_refused(
    run, words, message, tmp_path, capsys
):
    out = ('--out', tmp_path / 'out', '--results', tmp_path)
    assert run('train', *out, *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_what_is_recorded_is_not_done_again(
    run, make_record, tmp_path, capsys
):
    append_record(make_record('t6-x0.35-sb'), tmp_path)
    words = ('train', '--table', 6, '--width', 0.35, '--attention', 'sb')
    words += ('--seeds', 0, 1, '--results', tmp_path, '--out', tmp_path)
    assert run(*words, '--dry-run') == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('0  t6-x0.35-sb seed 0  recorded  ')
    assert second.startswith('1  t6-x0.35-sb seed 1  to do  ')
    assert run(*words, '--only', 0) == 0
    assert capsys.readouterr().out == '1.00 h, result (%): 91.00\n'
    assert run(*words, '--slurm') == 0
    assert capsys.readouterr().out.startswith('sbatch --array=0-1 ')


@pytest.mark.slow
def test_the_tool_trains_in_processes_and_records(
    run, cifar, tmp_path, capsys, monkeypatch
):
    words = (
        'train', '--cells', 't6-x0.35-static', '--epochs', 1, '--jobs', 1,
        '--data-root', cifar, '--out', tmp_path / 'out', '--results', tmp_path,
        '--cfg-options', 'train_dataloader.batch_size=8',
    )  # fmt: skip
    assert run(*words) == 0
    (record,) = read_records(tmp_path)
    assert f'static seed 0: {record}\n' in capsys.readouterr().out
    # The page goes beside records that are not the repository's.
    monkeypatch.setattr(report, 'results_page', lambda r: f'{len(r)}\n')
    assert run('report', '--results', tmp_path) == 0
    assert (tmp_path / 'results.md').read_text() == '1\n'
