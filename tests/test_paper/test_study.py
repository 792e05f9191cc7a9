"""The tables of docs/attention.md say what was measured only."""

import pytest

from sb_mm.errors import UserInputError
from sb_mm.paper.study import (
    MeasuredStart,
    add_starts,
    check_out,
    read_starts,
    starts_table,
    trainings_table,
)

RECIPE = [
    'train_cfg.max_epochs=4',
    'train_dataloader.dataset.indices=10000',
    'train images=10000',
]
NORM = 'model.backbone.attention.gate_norm=False'
SE = 't5-x0.35-se-expand-depthwise-project'


def _start(cell, gradient, spread=None, *options):
    return MeasuredStart(
        cell, list(options), [0, 1], gradient, spread, 'CPU', {}, 'abc',
        '2026-01-02',
    )  # fmt: skip


def _rows(table):
    lines = (line.strip('| ').split(' | ') for line in table.splitlines())
    return {label: values for label, *values in lines}


def test_trainings_are_those_of_the_recipe_and_the_network(make_record):
    records = [
        make_record(SE, 22.0, seed=1, deviations=RECIPE),
        make_record(SE, 12.0, seed=0, deviations=RECIPE),
        make_record(SE, 40.0, seed=0, deviations=[NORM, *RECIPE]),
        make_record(SE, 42.0, seed=1, deviations=[NORM, *RECIPE]),
        make_record(SE, 90.0),
        make_record(SE, 80.0, deviations=RECIPE[:1]),
        # The same network under another table.
        make_record('t9-x0.35-gate-tanh', 33.0, deviations=RECIPE),
    ]
    rows = _rows(trainings_table(records))
    assert rows['SE, all three layers'] == ['12.00, 22.00', '17.0', '0, 1']
    # Welch: 1.08 degrees of freedom, 10.7 times sqrt(50 / 2 + 2 / 2).
    assert rows['- gates without norm'] == [
        '40.00, 42.00', '41.0', '0, 1', '+24.0', '-30.5 to +78.5', 'open',
    ]  # fmt: skip
    assert rows['SB, all three layers, lambda = 0.1, tanh'][0] == '33.00'
    assert rows['static'][0] == 'not run'


def test_failed_runs_are_no_part_of_a_verdict(make_record):
    records = [
        make_record(SE, final, seed=seed, deviations=[*changes, *RECIPE])
        for changes, finals in (
            ([], [10.0, 22.0, 23.0]),
            ([NORM], [41.0, 42.0, 43.0]),
        )
        for seed, final in enumerate(finals)
    ]
    rows = _rows(trainings_table(records))
    assert rows['SE, all three layers'][0] == '10.00 (/), 22.00, 23.00'
    verdict = rows['- gates without norm'][-1]
    assert verdict == 'open (1 runs failed to train)'


def test_a_change_is_set_against_what_it_changes(make_record):
    large, clipped = 't8-x0.35-lambda_init-1.0', 'optim_wrapper.clip_grad'
    records = [
        make_record('t6-x0.35-sb', 40.0, deviations=RECIPE),
        make_record(large, 20.0, deviations=RECIPE),
        make_record(
            large, 21.0, deviations=[f'{clipped}.max_norm=5', *RECIPE]
        ),
    ]
    rows = _rows(trainings_table(records))
    assert rows['- lambda = 1.0'][3] == '-20.0'
    assert rows['- - gradient clipped to a norm of 5'][3] == '+1.0'


def test_starts_are_those_of_the_network():
    rows = _rows(
        starts_table(
            [
                _start('t5-x0.35-sb-expand-depthwise-project', 4.649, 0.612),
                _start(SE, 43210.0, 0.1511),
                _start(SE, 2.96, 0.00701, NORM),
                _start('t6-x0.35-static', 4.71, None, 'optim_wrapper.x=1'),
            ]
        )
    )
    origin = 'seeds 0, 1; CPU, commit abc, 2026-01-02'
    sb = rows['SB, all three layers, lambda = 0.1, tanh']
    assert sb == ['4.6', '0.61', origin]
    assert rows['SE, all three layers'] == ['43,000', '0.15', origin]
    assert rows['- gates without norm'] == ['3', '0.007', origin]
    assert rows['static'] == ['not run']
    assert not any('clipped' in label for label in rows)


def test_a_file_to_which_nothing_can_be_added_is_refused(tmp_path):
    file = tmp_path / 'file'
    file.write_text('{}')
    for out, message in (
        (tmp_path, 'is a folder'),
        (file, 'is no file of measured starts'),
        (file / 'x.json', 'cannot be written'),
    ):
        with pytest.raises(UserInputError, match=message):
            check_out(out)
    check_out(tmp_path / 'new/x.json')


def test_a_start_takes_the_place_of_the_same_network(tmp_path):
    file = tmp_path / 'new/starts.json'
    add_starts([_start(SE, 1.0), _start(SE, 2.0, 0.1, NORM)], file)
    add_starts([_start(SE, 3.0)], file)
    assert [s.gradient for s in read_starts(file)] == [3.0, 2.0]
    assert list(file.parent.iterdir()) == [file]
