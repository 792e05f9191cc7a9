"""Records: written, read back, refused if edited, summed up."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

import pytest
from filelock import FileLock

from sb_mm.paper.cells import find_cell
from sb_mm.paper.records import (
    append_record,
    full_trainings,
    read_records,
    summary,
)

CELL = find_cell('t8-x0.35-lambda_init-0.01')


@pytest.fixture
def record(make_record):
    return partial(make_record, CELL.id)


def _line(record):
    return json.dumps(asdict(record))


def _write(folder, *lines):
    (folder / 'table8.jsonl').write_text(''.join(f'{x}\n' for x in lines))


def test_a_record_survives_the_file(record, tmp_path):
    records = [
        record(note='noted'),
        record(seed=1),
        record(options={'train_cfg.max_epochs': 200, 'a.b': [1, 'c']}),
    ]
    for each in records:
        assert append_record(each, tmp_path) == each
    # Another process was faster.
    assert append_record(record(92.0), tmp_path) == records[0]
    assert read_records(tmp_path) == records


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (('t8-', 't99-'), 'no cell '),
        (('"seed": 0', '"seed": 1'), 'that training has a record already'),
        (('}', ''), 'Expecting'),
        (('[200, 91.0]', '[199, 91.0]'), 'the training is unfinished'),
        (('"epochs": 200, ', ''), 'epochs'),
        (('"options": {}', '"options": []'), 'items'),
    ],
)
def test_a_record_that_cannot_be_is_left_out(
    record, edit, message, tmp_path, capsys
):
    _write(tmp_path, _line(record(seed=1)), _line(record()).replace(*edit))
    assert read_records(tmp_path) == [record(seed=1)]
    text = capsys.readouterr().err
    assert text.startswith('left out: table8.jsonl line 2, ')
    assert message in text


def test_processes_write_one_after_the_other(record, tmp_path):
    with ThreadPoolExecutor(1) as pool, FileLock(tmp_path / '.lock'):
        waiting = pool.submit(append_record, record(), tmp_path)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        _write(tmp_path, _line(record(seed=1)))
    assert [r.seed for r in read_records(tmp_path)] == [1, 0]


def test_full_is_no_option_and_the_papers_images(record):
    assert full_trainings(CELL, [record()])
    for changes in (
        dict(options={'train_cfg.max_epochs': 200}),
        dict(train=dict(images=49_999, classes=10)),
        dict(train=dict(images=50_000, classes=2)),
        dict(val=dict(images=500, classes=10)),
    ):
        assert not full_trainings(CELL, [record(**changes)])


def test_chance_and_no_number_are_failures(make_record):
    # A thousand classes, 50,000 images: 0.1 % +- 5 * 0.0141 %.
    assert make_record('t1-sb-x0.35', 0.16).failed
    assert not make_record('t1-sb-x0.35', 0.18).failed
    # Ten classes, 500 images: 10 % +- 5 * 1.34 %.
    few = dict(val=dict(images=500, classes=10))
    assert make_record('t6-x0.35-sb', 16.6, **few).failed
    assert not make_record('t6-x0.35-sb', 16.8, **few).failed
    # A mean AP has no chance.
    assert not make_record('t4-ssd-mobilenetv2-x0.35-sb', 0.0).failed
    assert make_record('t4-ssd-mobilenetv2-x0.35-sb', None).failed


def test_a_failed_training_is_counted_and_not_averaged(record):
    records = [record(final) for final in (90.0, 10.0, None, 92.0)]
    # The sample deviation of 90 and 92 is sqrt(2).
    assert summary(records) == '91.000 ± 1.414 (2 of 4 runs: /)'
    assert summary(records[1:3]) == '/'
    assert summary(records[:1]) == '90.000'


def test_cells_that_tables_repeat_share_their_trainings(make_record):
    cells = 't6-x0.35-sb', 't9-x0.35-gate-tanh', CELL.id, 't6-x0.35-static'
    records = [make_record(cell) for cell in cells]
    shared = full_trainings(find_cell('t10-x0.35-hidden-x1'), records)
    assert shared == records[:2]
