"""The study of SE's collapse in docs/ measures and says what it measured."""

import json
import runpy
from types import SimpleNamespace

import pytest
import torch

from sb_mm.paper.cells import REPOSITORY
from sb_mm.paper.records import read_results

FOLDER = REPOSITORY / 'docs/se_collapse'
SE = 't5-x0.35-se-expand-depthwise-project'


@pytest.fixture(scope='module')
def study():
    return SimpleNamespace(**runpy.run_path(str(FOLDER / 'study.py')))


def test_gates_with_norm_spread_and_explode_the_gradient(study, make_job):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batch = {'train_dataloader.batch_size': 16}
    flat = {'model.backbone.attention.gate_norm': False, **batch}
    jobs = [
        make_job('t6-x0.35-static', **batch),
        make_job(SE, **batch),
        make_job(SE, **flat),
    ]
    static, se, without = map(study.first_gradient, jobs)
    torch.set_num_threads(threads)
    assert static[1] is None
    # Logits of unit variance, through a sigmoid, whose slope is at most 1/4
    # (the sample deviation of 16 is 3 % larger); and almost constant ones.
    assert 0.1 < se[1] < 0.26
    assert without[1] < 0.03
    assert se[0] > 20 * static[0]
    assert without[0] < 3 * static[0]


def test_the_page_has_what_was_measured(study):
    page = (FOLDER / 'README.md').read_text()
    data = json.loads((FOLDER / 'data.json').read_text())
    records = read_results(FOLDER / 'records').records
    assert study.gradients_table(data) in page
    table = study.trainings_table(data['networks'], records)
    assert table in page
    # Every record is a row's, of the three seeds or fewer.
    runs = [study._runs(network, records) for network in data['networks']]
    assert sum(map(len, runs)) == len(records)
    (row,) = [x for x in table.splitlines() if 'added to the gates' in x]
    assert '| +20.2 | +5.8 to +34.6 |' in row
