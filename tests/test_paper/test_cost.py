"""Counts of parameters and multiply-adds, against independent sums."""

from dataclasses import replace

import pytest
import yaml

from sb_mm.engine.build import build_model
from sb_mm.paper.cells import DATASETS, REPOSITORY, find_cell, load_cells
from sb_mm.paper.cost import (
    Shape,
    count,
    madds_verdict,
    parameters_verdict,
)

CELLS = load_cells()


def _leaves(dataset):
    """Return the cells of a dataset that are a config without overrides."""
    cells = [c for c in CELLS.values() if c.dataset == dataset]
    # The paper has no row for these.
    cells += [
        replace(c, attention='DyConv', printed={c.spec.printed: ...})
        for c in cells
        if c.table in (3, 4) and c.attention == 'SB'
    ]
    return {c.config: c for c in reversed(cells) if c.experiment == c.config}


@pytest.mark.parametrize('dataset', DATASETS)
def test_every_count_that_is_printed_or_written_down(dataset):
    """In one test, as counting 80 networks takes a while."""
    page = (REPOSITORY / 'docs/results.md').read_text().splitlines()
    rows = {line.split('`')[1]: line for line in page if line[:3] == '| `'}
    for cell in CELLS.values():
        if cell.dataset == dataset:
            assert parameters_verdict(cell) in ('ok', '')
            assert madds_verdict(cell) != 'MISMATCH'
            cost = count(cell)
            if 'params_m' in cell.printed:
                millions = cell.printed['params_m']
                assert round(cost.parameters / 1e6, 3) == millions
                assert f'| {cost.parameters:,} |' in rows[cell.id]
    spec, leaves = DATASETS[dataset], _leaves(dataset)
    folder = REPOSITORY / 'configs' / spec.folder
    files = folder.glob(f'*{spec.suffix}')
    assert {str(f.relative_to(REPOSITORY)) for f in files} == set(leaves)
    meta = yaml.safe_load((folder / 'metafile.yml').read_text())
    assert {model['Config'] for model in meta['Models']} == set(leaves)
    for model in meta['Models']:
        cell, found = leaves[model['Config']], model['Metadata']
        assert (found['Parameters'], found['FLOPs']) == count(cell)[:2]
    table = (folder / 'README.md').read_text()
    for cell in leaves.values():
        cost, printed = count(cell), '-'
        if cell.result is not ...:
            printed = cell.result_text
        numbers = f'{cost.parameters:,} | {cost.multiply_adds / 1e6:.2f}'
        name = cell.config.split('/')[-1]
        assert f'({name}) | {numbers} | {printed} |' in table


# 59.29 and 60.28 M at x0.35 ... 300.77 and 308.73 M at x1.0: convolutions and
# Linear layers, counted by hand.
@pytest.mark.parametrize(
    ('cell', 'expected'),
    [
        ('t1-static-x0.35', 59_285_808),
        ('t1-sb-x0.35', 60_284_656),
        ('t1-static-x1.0', 300_774_272),
        ('t1-sb-x1.0', 308_732_352),
    ],
)
def test_multiply_adds_of_table_1(cell, expected):
    assert count(find_cell(cell)).multiply_adds == expected


def test_the_overhead_is_that_of_equations_10_to_17():
    # Cin = 4, Chid = 3, Cout = 5, 10x10 pixels in, 5x5 out:
    # multiplies 4 + 4*3 + 3*5 + 5, adds 4*100 + 4*3 + 3*5 + 5*25.
    assert Shape(4, 3, 5, 100, 25).overhead == (36, 552)


def test_the_overhead_of_a_network_is_that_of_its_layers():
    cell = find_cell('t4-ssd-mobilenetv2-x0.35-sb')
    shapes = count(cell).attentions
    sizes = {
        name: (gate.fc1.in_features, gate.fc1.out_features)
        for name, module in build_model(cell.resolve()).named_modules()
        if (gate := getattr(module, 'gate', None))
    }
    assert {name: shape[:2] for name, shape in shapes.items()} == sizes
    # The first: 1x1 at the stem's resolution, as many pixels in as out.
    assert next(iter(shapes.values()))[3:] == (150 * 150, 150 * 150)
