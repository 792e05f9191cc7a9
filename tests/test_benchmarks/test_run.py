"""The benchmarks run, compare like with like, and are read rightly."""

import json
import re
import sys
import time

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from benchmarks import (  # noqa: E402
    cifar_pipeline,
    dynamic_conv,
    explanations,
    inference,
    networks,
    pipeline,
    report,
    results,
    run,
    targets,
)
from benchmarks.measurement import (  # noqa: E402
    Measurement,
    Settings,
    peak_memory,
    rates_in_turns,
    take_turns,
)
from benchmarks.results import Result  # noqa: E402
from sb_mm.engine.cli import run_tool  # noqa: E402
from sb_mm.engine.on_device import has_device_data  # noqa: E402
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


@pytest.mark.parametrize('name', run.BENCHMARKS)
def test_every_benchmark_runs_at_a_tiny_size(name, tool, devkit, tmp_path):
    out = tmp_path / 'new' / 'a.json'
    code, printed, error = tool(
        '--tiny', '--only', name, '--out', out, '--data-root', devkit
    )
    assert code == 0, error
    assert f'{name}: ' in printed
    assert f'torch {torch.__version__.split("+")[0]}' in printed
    (result,) = results.read(out).values()
    assert result.environment['tiny']
    values = [v for m in result.measurements for v in m.values]
    # A tiny pass may find the memory that it needs.
    assert min(values) >= 0 if 'memory' in name else min(values) > 0
    assert all(m.threads for m in result.measurements)
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
    assert {m.threads for m in found} == {torch.get_num_threads()}
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


def test_the_fastest_has_the_most_images_a_second():
    target = targets.Target('', 'b', {}, ['p', 'q'], ['r'], 1.0)
    taken = [
        Measurement({}, name, 'images/s', [value])
        for name, value in dict(p=4.0, q=2.0, r=1.0).items()
    ]
    assert target.ratio(dict(b=Result({}, [], taken))).median == 4


def test_each_contender_counts_its_own_images():
    waits = dict.fromkeys(('one', 'many'), lambda: time.sleep(0.01))
    one, many = rates_in_turns({}, waits, 3, dict(one=1, many=1000))
    assert max(one.values) <= 100 < min(many.values)


def test_what_was_not_measured_is_not_run():
    rows = targets.table({})
    assert {row[2] for row in rows} == {'not run'}
    other = Result({}, [], [measured('static', [1.0], device='cpu')])
    rows = targets.table(dict(detector_step_cuda=other))
    assert {row[2] for row in rows} == {'not run'}


def test_every_target_names_a_benchmark():
    assert {t.benchmark for t in targets.TARGETS} <= set(run.keys())


def test_a_form_that_computes_something_else_is_refused(monkeypatch):
    class Other(dynamic_conv.GroupedDynamicConv2d):
        def forward(self, x):
            return super().forward(x) * 1.001

    monkeypatch.setattr(dynamic_conv, 'GroupedDynamicConv2d', Other)
    with pytest.raises(RuntimeError, match='grouped convolution differs'):
        list(dynamic_conv.dynamic_conv(Settings(rounds=1, tiny=True)))
    with pytest.raises(RuntimeError, match='file differs by 2.0e-04'):
        inference._check_equal('file', torch.zeros(2), torch.full((2,), 2e-4))


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
        (('--only', 'scaling', '--device', 'mps'), 'mps: give cpu, cuda or'),
    ],
)
def test_bad_input_is_refused_at_once(tool, argv, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(run, 'BENCHMARKS', dict.fromkeys(run.BENCHMARKS))
    code, _, error = tool(*argv)
    assert code == 2
    assert re.search(message, error.replace('\n', ' '))


def test_a_gpu_has_its_place_beside_the_cpu(tool, tmp_path, monkeypatch):
    def fake(settings):
        yield measured('static', [1.0], device=settings.device)

    monkeypatch.setattr(run, 'BENCHMARKS', dict.fromkeys(run.BENCHMARKS, fake))
    here = results.environment(Settings())
    monkeypatch.setattr(results, 'environment', lambda settings: here)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    out = tmp_path / 'a.json'
    for device in ('cpu', 'cuda'):
        code, _, error = tool(
            '--only', 'detector_step', 'calls', '--device', device,
            '--out', out,
        )  # fmt: skip
        assert code == 0, error
    found = results.read(out)
    # Only what is for a device has two places.
    assert {
        name: result.measurements[0].case['device']
        for name, result in found.items()
    } == dict(calls='cuda', detector_step='cpu', detector_step_cuda='cuda')
    page = report.page(found)
    for name in ('detector_step', 'detector_step_cuda'):
        part = page.split(f'<!-- generated: {name} -->')[1]
        assert part.split('<!-- end')[0].strip().startswith('| ')


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
        '| batch 1 | 2 (1.5-2.5) | 4 |',
        '| batch 2 | 5 |  |',
    ]


