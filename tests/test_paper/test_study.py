"""The study of SE's collapse in docs/ measures and says what it measured."""

import json
import runpy
from types import SimpleNamespace

from sb_mm.files import repository
from sb_mm.paper.records import read_records

FOLDER = repository() / 'docs/se_collapse'


def test_the_page_has_what_was_measured(capsys):
    study = SimpleNamespace(**runpy.run_path(str(FOLDER / 'study.py')))
    page = (FOLDER / 'README.md').read_text()
    data = json.loads((FOLDER / 'data.json').read_text())
    records = read_records(FOLDER / 'records')
    assert study.gradients_table(data) in page
    assert study.trainings_table(data['networks'], records) in page
    # Every record is whole and a row's, of the three seeds or fewer.
    runs = [study._runs(network, records) for network in data['networks']]
    assert sum(map(len, runs)) == len(records) >= 46
    assert not capsys.readouterr().err
