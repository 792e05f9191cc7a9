"""The first gradient and the first gates of the paper's networks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sb_mm.errors import UserInputError
from sb_mm.paper.cells import find_cell
from sb_mm.paper.study import read_starts
from sb_mm.reproduce.recipe import Recipe
from sb_mm.reproduce.start import measure_start

pytest.importorskip('mmpretrain')
REPOSITORY = Path(__file__).resolve().parents[2]
SE = 't5-x0.35-se-expand-depthwise-project'


@pytest.fixture
def start(cifar):
    def measure(cell, seeds=(0,), **options):
        options['train_dataloader.batch_size'] = 16
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return measure_start(
                find_cell(cell), Recipe(None, options, cifar), seeds
            )
        finally:
            torch.set_num_threads(threads)

    return measure


def test_gates_with_norm_spread_and_explode_the_gradient(start):
    static = start('t6-x0.35-static')
    assert static.spread is None
    with_norm = start(SE)
    without = start(SE, **{'model.backbone.attention.gate_norm': False})
    # Logits of unit variance, through a sigmoid; and almost constant ones.
    assert 0.1 < with_norm.spread < 0.21
    assert without.spread < 0.03
    assert with_norm.gradient > 20 * static.gradient
    assert without.gradient < 3 * static.gradient


def test_a_seed_gives_the_same_numbers_and_several_their_mean(start):
    cell = 't6-x0.35-sb'
    each = [start(cell, [seed]) for seed in (0, 1)]
    assert each[0] == start(cell, [0])
    assert each[0] != each[1]
    both = start(cell, [0, 1])
    assert both.gradient == pytest.approx(sum(s.gradient for s in each) / 2)
    assert both.spread == pytest.approx(sum(s.spread for s in each) / 2)


def test_the_tool_adds_to_a_file_what_it_measured(cifar, tmp_path):
    file = tmp_path / 'starts.json'
    changed = 'model.backbone.attention.gate_norm=False'
    for options in ([], [changed], [changed]):
        done = subprocess.run(
            [
                sys.executable, 'tools/start_of_training.py', SE,
                '--data-root', cifar, '--seeds', '0', '--out', str(file),
                '--cfg-options', 'train_dataloader.batch_size=16', *options,
            ],
            cwd=REPOSITORY, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    plain, without = read_starts(file)  # in the place of the same network
    assert plain.options == ['train_dataloader.batch_size=16']
    assert changed in without.options
    assert plain.gradient > 20 * without.gradient
    assert f'{without.gradient:.4g}' in done.stdout
    assert plain.commit
    file.write_text('{}[')
    with pytest.raises(UserInputError, match='no file of measured starts'):
        read_starts(file)


def test_a_seed_twice_is_refused(start):
    with pytest.raises(UserInputError, match='a seed twice'):
        start('t6-x0.35-sb', [1, 1])


def test_the_tool_prints_a_row_a_cell(cifar):
    command = [
        sys.executable, 'tools/start_of_training.py', 't6-x0.35-static',
        't6-x0.35-sb', '--seeds', '0', '--data-root', cifar,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    cells = {row[0]: row[1:] for row in rows if row and row[0][:2] == 't6'}
    assert cells['t6-x0.35-static'][1] == '-'
    assert float(cells['t6-x0.35-sb'][0]) > 0
    assert 0 < float(cells['t6-x0.35-sb'][1]) <= 1
