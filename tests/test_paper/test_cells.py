"""Every cell of the tables is a config and overrides that fit it."""

from collections import Counter

import pytest

from sb_mm.errors import UserInputError
from sb_mm.paper.cells import (
    Cell,
    as_options,
    find_cell,
    load_cells,
    select_cells,
)
from sb_mm.paper.datasets import DATASETS

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
        select_cells([11])
    with pytest.raises(UserInputError, match=r'no width 0.4: choose from 0.3'):
        select_cells(widths=[0.4])
    with pytest.raises(UserInputError, match=r'no width 0.5: choose from 1.0'):
        select_cells([7], [0.5])
    with pytest.raises(UserInputError, match='select from tables'):
        select_cells(widths=[0.5], ids=['t6-x0.5-sb'])


def test_an_override_that_names_nothing_is_an_error():
    class Misspelt(Cell):
        overrides = {'model.backbone.attention.lamda_init': 1}

    cell = find_cell('t6-x0.35-sb')
    fields = {k: getattr(cell, k) for k in Cell.__dataclass_fields__}
    with pytest.raises(UserInputError, match='did you mean lambda_init'):
        Misspelt(**fields).resolve()


def test_selection_is_by_table_width_attention_and_id():
    found = select_cells(
        [6, 8], [0.5], ['SB', 'static'], ['t4-ssd-mobilenetv2-x0.5-se']
    )
    assert [c.id for c in found] == [
        't6-x0.5-static', 't6-x0.5-sb', 't8-x0.5-lambda_init-0.01',
        't8-x0.5-lambda_init-0.05', 't8-x0.5-lambda_init-0.1',
        't8-x0.5-lambda_init-0.5', 't8-x0.5-lambda_init-1.0',
        't4-ssd-mobilenetv2-x0.5-se',
    ]  # fmt: skip
    assert len(select_cells()) == 123


def test_overrides_are_what_the_command_line_reads():
    def options(cell_id):
        return as_options(find_cell(cell_id).overrides)

    assert options('t5-x0.35-se-expand') == [
        'model.backbone.attention_layers=[expand]'
    ]
    assert options('t1-se-x0.35') == []
    assert options('t2-se-pointwise-depthwise') == [
        'model.backbone.attention_layers=[expand,depthwise,project]'
    ]
    assert options('t9-x1.0-gate-none') == [
        'model.backbone.attention.gate=none'
    ]


def test_the_recipe_of_a_cell_is_what_its_dataset_says():
    for name, spec in DATASETS.items():
        cell = next(c for c in CELLS if c.dataset == name)
        cfg = cell.resolve()
        assert f'1xb{cfg.train_dataloader.batch_size}-' in spec.suffix
        assert f'-{cfg.train_cfg.max_epochs}e_' in spec.suffix
        head = cfg.model.get('head') or cfg.model.bbox_head
        assert head.num_classes == spec.classes
