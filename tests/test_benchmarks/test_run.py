"""The benchmarks run, compare like with like, and are read rightly."""

import json
import sys

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from benchmarks import (  # noqa: E402
    dynamic_conv,
    inference,
    networks,
    report,
    results,
    run,
    targets,
)
from benchmarks.measurement import (  # noqa: E402
    Measurement,
    Settings,
    peak_memory,
    take_turns,
)
from benchmarks.results import Result  # noqa: E402
from sb_mm.engine.cli import run_tool  # noqa: E402
from sb_mm.errors import UserInputError  # noqa: E402
from sb_mm.paper.report import REPOSITORY  # noqa: E402


@pytest.fixture(autouse=True)
def _threads():
    """The benchmarks set them for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run benchmarks/run.py; return exit code, output and errors."""
    # It would hold for all tests behind.
    monkeypatch.setattr(run, 'keep_freed_memory', lambda: True)

    def call(*argv):
        words = [str(word) for word in argv]
        monkeypatch.setattr(sys, 'argv', ['run.py', *words])
        with pytest.raises(SystemExit) as stop:
            run_tool(run.main)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


@pytest.fixture
def devkit(tiny_devkit):
    files = [f'{i:02}.jpg' for i in range(33)]
    return tiny_devkit(
        'VOC2007',
        files,
        {'trainval': [name[:-4] for name in files]},
        classes=('cat', 'dog'),
    )


@pytest.mark.parametrize(
    'name', [n for n in run.BENCHMARKS if 'memory' not in n]
)
def test_every_benchmark_runs_at_a_tiny_size(name, tool, devkit, tmp_path):
    out = tmp_path / 'new' / 'a.json'
    code, printed, error = tool(
        '--tiny', '--only', name, '--out', out, '--data-root', devkit
    )
    assert code == 0, error
    assert f'{name}: ' in printed
    (result,) = results.read(out).values()
    assert result.environment['tiny']
    assert all(v > 0 for m in result.measurements for v in m.values)
    assert len({m.contender for m in result.measurements}) > 1


def allocate(mebibytes):
    """Return what holds as much memory for a moment."""
    return lambda: torch.ones(mebibytes << 18).sum()


def test_the_peak_of_memory_is_that_of_the_call():
    assert 60 < peak_memory(allocate, 60) < 90


def test_contenders_take_turns_in_changing_order_after_a_warm_up():
    calls = []
    found = take_turns(
        dict(a=1),
        dict(x=lambda: calls.append('x'), y=lambda: calls.append('y')),
        rounds=3,
        number=2,
    )
    assert ''.join(calls) == 'xxyy' + 'xxyyyyxxxxyy'
    assert [(m.contender, len(m.values)) for m in found] == [
        ('x', 3),
        ('y', 3),
    ]


def measured(name, values, **case):
    return Measurement(case, name, 'ms', values)


def test_a_ratio_is_taken_round_by_round_and_averaged_over_cases():
    target = targets.Target('', 'b', dict(w=1), ['x'], ['y'], 2.0)
    taken = [
        measured('x', [2.0, 20.0, 6.0], w=1, case=1),
        measured('y', [1.0, 10.0, 2.0], w=1, case=1),
        measured('x', [8.0, 8.0, 3.0], w=1, case=2),
        measured('y', [1.0, 1.0, 1.0], w=1, case=2),
        measured('x', [99.0] * 3, w=2, case=1),
        measured('y', [1.0] * 3, w=2, case=1),
    ]
    ratio = target.ratio(dict(b=Result({}, [], taken)))
    # Rounds: sqrt(2 * 8), sqrt(2 * 8), sqrt(3 * 3).
    assert ratio.median == pytest.approx(4)
    assert (ratio.low, ratio.high) == (pytest.approx(3.5), pytest.approx(4))
    assert not target.reached(ratio)
    least = targets.Target('', 'b', dict(w=1), ['x'], ['y'], 2.0, True)
    assert least.reached(ratio)


