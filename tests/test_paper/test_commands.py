"""What tools/paper.py prints, and its exit codes."""

import runpy
import subprocess
import sys

import pytest

from sb_mm.errors import UserInputError
from sb_mm.paper import commands
from sb_mm.paper.cells import REPOSITORY
from sb_mm.paper.records import Results, append_record, read_results

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
    assert 'mobilenetv2-sb-w0.35_1xb128-200e_cifar10.py' in lines[CELL]
    assert 'model.backbone.attention.gate=relu' in lines[CELL]
    assert '90.604 ± 0.728' in lines[CELL]
    assert '91.000 ± 1.414 (runs: 2)' in lines[CELL]
    assert 'not run (1 reduced: 9' in lines['t9-x0.35-gate-none']
    assert lines['t9-x0.35-gate-tanh'].rstrip().endswith('not run')
    assert run(*words[:-1], tmp_path / 'nowhere') == 2
    assert 'nowhere is not a folder' in capsys.readouterr().err


def test_show_prints_the_resolved_config_and_the_command(run, capsys):
    assert run('show', 't5-x0.35-sb-expand', '--layers') == 0
    text = capsys.readouterr().out
    # Not only in the command; and no markup of rich.
    assert "attention_layers=[\n            'expand',\n        ]" in text
    assert 'attention_layers=[expand]' in text
    assert '# 1,091,498 parameters' in text
    assert text.count('# backbone.') == 17
    assert text.splitlines()[-1] == (
        'python tools/paper.py train --cells t5-x0.35-sb-expand --seeds 0'
    )


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'Nothing to train'),
        (['--cells', 't6-x0.35-zb'], 'did you mean t6-x0.35-sb'),
        (['--cells', CELL, '--only', 1], '--only must be an integer in'),
        (['--cells', CELL, '--seeds', 0, 0], 'a seed twice'),
        (['--cells', CELL, '--seeds', -1], '-1 is no whole number'),
        (['--cells', CELL, '--epochs', 0], '0 is no whole number'),
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


def test_jobs_are_listed_without_those_that_are_recorded(
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
    assert 'recorded in' in capsys.readouterr().out


@pytest.mark.slow
def test_the_tool_trains_in_processes_and_records(cifar, tmp_path):
    command = [
        sys.executable, 'tools/paper.py', 'train', '--cells',
        't6-x0.35-static', '--epochs', '1', '--data-root', cifar,
        '--jobs', '1', '--out', tmp_path / 'out', '--results', tmp_path,
        '--cfg-options', 'train_dataloader.batch_size=8',
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (record,) = read_results(tmp_path).records
    assert f'static seed 0: {record.final:.2f} %' in done.stdout


def test_report_names_what_is_stale_and_writes_it(
    monkeypatch, tmp_path, capsys
):
    page = tmp_path / 'a.md'
    refused = Results([], ['table6.jsonl line 9 is broken'])
    monkeypatch.setattr(commands, 'generate', lambda found: {page: 'new\n'})
    monkeypatch.setattr(commands, 'read_results', lambda folder: refused)
    own = REPOSITORY / 'results'
    assert commands.report(check=True, results=own) == 1
    assert not page.exists()
    assert commands.report(check=False, results=own) == 0
    assert page.read_text() == 'new\n'
    assert commands.report(check=True, results=own) == 0
    printed = capsys.readouterr()
    assert printed.err.count('left out: table6.jsonl line 9') == 3
    assert printed.out.splitlines() == [
        f'stale: {page}',
        'run: python tools/paper.py report',
        f'written: {page}',
        'all 1 files are up to date',
    ]


def test_other_records_have_their_page_beside_them(make_record, tmp_path):
    with pytest.raises(UserInputError, match='holds no records'):
        commands.report(check=False, results=tmp_path)
    append_record(make_record('t5-x0.35-sb-expand', 47.125), tmp_path)
    before = (REPOSITORY / 'docs/results.md').read_bytes()
    assert commands.report(check=False, results=tmp_path) == 0
    assert '47.125' in (tmp_path / 'results.md').read_text()
    assert (REPOSITORY / 'docs/results.md').read_bytes() == before