def test_the_page_has_the_threads_and_rounds_of_each_measurement():
    where = results.environment(Settings(rounds=99))
    assert 'threads' not in where
    taken = [
        Measurement(dict(a=1), 'x', 'ms', [1.0, 2.0], threads=1),
        Measurement(dict(a=2), 'x', 'ms', [1.0, 2.0], threads=7),
        measured('x', [3.0], a=3),
    ]
    row = report.machine(dict(b=Result(where, [], taken))).splitlines()[-1]
    assert row.split(' | ')[2:4] == ['1, 7, not noted', '2, 1']


def test_the_commit_says_that_the_benchmarks_were_changed(monkeypatch):
    seen = []
    monkeypatch.setattr(
        results, 'commit', lambda *folders: seen.extend(folders)
    )
    results.environment(Settings())
    assert 'benchmarks' in seen
    # The draws of `distribution` are made by these tests.
    assert 'tests/test_datasets/test_transforms' in seen


def test_the_words_of_the_page_have_no_results_of_their_own():
    text = report.TEMPLATE.read_text()
    found = re.findall(r'\d[\d.]* ?(?:ms|s|MiB|GFLOP/s|images/s)\b', text)
    assert not found


def dyconv(values, **case):
    """Return what four forms of one pointwise layer took."""
    layer = dict(inputs=10, outputs=10, size=10, stride=1, batch=1)
    forms = (
        dynamic_conv.OURS,
        dynamic_conv.GROUPED,
        dynamic_conv.ALONE,
        dynamic_conv.GROUPED_ALONE,
    )
    case = dict(width=0.5, kind='pointwise', **layer) | case
    return [
        measured(name, [value], **case)
        for name, value in zip(forms, values, strict=True)
    ]


def test_the_bound_is_the_ratio_to_the_convolution_alone():
    found = dict(dynamic_conv=Result({}, [], dyconv([4.0, 6.0, 2.0, 5.0])))
    (row,) = [
        row
        for row in targets.table(found)
        if row[0].startswith('3: DyConv pointwise') and row[2] != 'not run'
    ]
    assert row[2:] == ['1.50 (1.50-1.50)', '3.00', '**no**']
    words = explanations.limits(found)
    assert 'convolution takes 2.50 (x0.5) times' in words
    # 6 products of 10 x 10 x 100 in 2 ms.
    assert 'compute 0 to 0 GFLOP/s' in words
    small, large = (
        dyconv([4.0, 6.0, 2e-3, 5.0]),
        dyconv([4.0, 6.0, 1e-3, 5.0], size=20),
    )
    found = dict(dynamic_conv=Result({}, [], [*small, *large]))
    assert 'compute 30 to 240 GFLOP/s' in explanations.limits(found)


def test_what_is_reached_is_not_explained():
    found = dict(dynamic_conv=Result({}, [], dyconv([4.0, 9.0, 2.0, 5.0])))
    assert 'DyConv' not in explanations.limits(found)


def test_the_words_on_the_calls_are_numbers_of_the_results():
    case = dict(width=0.35, batch=16, layout='channels_last')
    flat = dict(case, layout='NCHW')
    found = dict(
        training_step=Result(
            {},
            [],
            [
                measured('static', [100.0], **case),
                measured('SB', [150.0], **case),
            ],
        ),
        calls=Result(
            {},
            [],
            [
                measured('static', [10.0], **case),
                measured('SB', [40.0], **case),
                measured('static', [10.0], **flat),
                measured('SB', [27.0], **flat),
            ],
        ),
    )
    words = explanations.limits(found)
    assert 'SB takes 17 ms (x0.35) longer' in words
    assert 'that alone makes 1.30 (x0.35)' in words
    assert 'x1.0' not in words


def test_dynamic_convolutions_are_summed_over_the_layers():
    taken = dyconv([1.0, 2.0, 3.0, 4.0]) + dyconv([10.0, 20.0, 30.0, 40.0])
    deep = measured(dynamic_conv.OURS, [5.0], width=1.0, kind='depthwise')
    assert report.sums(Result({}, [], [*taken, deep])).splitlines()[2:] == [
        '| pointwise, x0.5 | 11 | 22 | 33 | 44 |',
        '| depthwise, x1.0 | 5 |  |  |  |',
    ]


