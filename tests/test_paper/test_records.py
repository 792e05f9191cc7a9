"""Result records: written from a run, read back, refused if edited."""

import json
from dataclasses import replace

import pytest
from mmengine.config import Config

from sb_mm.errors import UserInputError
from sb_mm.paper.cells import find_cell
from sb_mm.paper.records import (
    Record,
    append_record,
    deviations,
    read_records,
    record_run,
    summarize,
)

CELL = find_cell('t8-x0.35-lambda_init-0.01')


def _record(**changes):
    fields = dict(
        cell=CELL.id,
        config=CELL.config,
        overrides=CELL.options(),
        deviations=[],
        seed=0,
        epochs=200,
        history=[[199, 90.0], [200, 91.0]],
        final=91.0,
        parameters=1_440_510,
        hours=1.0,
        hardware='CPU',
        versions={},
        commit='abc',
        date='2026-01-01',
    )
    return Record(**{**fields, **changes})


def _write(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder / 'table8.jsonl').write_text(''.join(f'{x}\n' for x in lines))


def test_a_record_survives_the_file(tmp_path):
    file = append_record(_record(), tmp_path / 'results')
    append_record(_record(seed=1), tmp_path / 'results')
    assert file.name == 'table8.jsonl'
    assert read_records(tmp_path / 'results') == [_record(), _record(seed=1)]


def test_the_same_run_twice_is_an_error(tmp_path):
    append_record(_record(), tmp_path)
    with pytest.raises(UserInputError, match='with seed 0 already'):
        append_record(_record(final=92.0, history=[[200, 92.0]]), tmp_path)
    _write(tmp_path, _record().to_line(), _record().to_line())
    with pytest.raises(UserInputError, match='line 2 repeats .* line 1'):
        read_records(tmp_path)


def test_a_reduced_run_stands_beside_the_full_one(tmp_path):
    append_record(_record(), tmp_path)
    append_record(_record(deviations=['train_cfg.max_epochs=1']), tmp_path)
    assert len(read_records(tmp_path)) == 2


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"cell": "t6-x0.35-sb"}', 'line 1 is not a record'),
        (_record().to_line()[:-20], 'line 1 is not a record'),
        (_record(cell='t99').to_line(), "no cell 't99'"),
        (_record(final=99.0).to_line(), 'edited or is unfinished'),
        (_record(history=[]).to_line(), 'edited or is unfinished'),
        (_record(overrides=[]).to_line(), 'not of the cell'),
        (_record(config='configs/x.py').to_line(), 'not of the cell'),
    ],
)
def test_an_edited_or_cut_line_is_named(line, message, tmp_path):
    _write(tmp_path, line)
    with pytest.raises(UserInputError, match=message):
        read_records(tmp_path)


def test_a_summary_is_over_seeds_and_repeated_cells_without_reduced_runs():
    sb = find_cell('t6-x0.35-sb')
    common = dict(config=sb.config, overrides=[])
    records = [
        _record(cell=sb.id, final=90.0, seed=0, **common),
        _record(cell='t9-x0.35-gate-tanh', final=92.0, seed=1, **common),
        _record(cell=sb.id, final=10.0, deviations=['x=1'], **common),
        _record(),  # another lambda
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
