"""Result records: written from a run, read back, refused if edited."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
from filelock import FileLock

from sb_mm.engine.on_device import use_device_data
from sb_mm.errors import UserInputError
from sb_mm.paper.cells import find_cell
from sb_mm.paper.records import (
    _digest,
    append_record,
    read_records,
    read_results,
    record_run,
    reduced_runs,
    summarize,
)
from sb_mm.paper.runs import (
    config_deviations,
    deviations,
    execution,
    find_starts,
    read_starts,
    without_data,
)
from sb_mm.visualization.work_dir import read_log_lines

CELL = find_cell('t8-x0.35-lambda_init-0.01')


@pytest.fixture
def record(make_record):
    return partial(make_record, CELL.id)


def _write(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder / 'table8.jsonl').write_text(''.join(f'{x}\n' for x in lines))


def test_a_record_survives_the_file(record, tmp_path):
    file = append_record(record(), tmp_path / 'results')
    append_record(record(seed=1), tmp_path / 'results')
    assert file.name == 'table8.jsonl'
    assert read_records(tmp_path / 'results') == [record(), record(seed=1)]


def test_the_same_run_twice_is_an_error(record, tmp_path):
    append_record(record(), tmp_path)
    with pytest.raises(UserInputError, match='with seed 0 already'):
        append_record(record(final=92.0, history=[[200, 92.0]]), tmp_path)
    _write(tmp_path, record().to_line(), record().to_line())
    with pytest.raises(UserInputError, match='line 2 repeats .* line 1'):
        read_records(tmp_path)


def test_a_reduced_run_stands_beside_the_full_one(record, tmp_path):
    append_record(record(), tmp_path)
    append_record(record(deviations=['train_cfg.max_epochs=1']), tmp_path)
    assert len(read_records(tmp_path)) == 2


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(cell='t99'), "no cell 't99'"),
        (dict(final=99.0), 'unfinished: .*is .200, 91.0. '),
        (dict(history=[]), 'is unfinished'),
        (dict(epochs=201), 'and not of epoch 201'),
        (dict(overrides=[]), 'not of the cell'),
        (dict(config='configs/x.py'), 'not of the cell'),
    ],
)
def test_a_record_that_cannot_be_is_left_out(
    record, changes, message, tmp_path
):
    _write(tmp_path, record(seed=1).to_line())
    with (tmp_path / 'table8.jsonl').open('a') as file:
        file.write(replace(record(), **changes).to_line() + '\n')
    found = read_results(tmp_path)
    assert found.records == [record(seed=1)]
    assert len(found.refused) == 1
    assert re.search(message, found.refused[0])


def test_a_record_edited_by_hand_is_left_out(record, tmp_path):
    line = record().to_line()
    for old, new in (('91.0', '92.0'), ('"seed": 0', '"seed": 1')):
        assert old in line
        _write(tmp_path, line.replace(old, new))
        found = read_results(tmp_path)
        assert found.records == []
        assert 'line 1 (t8-x0.35-lambda_init-0.01, ' in found.refused[0]
        assert 'was edited after the run' in found.refused[0]


def test_a_line_that_is_cut_or_lacks_a_field_is_left_out(record, tmp_path):
    for line in (record().to_line()[:-20], '{"cell": "t6-x0.35-sb"}', '[]'):
        _write(tmp_path, line)
        found = read_results(tmp_path)
        assert found.records == []
        assert 'line 1 is not a record' in found.refused[0]


@pytest.mark.parametrize(
    ('cell', 'final', 'diverged'),
    [
        # Ten classes, 10,000 images: 10 % +- 5 * 0.3 %.
        ('t6-x0.35-sb', 10.0, True),
        ('t6-x0.35-sb', 11.4, True),
        ('t6-x0.35-sb', 11.6, False),
        # A thousand classes, 50,000 images: 0.1 % +- 5 * 0.0141 %.
        ('t1-sb-x0.35', 0.16, True),
        ('t1-sb-x0.35', 0.18, False),
        # A mean AP has no chance.
        ('t4-ssd-mobilenetv2-x0.35-sb', 0.0, False),
        ('t4-ssd-mobilenetv2-x0.35-sb', None, True),
    ],
)
def test_chance_and_no_number_are_failures(make_record, cell, final, diverged):
    assert make_record(cell, final).diverged is diverged


def test_chance_depends_on_the_images_that_were_asked(make_record):
    # 500 images: 10 % +- 5 * 1.34 %.
    few = ['val images=500']
    for final, diverged in ((16.6, True), (16.8, False)):
        record = make_record('t6-x0.35-sb', final, deviations=few)
        assert record.diverged is diverged


def test_a_failed_run_is_counted_and_not_averaged(make_record):
    cell = find_cell('t6-x0.35-sb')
    records = [
        make_record(cell.id, 90.0),
        make_record(cell.id, 10.0, seed=1),
        make_record(cell.id, None, seed=2, history=[[1, 30.0]]),
        make_record(cell.id, 92.0, seed=3),
    ]
    summary = summarize(cell, records)
    assert (summary.mean, summary.diverged) == (91.0, 2)
    assert summary.std == pytest.approx(2**0.5)
    failed = summarize(cell, records[1:3])
    assert (failed.mean, failed.std, failed.diverged) == (None, None, 2)


def test_a_record_waits_until_another_process_has_written(record, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / '.lock'):
            waiting = pool.submit(append_record, record(), tmp_path)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            _write(tmp_path, record(seed=1).to_line())
        waiting.result(timeout=30)
    assert [r.seed for r in read_results(tmp_path).records] == [1, 0]


def test_a_summary_is_over_seeds_and_repeats_without_reduced_runs(make_record):
    records = [
        make_record('t6-x0.35-sb', 90.0, seed=0),
        make_record('t9-x0.35-gate-tanh', 92.0, seed=1),
        make_record('t6-x0.35-sb', 10.0, deviations=['x=1']),
        make_record(CELL.id),  # another lambda
    ]
    summary = summarize(find_cell('t10-x0.35-hidden-x1'), records)
    assert [r.final for r in summary.records] == [90.0, 92.0]
    assert summary.mean == 91.0
    assert summary.std == pytest.approx(2**0.5)  # over n - 1
    assert summarize(find_cell('t6-x0.35-static'), records) is None
    assert replace(summary, records=summary.records[:1]).std is None


def test_one_run_cannot_count_twice_under_repeated_cells(
    make_record, tmp_path
):
    append_record(make_record('t6-x0.35-sb'), tmp_path)
    with pytest.raises(UserInputError, match='already, as t6-x0.35-sb'):
        append_record(make_record('t8-x0.35-lambda_init-0.1'), tmp_path)


def test_reduced_runs_are_the_ones_that_deviate(make_record):
    reduced = make_record('t6-x0.35-sb', deviations=['x=1'])
    other = make_record('t6-x0.5-sb', deviations=['x=1'])
    records = [make_record('t6-x0.35-sb'), reduced, other]
    assert reduced_runs(find_cell('t9-x0.35-gate-tanh'), records) == [reduced]


class Run:
    """A work directory as tools/train.py leaves it, start by start."""

    def __init__(self, folder, cell=CELL):
        self.folder = folder
        self.cell = cell

    def start(self, name, epochs, *, info=None, **overrides):
        """Add a start that logged these epochs."""
        cfg = self.cell.resolve()
        cfg.merge_from_dict(
            {k.replace('__', '.'): v for k, v in overrides.items()}
        )
        logs = self.folder / name / 'vis_data'
        logs.mkdir(parents=True)
        cfg.dump(logs / 'config.py')
        lines = [x for epoch in epochs for x in self._epoch(epoch)]
        text = ''.join(json.dumps(line) + '\n' for line in lines)
        (logs / 'scalars.json').write_text(text)
        found = dict(
            seed=7,
            start_epoch=epochs[0] - 1 if epochs else 0,
            processes=1,
            batch=128,
            train=dict(types=['CIFAR10'], images=50_000),
            val=dict(types=['CIFAR10'], images=10_000),
            parameters=5,
            hardware='GPU',
            versions=dict(torch='2'),
            commit='abc',
            date='2026-01-02',
        )
        (logs / 'run_info.json').write_text(
            json.dumps({**found, **(info or {})})
        )
        return self

    @staticmethod
    def _epoch(epoch):
        for done in (30, 100):
            step = (epoch - 1) * 100 + done
            yield dict(loss=1.0, step=step, time=0.5, epoch=epoch)
        yield {'accuracy/top1': 10.0 * epoch, 'step': epoch}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


SHORT = dict(train_cfg__max_epochs=3)


def test_a_resumed_run_becomes_one_record(run):
    run.start('20260102_01', [1, 2], **SHORT)
    run.start('20260102_02', [2, 3], resume=True, load_from='x', **SHORT)
    record = record_run(CELL, run.folder)
    assert record.cell == CELL.id
    assert record.history == [[1, 10.0], [2, 20.0], [3, 30.0]]
    assert record.final == 30.0
    assert record.deviations == ['train_cfg.max_epochs=3']
    # 300 iterations of half a second; the repeated ones count once.
    assert record.hours == pytest.approx(150 / 3600, abs=1e-3)
    assert (record.seed, record.epochs, record.parameters) == (7, 3, 5)
    assert (record.hardware, record.commit) == ('GPU', 'abc')
    assert record.date == '2026-01-02'


def test_a_record_tells_how_it_was_computed(run):
    cut = dict(
        hardware='another GPU',
        versions=dict(torch='1'),
        commit='old',
        date='2026-01-01',
    )
    run.start('20260101_01', [1, 2], info=cut, **SHORT)
    run.start('20260102_01', [3], resume=True, compile=True, **SHORT)
    host = dict(images='host', channels_last=False, compile=None)
    record = record_run(CELL, run.folder)
    assert record.execution == dict(host, compile='default')
    assert (record.hardware, record.versions) == ('GPU', dict(torch='2'))
    assert record.earlier_starts == [
        dict(cut, start_epoch=0, execution=host),
    ]


@pytest.mark.parametrize('channels_last', [False, True])
def test_execution_of_images_on_the_device(channels_last):
    cfg = CELL.resolve()
    use_device_data(cfg, channels_last)
    hook = dict(type='sb_mm.CompileHook', mode='reduce-overhead')
    cfg.custom_hooks = [hook]
    assert execution(cfg) == dict(
        images='device',
        channels_last=channels_last,
        compile='reduce-overhead',
    )


def test_a_record_of_before_these_fields_can_be_read(record, tmp_path):
    content = json.loads(record().to_line())
    for name in ('execution', 'earlier_starts', 'digest'):
        content.pop(name)
    line = json.dumps({**content, 'digest': _digest(content)})
    _write(tmp_path, line)
    assert read_records(tmp_path) == [record()]
    # Nothing can be added to it, or taken from a newer one.
    edited = json.dumps({**json.loads(line), 'execution': dict(a=1)})
    shortened = json.loads(record(seed=1, execution=dict(a=1)).to_line())
    shortened.pop('execution')
    _write(tmp_path, edited, json.dumps(shortened))
    found = read_results(tmp_path)
    assert found.records == []
    assert all('was edited after' in line for line in found.refused)


def test_only_the_newest_run_of_a_folder_is_recorded(run):
    run.start('20260102_01', [1, 2, 3], info=dict(seed=1), **SHORT)
    run.start('20260102_02', [1], info=dict(seed=2), **SHORT)
    with pytest.raises(UserInputError, match='finish it with --resume'):
        record_run(CELL, run.folder)


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        (dict(info=dict(seed=1)), {}),
        (dict(optim_wrapper__optimizer__lr=0.5), {}),
        (None, {}),
        (dict(epochs=[1]), {}),
    ],
    ids=['another seed', 'another rate', 'nothing before', 'a gap'],
)
def test_a_resume_of_something_else_is_refused(run, first, second):
    if first is not None:
        epochs = first.pop('epochs', [1, 2])
        run.start('20260102_01', epochs, **{**SHORT, **first})
    run.start('20260102_02', [3], resume=True, **SHORT)
    with pytest.raises(UserInputError, match='not the one before it'):
        record_run(CELL, run.folder)


@pytest.mark.parametrize(
    'other',
    [
        dict(batch=64),
        dict(train=dict(types=['CIFAR10'], images=16)),
        dict(val=None),
    ],
    ids=str,
)
def test_a_resume_with_other_data_or_batch_is_refused(run, other):
    run.start('20260102_01', [1, 2], info=other, **SHORT)
    run.start('20260102_02', [3], resume=True, **SHORT)
    with pytest.raises(UserInputError, match='not the one before it'):
        record_run(CELL, run.folder)


def test_starts_that_were_cut_early_are_left_out(run):
    run.start('20260102_01', [1, 2], **SHORT)
    cut = dict(resume=True, **SHORT)
    run.start('20260102_02', [], info=dict(start_epoch=2), **cut)
    run.start('20260102_03', [], info=dict(start_epoch=2), **cut)
    (run.folder / '20260102_03/vis_data/run_info.json').unlink()
    run.start('20260102_04', [3], **cut)
    record = record_run(CELL, run.folder)
    assert record.history == [[1, 10.0], [2, 20.0], [3, 30.0]]


def test_starts_are_sorted_by_their_numbers_not_by_clocks(run):
    run.start('20260102_09', [1, 2], info=dict(start=1), **SHORT)
    run.start('20260102_08', [3], info=dict(start=2), resume=True, **SHORT)
    record = record_run(CELL, run.folder)
    assert record.history == [[1, 10.0], [2, 20.0], [3, 30.0]]
    # Cut before it began; a run of before starts were numbered.
    run.start('20260102_07', [], info=dict(start_epoch=2), **SHORT)
    (run.folder / '20260102_07/vis_data/run_info.json').unlink()
    run.start('20260102_10', [1], **SHORT)
    assert record_run(CELL, run.folder) == record
    assert [s.folder.name[-2:] for s in find_starts(run.folder)] == [
        '07', '10', '09', '08',
    ]  # fmt: skip
    newest = read_log_lines(run.folder, 'scalars.json')
    assert [line['step'] for line in newest] == [230, 300, 3]


def test_who_reads_a_part_of_cifar10_tells_which_part(run):
    def recorded(name, kind):
        part = dict(
            train_dataloader__dataset__indices=4,
            train_dataloader__dataset__type=kind,
        )
        run.start(name, [1, 2, 3], **SHORT, **part)
        return record_run(CELL, run.folder, True).deviations

    part = 'train_dataloader.dataset.indices=4'
    packed = recorded('20260102_01', 'sb_mm.PackedCIFAR10')
    assert packed == ['train_cfg.max_epochs=3', part]
    other = recorded('20260102_02', 'CIFAR10')
    assert other == [*packed, 'train_dataloader.dataset.type=CIFAR10']


@pytest.mark.parametrize('text', ['', '[]', '{"iter": 3}'])
@pytest.mark.parametrize('name', ['diverged.json', 'run_info.json'])
def test_a_damaged_note_is_named(run, name, text):
    run.start('a', [1])
    (run.folder / 'a/vis_data' / name).write_text(text)
    with pytest.raises(UserInputError, match=f'{name} is damaged: delete'):
        record_run(CELL, run.folder)


def test_a_run_may_go_on_with_the_other_loader(run):
    host = CELL.resolve()
    device = CELL.resolve()
    use_device_data(device)
    run.start('20260102_01', [1, 2], **SHORT)
    run.start('20260102_02', [3], resume=True, **SHORT)
    for name, cfg in (('20260102_01', host), ('20260102_02', device)):
        cfg.merge_from_dict(
            {k.replace('__', '.'): v for k, v in SHORT.items()}
        )
        cfg.dump(run.folder / name / 'vis_data/config.py')
    assert record_run(CELL, run.folder).final == 30.0


def test_a_line_that_was_cut_with_the_process_is_left_out(run):
    run.start('20260102_01', [1, 2], **SHORT)
    log = run.folder / '20260102_01/vis_data/scalars.json'
    with log.open('ab') as stream:
        stream.write(b'{"loss": 1.0, "st\xff')
    run.start('20260102_02', [3], resume=True, **SHORT)
    assert record_run(CELL, run.folder).final == 30.0


def test_a_record_behind_a_line_that_was_cut_is_whole(record, tmp_path):
    file = append_record(record(seed=0), tmp_path)
    file.write_bytes(file.read_bytes().rstrip(b'\n'))
    append_record(record(seed=1), tmp_path)
    assert [r.seed for r in read_results(tmp_path).records] == [0, 1]
    with file.open('ab') as stream:
        stream.write(b'\xff{')
    append_record(record(seed=2), tmp_path)
    found = read_results(tmp_path)
    assert [r.seed for r in found.records] == [0, 1, 2]
    assert len(found.refused) == 1


def test_where_and_how_fast_a_run_read_its_data_does_not_count(run):
    run.start(
        'a',
        [1],
        work_dir='x',
        launcher='pytorch',
        randomness=dict(seed=3),
        default_hooks__logger__interval=3,
        train_dataloader__num_workers=0,
        train_dataloader__pin_memory=True,
        train_dataloader__batch_size=32,  # of four processes
        train_dataloader__dataset__type='sb_mm.PackedCIFAR10',
        train_dataloader__dataset__data_root='elsewhere',
        test_dataloader__batch_size=3,
        info=dict(
            processes=4, train=dict(types=['PackedCIFAR10'], images=50_000)
        ),
    )
    assert deviations(CELL, read_starts(run.folder)[-1]) == []


@pytest.mark.parametrize(
    ('changes', 'deviation'),
    [
        (SHORT, 'train_cfg.max_epochs=3'),
        (dict(optim_wrapper__optimizer__lr=0.2), 'optim_wrapper.opt.*=0.2'),
        (dict(load_from='x.pth'), 'load_from=x.pth'),
        (dict(custom_hooks=[dict(type='EMAHook')]), 'hooks=.*EMAHook'),
        (dict(default_hooks__param_scheduler=None), 'hooks='),
        (
            dict(
                train_dataloader__dataset__indices=64,
                train_dataloader__dataset__type='sb_mm.PackedCIFAR10',
            ),
            '.*indices=64',
        ),
        (dict(info=dict(batch=1024)), 'batch of all processes=1024'),
        (
            dict(info=dict(train=dict(types=['CIFAR100'], images=50_000))),
            'train dataset=CIFAR100',
        ),
        (
            dict(info=dict(train=dict(types=['CIFAR10'], images=200))),
            'train images=200',
        ),
        (dict(info=dict(val=None)), 'val images=0'),
    ],
    ids=str,
)
def test_what_changes_the_result_is_a_deviation(run, changes, deviation):
    run.start('a', [1], **changes)
    found = deviations(CELL, read_starts(run.folder)[-1])
    assert len(found) == 1
    assert re.fullmatch(deviation + '.*', found[0])


def test_a_run_of_another_network_is_refused_unless_it_is_meant(run):
    key = 'model__backbone__attention__lambda_init'
    run.start('a', [1], train_cfg__max_epochs=1, **{key: 0.5})
    with pytest.raises(UserInputError, match='of another network than t8'):
        record_run(CELL, run.folder)
    record = record_run(CELL, run.folder, variant=True)
    assert 'model.backbone.attention.lambda_init=0.5' in record.deviations


def test_a_run_whose_loss_was_no_number_has_no_result(run):
    run.start('a', [1], train_cfg__max_epochs=3)
    (run.folder / 'a/vis_data/diverged.json').write_text('{"epoch": 2}')
    record = record_run(CELL, run.folder)
    assert record.final is None
    assert record.diverged
    assert (record.epochs, record.history) == (3, [[1, 10.0]])


def test_what_came_after_the_divergence_of_a_resume_is_no_history(run):
    run.start('a', [1, 2, 3], train_cfg__max_epochs=4)
    run.start('b', [2], resume=True, train_cfg__max_epochs=4)
    (run.folder / 'b/vis_data/diverged.json').write_text('{"epoch": 3}')
    assert record_run(CELL, run.folder).history == [[1, 10.0], [2, 20.0]]


def test_images_on_the_device_are_no_deviation(run):
    cfg = CELL.resolve()
    use_device_data(cfg, channels_last=True)
    cfg.compile = True
    assert config_deviations(CELL, cfg) == []
    cfg.train_dataloader.dataset.dataset.indices = 64
    cfg.model.data_preprocessor.padding = 4
    assert config_deviations(CELL, cfg) == [
        'model.data_preprocessor.padding=4',
        'train_dataloader.dataset.indices=64',
        'train_dataloader.dataset.type=CIFAR10',
    ]
    found = ['train images=64', 'batch of all processes=4', 'a not set']
    assert without_data(found) == ['batch of all processes=4', 'a not set']


def test_the_map_of_a_detector_is_in_percent(tmp_path):
    cell = find_cell('t4-ssd-mobilenetv2-x0.35-sb')
    run = Run(tmp_path, cell).start('a', [], train_cfg__max_epochs=1)
    line = '{"pascal_voc/mAP": 0.46, "step": 1}'
    (tmp_path / 'a/vis_data/scalars.json').write_text(line)
    assert record_run(cell, run.folder).final == 46.0


def test_a_folder_without_a_run_is_refused(run):
    with pytest.raises(UserInputError, match='holds no run'):
        record_run(CELL, run.folder)
    run.start('a', [1])
    (run.folder / 'a/vis_data/run_info.json').unlink()
    with pytest.raises(UserInputError, match='before its first epoch'):
        record_run(CELL, run.folder)