def test_the_lowest_value_counts_for_a_level():
    level = targets.Level('', 'b', dict(w=1), None, 0.01)
    taken = [
        measured('x', [0.5], w=1),
        measured('y', [0.004], w=1),
        measured('z', [0.001], w=2),
    ]
    found = dict(b=Result({}, [], taken))
    assert level.row(found)[1:] == ['at least 0.01', '0.004, y', '', '**no**']
    one = targets.Level('', 'b', dict(w=1), ['x'], 0.01)
    assert one.row(found)[2:] == ['0.5', '', 'yes']
    free = targets.Level('', 'b', dict(w=1), ['x'], None)
    assert free.row(found)[1:] == ['none', '0.5', '', '']
    assert free.row({})[2] == 'not run'


def test_the_classifiers_of_others_do_what_ours_do():
    images = torch.rand(1, 3, 64, 64) * 255
    for name, make in inference.PEERS.items():
        network = make(0.35, (64, 64))
        with torch.inference_mode():
            scores = network(images)
            darker = network(images / 2)
        assert scores.shape == (1, 1000), name
        assert scores.sum() == pytest.approx(1), name
        assert not torch.equal(scores, darker), name
        ours = inference.build_classifier(networks.STATIC, 0.35)
        numbers = [
            sum(p.numel() for p in n.parameters()) for n in (network, ours)
        ]
        # First and last layers are rounded in other ways.
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02), name


def test_both_inputs_of_cifar_are_of_one_kind(tmp_path):
    for name, way in cifar_pipeline.ways(cifar_pipeline.STEP, 'cpu').items():
        cfg = cifar_pipeline.config(way, 20, 4, tmp_path)
        assert has_device_data(cfg) == (name != cifar_pipeline.STOCK)
        loader = cifar_pipeline.build_loader(cfg)
        assert len(loader) == 5
        model = cifar_pipeline._build(cfg)
        data = model.data_preprocessor(next(iter(loader)), training=True)
        inputs = data['inputs']
        assert inputs.shape == (4, 3, 32, 32)
        assert inputs.dtype == torch.float32
        last = inputs.is_contiguous(memory_format=torch.channels_last)
        assert last == ('channels_last' in name)
        # Black borders of the crop, else 0 to 255.
        mean, std = 125.307, 51.5865
        assert inputs[:, 0].min() == pytest.approx(-mean / std, abs=0.01)
        assert inputs[:, 0].max() == pytest.approx(
            (255 - mean) / std, abs=0.03
        )


def test_on_a_gpu_all_are_compiled_and_processes_load_for_the_host(tmp_path):
    found = cifar_pipeline.ways(cifar_pipeline.STEP, 'cuda')
    assert all(way.compile for way in found.values())
    workers = {name: way.workers for name, way in found.items()}
    assert workers.pop(cifar_pipeline.STOCK) > 0
    assert not any(workers.values())
    stock = found[cifar_pipeline.STOCK]
    cfg = cifar_pipeline.config(stock, 20, 4, tmp_path)
    assert cfg.train_dataloader.persistent_workers
    assert len(list(cifar_pipeline.build_loader(cfg))) == 5


def test_a_tiny_run_reads_few_of_many_images(tiny_devkit):
    names = [f'{i:02}' for i in range(40)]
    files = [f'{name}.jpg' for name in names]
    root = tiny_devkit(
        'VOC2007', files, {'trainval': names}, classes=('cat', 'dog')
    )
    # Nothing behind the first images is looked at.
    (root / 'VOC2007/Annotations/39.xml').unlink()
    for dataset in pipeline.build_datasets(
        Settings(tiny=True, data_root=str(root))
    ).values():
        assert 20 < len(dataset) <= 33
    with pytest.raises(UserInputError, match='39'):
        pipeline.build_datasets(Settings(data_root=str(root)))


def test_the_loop_of_a_gpu_is_noted_without_one(tool, tmp_path):
    out = tmp_path / 'a.json'
    code, printed, error = tool('--only', 'detector_loop', '--out', out)
    assert code == 0, error
    assert 'no --device cuda: not run' in printed
    found = results.read(out)
    assert not found['detector_loop'].measurements
    page = report.page(found)
    part = page.split('<!-- generated: detector_loop_cuda -->')[1]
    assert part.split()[0:2] == ['`not', 'run`']
