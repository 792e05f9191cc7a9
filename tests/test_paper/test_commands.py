"""What tools/paper.py prints, and its exit codes."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sb_mm.errors import UserInputError
from sb_mm.paper import commands
from sb_mm.paper.cells import REPOSITORY
from sb_mm.paper.check import CheckedCell, Comparison, check_cell
from sb_mm.paper.records import Results, append_record

CELL = 't9-x0.35-gate-relu'


def test_list_shows_configs_and_full_and_reduced_runs(
    make_record, tmp_path, capsys
):
    records = [
        make_record('t9-x0.35-gate-relu', 90.0),
        make_record('t9-x0.35-gate-relu', 92.0, seed=1),
        make_record('t9-x0.35-gate-none', 9.0, deviations=['x=1']),
    ]
    for record in records:
        append_record(record, tmp_path)
    commands.list_cells(table=9, width=0.35, results=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    (relu,) = [x for x in lines if CELL in x]
    assert 'mobilenetv2-sb-w0.35_1xb128-200e_cifar10.py' in relu
    assert 'model.backbone.attention.gate=relu' in relu
    assert '90.604 ± 0.728' in relu
    assert '91.000 ± 1.414 (runs: 2)' in relu
    (none,) = [x for x in lines if 't9-x0.35-gate-none' in x]
    assert 'not run (1 reduced: 9' in none
    (tanh,) = [x for x in lines if 't9-x0.35-gate-tanh' in x]
    assert tanh.rstrip().endswith('not run')


def test_what_list_leaves_out_is_named(tmp_path, capsys):
    (tmp_path / 'table6.jsonl').write_text('rubbish\n')
    commands.list_cells(table=6, width=0.35, results=tmp_path)
    printed = capsys.readouterr()
    assert 't6-x0.35-sb' in printed.out
    assert 'left out: table6.jsonl line 1' in printed.err


def test_a_folder_of_records_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserInputError, match='nowhere is not a folder'):
        commands.list_cells(9, 0.35, tmp_path / 'nowhere')


def test_list_shows_lists_of_layers_and_runs_of_repeated_cells(
    make_record, tmp_path, capsys
):
    append_record(make_record('t6-x0.35-sb', deviations=['x=1']), tmp_path)
    commands.list_cells(table=5, width=0.35, results=tmp_path)
    text = capsys.readouterr().out
    assert 'attention_layers=[expand,project]' in text
    (line,) = [x for x in text.splitlines() if 'sb-expand-depthwise' in x]
    assert 'not run (1 reduced: 9' in line


def test_show_prints_the_resolved_config_and_the_commands(capsys):
    commands.show_cell(CELL, seed=3, layers=True)
    text = capsys.readouterr().out
    assert "gate='relu'" in text  # in the config, not only in the command
    assert '# 1,440,510 parameters' in text
    layers = [x for x in text.splitlines() if x.startswith('# backbone.')]
    assert len(layers) == 51
    train, record = text.splitlines()[-2:]
    assert shlex.split(train) == [
        'python',
        'tools/train.py',
        'configs/cifar10/mobilenetv2-sb-w0.35_1xb128-200e_cifar10.py',
        '--work-dir',
        f'work_dirs/{CELL}/seed3',
        '--cfg-options',
        'randomness.seed=3',
        'model.backbone.attention.gate=relu',
    ]
    assert record == (
        f'python tools/paper.py record {CELL} work_dirs/{CELL}/seed3'
    )


def test_check_prints_every_count_beside_the_papers(capsys):
    commands.check_cells(10)
    text = capsys.readouterr().out
    assert '2,447,042' in text
    assert '4 printed, 4 as counted here' in text


def test_check_exits_with_1_on_a_mismatch(monkeypatch, capsys):
    def wrong(cell):
        checked = check_cell(cell)
        off = Comparison(1.5, 1.4, 1.4, 5e-4)
        return CheckedCell(
            cell, checked.cost, off, checked.multiply_adds
        )  # fmt: skip

    monkeypatch.setattr(commands, 'check_cell', wrong)
    with pytest.raises(SystemExit) as exit_:
        commands.check_cells(10)
    assert exit_.value.code == 1
    assert 'mismatch: t10-x0.35-hidden-x1' in capsys.readouterr().out


def test_dyconvs_multiply_adds_are_not_called_checked(capsys):
    commands.check_cells(1)
    text = capsys.readouterr().out
    (line,) = [x for x in text.splitlines() if 't1-dyconv-x0.35' in x]
    assert line.split()[-2:] == ['another', 'network']
    assert '16 printed, 12 as counted here, 4 of another network' in text


def test_report_names_what_is_stale_and_writes_it(
    monkeypatch, tmp_path, capsys
):
    files = {tmp_path / 'a.md': 'new\n'}
    monkeypatch.setattr(commands, 'generate', lambda results: files)
    refused = Results([], ['table6.jsonl line 9 is broken'])
    monkeypatch.setattr(commands, 'read_results', lambda folder: refused)
    monkeypatch.setattr(commands, 'REPOSITORY', tmp_path)
    with pytest.raises(SystemExit) as exit_:
        commands.report(check=True)
    assert exit_.value.code == 1
    assert not (tmp_path / 'a.md').exists()
    commands.report(check=False)
    assert (tmp_path / 'a.md').read_text() == 'new\n'
    commands.report(check=True)
    printed = capsys.readouterr()
    assert printed.err.count('left out: table6.jsonl line 9') == 3
    assert printed.out.splitlines() == [
        'stale: a.md',
        'run: python tools/paper.py report',
        'written: a.md',
        'all 1 files are up to date',
    ]


@pytest.mark.slow
def test_records_of_another_folder_have_their_page_in_it(
    make_record, tmp_path, capsys
):
    append_record(make_record('t5-x0.35-sb-expand', 47.125), tmp_path)
    before = (REPOSITORY / 'docs/results.md').read_bytes()
    page = tmp_path / 'results.md'
    with pytest.raises(SystemExit):
        commands.report(check=True, folder=tmp_path)
    assert not page.exists()
    commands.report(check=False, folder=tmp_path)
    assert '47.125' in page.read_text()
    # That page is not beside it.
    assert 'attention.md' not in page.read_text()
    assert (REPOSITORY / 'docs/results.md').read_bytes() == before
    commands.report(check=True, folder=tmp_path)
    # The hosts say what they miss when they are imported first.
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if 'OneDL' not in line] == [
        f'stale: {page}',
        f'run: python tools/paper.py report --results {tmp_path}',
        f'written: {page}',
        'all 1 files are up to date',
    ]
    with pytest.raises(UserInputError, match='nowhere is not a folder'):
        commands.report(check=False, folder=tmp_path / 'nowhere')


def test_a_page_is_not_written_over_what_somebody_wrote(make_record, tmp_path):
    page = tmp_path / 'results.md'
    page.write_text('mine')
    with pytest.raises(UserInputError, match='holds no records'):
        commands.report(check=False, folder=tmp_path)
    append_record(make_record('t5-x0.35-sb-expand'), tmp_path)
    with pytest.raises(UserInputError, match='not written by this tool'):
        commands.report(check=False, folder=tmp_path)
    assert page.read_text() == 'mine'


def test_the_folder_of_the_repository_has_no_page_in_it(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(commands, 'generate', lambda results: {})
    commands.report(check=False, folder=Path('results'))
    assert not Path('results/results.md').exists()
    own = 'python tools/paper.py report'
    assert commands.report_command(Path('results')) == own


@pytest.mark.parametrize('seed', ['-3', '1.5', str(2**32), 'x'])
def test_a_seed_that_numpy_does_not_take_is_refused(seed):
    done = subprocess.run(
        [sys.executable, 'tools/paper.py', 'show', CELL, f'--seed={seed}'],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert 'is not a whole number from 0' in done.stderr
