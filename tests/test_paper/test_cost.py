"""Counts of parameters and multiply-adds, against independent sums."""

from dataclasses import replace

import pytest
import torch
import yaml

from sb_mm.engine.build import build_model
from sb_mm.files import repository
from sb_mm.models.layers import ChannelAttention
from sb_mm.paper.cells import DATASETS, load_cells
from sb_mm.paper.cost import count

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
    page = (repository() / 'docs/results.md').read_text().splitlines()
    rows = {line.split('`')[1]: line for line in page if line[:3] == '| `'}
    for cell in CELLS.values():
        if cell.dataset == dataset and 'params_m' in cell.printed:
            parameters = count(cell).parameters
            assert round(parameters / 1e6, 3) == cell.printed['params_m']
            assert f'| {parameters:,} |' in rows[cell.id]
    spec, leaves = DATASETS[dataset], _leaves(dataset)
    folder = repository() / 'configs' / spec.folder
    files = folder.glob(f'*{spec.suffix}')
    assert {str(f.relative_to(repository())) for f in files} == set(leaves)
    meta = yaml.safe_load((folder / 'metafile.yml').read_text())
    assert {model['Config'] for model in meta['Models']} == set(leaves)
    for model in meta['Models']:
        cell, found = leaves[model['Config']], model['Metadata']
        assert (found['Parameters'], found['FLOPs']) == count(cell)
    table = (folder / 'README.md').read_text()
    for cell in leaves.values():
        cost, printed = count(cell), '-'
        if cell.result is not ...:
            printed = cell.result_text
        numbers = f'{cost.parameters:,} | {cost.multiply_adds / 1e6:.2f}'
        name = cell.config.split('/')[-1]
        assert f'({name}) | {numbers} | {printed} |' in table


def _attentions(cell):
    """Return (Cin, Chid, Cout, H * W, H' * W') of each attention."""
    network, found = build_model(cell.resolve()).eval(), []

    def note(layer, args):
        trunk, x = args[:2]
        sizes = x.size(1), layer.gate.fc1.out_features, trunk.size(1)
        found.append((*sizes, x[0, 0].numel(), trunk[0, 0].numel()))

    for module in network.modules():
        if isinstance(module, ChannelAttention):
            module.register_forward_pre_hook(note)
    size = cell.spec.image_size
    with torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return found


@pytest.mark.parametrize('width', ['0.35', '0.5', '0.75', '1.0'])
def test_multiply_adds_of_table_1(width):
    """Its static numbers are the DyConv paper's, whose rounding differs.

    To them, SB adds those of its Linear layers, and SE those and its pooling.
    The DyConv paper's DyConv is another network.
    """
    static, *others = (
        CELLS[f't1-{k}-x{width}'] for k in ('static', 'se', 'sb')
    )
    ours, printed = count(static).multiply_adds, static.printed['madds_m']
    assert printed == pytest.approx(ours / 1e6, rel=0.003)
    for cell in others:
        more = count(cell).multiply_adds - ours
        if cell.attention == 'SE':
            more += sum(cin * hw for cin, _, _, hw, _ in _attentions(cell))
        expected = pytest.approx(printed + more / 1e6, abs=0.05 + 1e-6)
        assert cell.printed['madds_m'] == expected


def test_the_overhead_of_sb_is_that_of_equations_10_to_17():
    sb, static = CELLS['t10-x0.35-hidden-x1'], CELLS['t6-x0.35-static']
    multiplies = adds = linears = 0
    for cin, hidden, cout, hw_in, hw_out in _attentions(sb):
        linear = hidden * (cin + cout)
        # Of the pooling, 1 / (H * W) once a channel; lambda, and the shift.
        multiplies += cin + linear + cout
        adds += cin * hw_in + linear + cout * hw_out
        linears += linear
    assert (multiplies, adds) == (1_010_784, 2_301_888)
    more = count(sb).multiply_adds - count(static).multiply_adds
    assert more == linears
