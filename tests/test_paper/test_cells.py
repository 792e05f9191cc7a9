"""Every cell of the tables is a config and overrides that fit it."""

import re
from collections import Counter

import pytest

from sb_mm.errors import UserInputError
from sb_mm.paper.cells import load_cells, select_cells

CELLS = load_cells()


def test_all_123_rows_of_the_ten_tables_are_there():
    rows = {1: 16, 2: 5, 3: 6, 4: 12, 5: 24, 6: 12, 7: 4, 8: 20, 9: 20, 10: 4}
    assert Counter(c.table for c in CELLS.values()) == rows
    assert len(CELLS) == 123
    assert sum('params_m' in c.printed for c in CELLS.values()) == 55


def test_a_cell_resolves_to_what_its_row_says():
    marks = dict(
        static='^(?!.*(Shift|SB|Squeeze|SE|Dy))',
        SB='ShiftBalance|SBMobile',
        SE='SqueezeExcite|SEMobile',
        DyConv='DynamicConv2d|DyConvMobile',
    )
    defaults = dict(lambda_init=0.1, gate='tanh', dropout=0.0)
    defaults['hidden_multiplier'] = 1
    for cell in CELLS.values():
        backbone = cell.resolve().model.backbone
        assert backbone.widen_factor == cell.width, cell.id
        kind = backbone.type + str(backbone.get('attention'))
        kind += str(backbone.get('attention_conv_cfg'))
        found = [a for a, mark in marks.items() if re.search(mark, kind)]
        assert found == [cell.attention], cell.id
        for name, value in cell.settings.items():
            assert backbone.attention.get(name, defaults[name]) == value


def test_what_does_not_exist_is_refused_with_what_does():
    with pytest.raises(UserInputError, match=r'no table 11 here: choose from'):
        select_cells([6, 11])
    with pytest.raises(UserInputError, match=r'no width 0.5 .* from 1.0'):
        select_cells([7], [0.5])


def test_selection_is_by_table_width_attention_and_id():
    found = select_cells([6, 10], [0.35, 0.5], ['SB', 'static'])
    assert [c.id for c in found] == [
        't6-x0.35-static', 't6-x0.35-sb', 't6-x0.5-static', 't6-x0.5-sb',
        *(f't10-x0.35-hidden-x{n}' for n in (1, 2, 3, 4)),
    ]  # fmt: skip
    ids = ['t4-ssd-mobilenetv2-x0.5-se', 't6-x0.5-sb']
    assert [c.id for c in select_cells(cells=ids)] == ids
    assert [c.id for c in select_cells([6], cells=[ids[1]])] == ids[1:]
