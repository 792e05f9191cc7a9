"""The study of SE's collapse in docs/ measures and says what it measured."""

import json
import runpy
from types import SimpleNamespace

import pytest

from sb_mm.paper.cells import REPOSITORY
from sb_mm.paper.records import read_records

FOLDER = REPOSITORY / 'docs/se_collapse'
SE = 't5-x0.35-se-expand-depthwise-project'


@pytest.fixture(scope='module')
def study():
    return SimpleNamespace(**runpy.run_path(str(FOLDER / 'study.py')))


def test_gates_with_norm_spread_and_explode_the_gradient(study, make_job):
    batch = {'train_dataloader.batch_size': 16}
    flat = {'model.backbone.attention.gate_norm': False, **batch}
    jobs = [
        make_job('t6-x0.35-static', options=batch),
        make_job(SE, options=batch),
        make_job(SE, options=flat),
    ]
    static, se, without = map(study.first_gradient, jobs)
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
    records = read_records(FOLDER / 'records')
    assert study.gradients_table(data) in page
    assert study.trainings_table(data['networks'], records) in page
    # Every record is a row's, of the three seeds or fewer.
    runs = [study._runs(network, records) for network in data['networks']]
    assert sum(map(len, runs)) == len(records)
