"""Result records: written from a run, read back, refused if edited."""

import json
from dataclasses import replace
from functools import partial

import pytest
from mmengine.config import Config

from sb_mm.errors import UserInputError
from sb_mm.paper.cells import find_cell
from sb_mm.paper.records import (
    append_record,
    deviations,
    read_records,
    record_run,
    summarize,
)

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
        (dict(final=99.0), 'edited or is unfinished'),
        (dict(history=[]), 'edited or is unfinished'),
        (dict(overrides=[]), 'not of the cell'),
        (dict(config='configs/x.py'), 'not of the cell'),
    ],
)
def test_an_edited_record_is_named(record, changes, message, tmp_path):
    _write(tmp_path, replace(record(), **changes).to_line())
    with pytest.raises(UserInputError, match=message):
        read_records(tmp_path)


def test_a_line_that_is_cut_or_lacks_a_field_is_named(record, tmp_path):
    for line in (record().to_line()[:-20], '{"cell": "t6-x0.35-sb"}', '[]'):
        _write(tmp_path, line)
        with pytest.raises(UserInputError, match='line 1 is not a record'):
            read_records(tmp_path)


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


def test_deviations_are_the_settings_that_change_the_result():
    cell, run = CELL.resolve(), CELL.resolve()
    run.merge_from_dict(
        {
            'work_dir': 'x',
            'randomness': dict(seed=3),
            'default_hooks.logger.interval': 3,
            'train_dataloader.num_workers': 0,
            'train_dataloader.dataset.type': 'sb_mm.PackedCIFAR10',
            'train_dataloader.dataset.data_root': 'elsewhere',
            'test_dataloader.batch_size': 3,
        }
    )
    assert deviations(cell, run) == []
    run.merge_from_dict(
        {
            'train_cfg.max_epochs': 1,
            'train_dataloader.dataset.indices': 64,
            'model.backbone.attention.lambda_init': 0.5,
            'optim_wrapper.optimizer.lr': 0.2,
        }
    )
    assert deviations(cell, run) == [
        'model.backbone.attention.lambda_init=0.5',
        'optim_wrapper.optimizer.lr=0.2',
        'train_cfg.max_epochs=1',
        'train_dataloader.dataset.indices=64',
    ]


@pytest.fixture
def run(tmp_path):
    """A finished run's folder, resumed once, as MMEngine leaves it."""
    cfg = CELL.resolve()
    cfg.merge_from_dict(
        {'train_cfg.max_epochs': 3, 'randomness': dict(seed=7)}
    )
    cfg.dump(tmp_path / 'config.py')
    _log(tmp_path / '20260102_030405', [1, 2])
    _log(tmp_path / '20260102_040000', [3])
    return tmp_path


def _log(folder, epochs):
    lines = []
    for epoch in epochs:
        for half in (1, 2):
            step = (epoch - 1) * 100 + half * 50
            lines.append(dict(loss=1.0, step=step, time=0.5, epoch=epoch))
        lines.append({'accuracy/top1': 10.0 * epoch, 'step': epoch})
    (folder / 'vis_data').mkdir(parents=True)
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / 'vis_data/scalars.json').write_text(text)


def test_a_run_becomes_a_record(run):
    record = record_run(CELL, run, parameters=5)
    assert record.cell == CELL.id
    assert record.history == [[1, 10.0], [2, 20.0], [3, 30.0]]
    assert record.final == 30.0
    assert (record.seed, record.epochs, record.parameters) == (7, 3, 5)
    assert record.deviations == ['train_cfg.max_epochs=3']
    # 300 iterations of half a second.
    assert record.hours == pytest.approx(150 / 3600, abs=1e-3)
    assert record.date == '2026-01-02'
    assert 'torch' in record.versions
    assert record.hardware
    assert record.commit


def test_the_map_of_a_detector_is_in_percent(tmp_path):
    cell = find_cell('t4-ssd-mobilenetv2-x0.35-sb')
    cfg = cell.resolve()
    cfg.train_cfg.max_epochs = 1
    cfg.dump(tmp_path / 'config.py')
    folder = tmp_path / '20260102_030405/vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('{"pascal_voc/mAP": 0.46, "step": 1}')
    assert record_run(cell, tmp_path, 1).final == 46.0


def test_an_unfinished_or_missing_run_is_refused(run, tmp_path):
    with pytest.raises(UserInputError, match='holds no config'):
        record_run(CELL, tmp_path / 'empty', 1)
    cfg = Config.fromfile(run / 'config.py')
    cfg.train_cfg.max_epochs = 4
    cfg.dump(run / 'config.py')
    with pytest.raises(UserInputError, match='finish it with --resume'):
        record_run(CELL, run, 1)
