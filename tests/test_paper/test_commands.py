"""What tools/paper.py prints, and its exit codes."""

import runpy
import sys
from dataclasses import replace

import pytest

from sb_mm.paper import commands
from sb_mm.paper.cells import REPOSITORY, find_cell
from sb_mm.paper.records import append_record, read_records

CELL = 't9-x0.35-gate-relu'


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs the tool in this process."""

    def run(*words):
        argv = ['tools/paper.py', *map(str, words)]
        monkeypatch.setattr(sys, 'argv', argv)
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(REPOSITORY / argv[0]), run_name='__main__')
        return exit_.value.code or 0

    return run


def test_list_shows_configs_and_full_and_reduced_trainings(
    run, make_record, tmp_path, capsys
):
    records = [
        make_record(CELL, 90.0),
        make_record(CELL, 92.0, seed=1),
        make_record('t9-x0.35-gate-none', 9.0, options={'x': 1}),
    ]
    for record in records:
        append_record(record, tmp_path)
    (tmp_path / 'table1.jsonl').write_text('rubbish\n')
    words = ('list', '--table', 9, '--width', 0.35, '--results', tmp_path)
    assert run(*words) == 0
    printed = capsys.readouterr()
    assert 'left out: table1.jsonl line 1' in printed.err
    lines = {line.split()[0]: line for line in printed.out.splitlines()}
    assert 'model.backbone.attention.gate=relu' in lines[CELL]
    assert '90.604 ± 0.728' in lines[CELL]
    assert '91.000 ± 1.414 (runs: 2)' in lines[CELL]
    assert 'not run (1 reduced: 9' in lines['t9-x0.35-gate-none']
    assert lines['t9-x0.35-gate-tanh'].rstrip().endswith('not run')
    assert run(*words[:-1], tmp_path / 'nowhere') == 2
    assert 'nowhere holds no records' in capsys.readouterr().err


def test_show_prints_the_resolved_config_and_the_command(run, capsys):
    assert run('show', 't5-x0.35-sb-expand', '--layers') == 0
    text = capsys.readouterr().out
    # Not only in the command; and no markup of rich.
    assert "attention_layers=[\n            'expand',\n        ]" in text
    assert 'attention_layers=[expand]' in text
    assert '# 1,091,498 parameters' in text
    assert text.count('# backbone.') == 17


def test_check_prints_every_count_and_tells_a_mismatch(
    run, monkeypatch, capsys
):
    ids = ('t1-static-x0.35', 't1-dyconv-x0.35', 't10-x0.35-hidden-x1')
    assert run('check', '--cells', *ids) == 0
    text = capsys.readouterr().out
    assert '3 networks; parameters: 3 printed, 3 as counted here' in text
    # The DyConv paper's multiply-adds are those of another network.
    assert 'multiply-adds: 2 printed, 1 as counted here, 1 of another' in text
    (line,) = [x.split() for x in text.splitlines() if 't1-dyconv' in x]
    assert line[1:6] == ['2,689,836', '2.690', '+0.000', 'ok', '60.53']
    assert line[6:] == ['62.00', '-1.47', 'another', 'network']
    cell = find_cell(ids[2])
    wrong = replace(cell, printed={**cell.printed, 'params_m': 1.442})
    monkeypatch.setattr(commands, 'select_cells', lambda *_: [wrong])
    assert run('check') == 1
    assert f'mismatch: {cell.id}' in capsys.readouterr().out


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
    ],
)
def test_what_cannot_be_trained_is_refused(
    run, words, message, tmp_path, capsys
):
    out = ('--out', tmp_path / 'out', '--results', tmp_path)
    assert run('train', *words, *out) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_jobs_are_listed_with_what_is_known_of_them(
    run, make_record, tmp_path, capsys
):
    append_record(make_record('t6-x0.35-sb'), tmp_path)
    words = ('train', '--table', 6, '--width', 0.35, '--attention', 'sb')
    words += ('--seeds', 0, 1, '--results', tmp_path, '--out', tmp_path)
    assert run(*words, '--dry-run') == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('0  t6-x0.35-sb seed 0  recorded  ')
    assert second.startswith('1  t6-x0.35-sb seed 1  epoch 0 of 200  ')
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
    monkeypatch.setattr(commands, 'results_page', lambda r: f'{len(r)}\n')
    assert run('report', '--results', tmp_path) == 0
    assert (tmp_path / 'results.md').read_text() == '1\n'
