"""Every cell of the tables is a config and overrides that fit it."""

from collections import Counter
from pathlib import Path

import pytest

from sb_mm.errors import UserInputError
from sb_mm.paper.cells import (
    REPOSITORY,
    Cell,
    find_cell,
    load_cells,
    select_cells,
)

CELLS = load_cells()


def test_all_123_rows_of_the_ten_tables_are_there():
    rows = {1: 16, 2: 5, 3: 6, 4: 12, 5: 24, 6: 12, 7: 4, 8: 20, 9: 20, 10: 4}
    assert Counter(c.table for c in CELLS) == rows
    assert len({c.id for c in CELLS}) == 123


@pytest.mark.parametrize('cell', CELLS, ids=lambda c: c.id)
def test_a_cell_resolves_to_what_its_row_says(cell):
    cfg = cell.resolve()
    backbone = cfg.model.backbone
    assert backbone.widen_factor == cell.width
    kind = backbone.type + str(backbone.get('attention'))
    kind += str(backbone.get('attention_conv_cfg'))
    marks = dict(
        SB=('ShiftBalance', 'SBMobile'),
        SE=('SqueezeExcite', 'SEMobile'),
        DyConv=('DynamicConv2d', 'DyConvMobile'),
    )
    found = [a for a, names in marks.items() if any(n in kind for n in names)]
    assert found == ([] if cell.attention == 'static' else [cell.attention])
    for name, value in cell.settings.items():
        default = dict(
            lambda_init=0.1, gate='tanh', hidden_multiplier=1, dropout=0.0
        )
        assert backbone.attention.get(name, default[name]) == value


def test_the_first_comment_of_every_leaf_names_its_tables():
    tables = {}
    for cell in CELLS:
        tables.setdefault(cell.config, set()).add(cell.table)
    assert len(tables) == 16 + 6 + 12 + 16
    for config, numbers in tables.items():
        first = (REPOSITORY / config).read_text().splitlines()[0]
        assert 'arXiv:2103.13080' in first
        named = first.split(' of ')[0].replace('# Table', '').strip('s ')
        spans = [p.split('-') for p in named.replace('and', ',').split(',')]
        listed = {
            n
            for span in spans
            if span[0].strip()
            for n in range(int(span[0]), int(span[-1]) + 1)
        }
        assert numbers == listed, first


def test_repeated_cells_share_one_experiment():
    same = [
        c.id
        for c in CELLS
        if c.experiment == find_cell('t6-x0.35-sb').experiment
    ]
    assert same == [
        't5-x0.35-sb-expand-depthwise-project',
        't6-x0.35-sb',
        't8-x0.35-lambda_init-0.1',
        't9-x0.35-gate-tanh',
        't10-x0.35-hidden-x1',
    ]


def test_an_unknown_cell_table_or_width_lists_what_exists():
    with pytest.raises(UserInputError, match='did you mean t2-se-pointwise'):
        find_cell('t2-se-pointwize')
    with pytest.raises(UserInputError, match='did you mean t8-x0.35-lambda'):
        find_cell('t8-x035')
    with pytest.raises(UserInputError, match=r'no table 11: choose from 1, 2'):
        select_cells(table=11)
    with pytest.raises(UserInputError, match=r'no width 0.4: choose from 0.3'):
        select_cells(width=0.4)
    with pytest.raises(UserInputError, match=r'no width 0.5: choose from 1.0'):
        select_cells(table=7, width=0.5)


def test_an_override_that_names_nothing_is_an_error():
    class Misspelt(Cell):
        overrides = {'model.backbone.attention.lamda_init': 1}

    cell = find_cell('t6-x0.35-sb')
    fields = {k: getattr(cell, k) for k in Cell.__dataclass_fields__}
    with pytest.raises(UserInputError, match='did you mean lambda_init'):
        Misspelt(**fields).resolve()


def test_selection_is_by_table_and_width():
    cells = select_cells(table=8, width=0.5)
    assert [c.settings['lambda_init'] for c in cells] == [
        0.01, 0.05, 0.1, 0.5, 1.0,
    ]  # fmt: skip


def test_options_are_what_the_command_line_reads():
    assert find_cell('t5-x0.35-se-expand').options() == [
        'model.backbone.attention_layers=[expand]'
    ]
    assert find_cell('t1-se-x0.35').options() == []
    assert find_cell('t2-se-pointwise-depthwise').options() == [
        'model.backbone.attention_layers=[expand,depthwise,project]'
    ]
    assert find_cell('t9-x1.0-gate-none').options() == [
        'model.backbone.attention.gate=none'
    ]


def test_the_table_data_are_in_the_package():
    assert Path(REPOSITORY / 'sb_mm/paper/tables.json').is_file()