def test_the_fastest_of_several_counts():
    target = targets.Target('', 'b', {}, ['p', 'q'], ['r', 's'], 1.0)
    taken = [
        measured('p', [4.0]),
        measured('q', [2.0]),
        measured('r', [8.0]),
        measured('s', [16.0]),
    ]
    ratio = target.ratio(dict(b=Result({}, [], taken)))
    assert ratio.median == pytest.approx(0.25)


def test_what_was_not_measured_is_not_run():
    rows = targets.table({})
    assert {row[2] for row in rows} == {'not run'}
    other = Result({}, [], [measured('static', [1.0], device='cpu')])
    rows = targets.table(dict(detector_step=other))
    assert {row[2] for row in rows} == {'not run'}


def test_every_target_names_a_benchmark():
    assert {t.benchmark for t in targets.TARGETS} <= set(run.BENCHMARKS)


def test_a_form_that_computes_something_else_is_refused(monkeypatch):
    class Other(dynamic_conv.GroupedDynamicConv2d):
        def forward(self, x):
            return super().forward(x) * 1.001

    monkeypatch.setattr(dynamic_conv, 'GroupedDynamicConv2d', Other)
    with pytest.raises(RuntimeError, match='grouped convolution differs'):
        list(dynamic_conv.dynamic_conv(Settings(rounds=1, tiny=True)))
    with pytest.raises(RuntimeError, match='file differs by 2.0e-04'):
        inference._check_equal('file', torch.zeros(2), torch.full((2,), 2e-4))


def test_the_static_network_with_the_norm_of_sb_is_the_static_one():
    images = torch.randn(4, 3, 96, 96)
    ours = networks.build_same_norm(0.35).train()(images)[-1]
    plain = networks.build(networks.STATIC, 0.35).train()(images)[-1]
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


def test_a_package_that_is_not_there_is_noted_and_left_out():
    notes = []
    assert not networks.installed('no_such_package', notes)
    assert not networks.installed('no_such_package', notes)
    assert notes == ['no_such_package is not installed: left out']


def test_a_file_keeps_the_results_of_other_benchmarks(tool, tmp_path):
    out = tmp_path / 'a.json'
    before = Result(dict(tiny=False), ['a note'], [measured('x', [1.0], w=1)])
    results.write(dict(augmentation=before), out)
    code, _, error = tool('--tiny', '--only', 'cifar_step', '--out', out)
    assert code == 0, error
    found = results.read(out)
    assert found['augmentation'] == before
    assert list(found) == ['augmentation', 'cifar_step']
    assert json.loads(out.read_text())
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (('--data-root', 'nowhere'), 'nowhere/VOC2007/.* does not exist'),
        (('--only', 'scaling', '--rounds', '0'), '--rounds must be'),
        (('--only', 'scaling', '--threads', '0'), '--threads must be'),
        (('--only', 'scaling', '--out', '.'), 'is a folder'),
        (('--only', 'scaling', '--device', 'cuda'), 'finds no GPU'),
    ],
)
def test_bad_input_is_refused_at_once(tool, argv, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(run, 'BENCHMARKS', dict.fromkeys(run.BENCHMARKS))
    code, _, error = tool(*argv)
    assert code == 2
    import re

    assert re.search(message, error.replace('\n', ' '))


def test_a_file_of_others_is_refused(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{"a": 1}')
    with pytest.raises(UserInputError, match='is no file of results'):
        results.read(path)


def test_the_page_is_what_the_results_say():
    found = results.read(REPOSITORY / 'results/performance.json')
    assert report.page(found) == report.PAGE.read_text()
    # A page of next to nothing would be none.
    assert not any(r.environment['tiny'] for r in found.values())


def test_a_table_has_a_column_for_each_contender():
    taken = [
        measured('x', [1.0, 2.0, 3.0], batch=1, size=8),
        measured('y', [4.0], batch=1, size=8),
        measured('x', [5.0], batch=2, size=8),
    ]
    assert report.times(Result({}, [], taken)).splitlines() == [
        '| median (quartiles), ms | x | y |',
        '| --- | --- | --- |',
        '| batch 1 | 2 (1.5-2.5) | 4 (4-4) |',
        '| batch 2 | 5 (5-5) |  |',
    ]
