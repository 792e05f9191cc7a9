"""The page of results is up to date, and says what was measured only."""

import pytest
from scipy import stats

from sb_mm.files import repository
from sb_mm.paper import report
from sb_mm.paper.cells import TABLES, find_cell
from sb_mm.paper.cost import Cost
from sb_mm.paper.records import read_records
from sb_mm.paper.report import CONTRADICTED, OPEN, SUPPORTED, results_page

PAGE = (repository() / 'docs/results.md').read_text()


def _row(text, marker):
    (line,) = [x for x in text.splitlines() if x.startswith(f'| {marker} ')]
    return [part.strip() for part in line.strip('|').split('|')]


@pytest.fixture(autouse=True)
def _no_counting(monkeypatch):
    """Take from the page what test_cost.py compares with the networks."""

    def count(cell):
        row = _row(PAGE, f'`{cell.id}`')
        adds = float(row[4]) * 1e6 if 'madds_m' in cell.printed else 0
        return Cost(int(row[2].replace(',', '')), adds)

    monkeypatch.setattr(report, 'count', count)


def test_the_page_is_not_stale(capsys):
    records = read_records(repository() / 'results')
    stale = 'run: python tools/paper.py report'
    assert results_page(records) == PAGE, stale
    # Every record is whole.
    assert len(records) >= 5
    assert not capsys.readouterr().err


def test_records_become_mean_deviation_and_difference(make_record):
    few = dict(images=20, classes=10)
    text = results_page(
        [
            make_record('t6-x0.35-sb', 90.0),
            make_record('t6-x0.35-sb', 92.0, seed=1, note='Noted.'),
            make_record('t6-x0.5-sb', 50.0, options={'a': 1}, train=few),
            make_record('t4-ssd-mobilenetv2-x0.5-se', 12.0),
            make_record('t6-x0.5-static', None),
        ]
    )
    # 91 - 91.22; the sample deviation of 90 and 92 is sqrt(2).
    assert _row(text, '`t10-x0.35-hidden-x1`')[3:] == [
        '91.220 ± 0.137',
        '91.000 ± 1.414',
        '-0.220',
        '2 (seeds 0, 1); GPU, abc, 2026-01-01; Noted.',
    ]
    # A training that failed, in the paper and here.
    se = _row(text, '`t4-ssd-mobilenetv2-x0.5-se`')
    assert se[1:4] == ['/', '12.000', '']
    assert _row(text, '`t6-x0.5-static`')[2:4] == ['/', '']
    # What is not the paper's recipe stands in a table of its own.
    assert _row(text, '`t6-x0.5-sb`')[2] == 'not run'
    reduced = ['20 / 10,000', '`t6-x0.5-sb`', '50.000', '50.00']
    assert _row(text, '`a=1`')[1:5] == reduced


@pytest.mark.parametrize(
    ('first', 'second', 'margin', 'expected'),
    [
        ([91.0, 91.1, 91.2], [90.0, 90.1, 90.2], None, SUPPORTED),
        ([90.0, 90.1, 90.2], [91.0, 91.1, 91.2], None, CONTRADICTED),
        ([91.0, 90.0, 92.0], [90.9, 90.0, 91.8], None, OPEN),
        # Two seeds are no test, however clear they look.
        ([95.0, 95.1], [90.0, 90.1, 90.2], None, OPEN),
        # Without any deviation, the interval is the difference.
        ([91.0, 91.0, 91.0], [90.0, 90.0, 90.0], None, SUPPORTED),
        ([91.0, 91.1, 91.05], [91.1, 91.2, 91.15], 0.5, SUPPORTED),
        ([91.0, 91.1, 91.05], [90.0, 90.1, 90.05], 0.5, CONTRADICTED),
        ([91.0, 92.0, 90.0], [91.0, 92.0, 90.0], 0.5, OPEN),
    ],
)
def test_a_claim_is_judged_by_its_interval(first, second, margin, expected):
    assert report.verdict(first, second, margin) == expected


def test_the_paper_is_judged_by_its_own_numbers():
    pairs = [report.claimed_pairs(claim) for claim in TABLES['claims']]
    assert list(map(len, pairs)) == [4, 4, 4, 8, 4, 2, 24, 16, 3]
    assert _row(PAGE, 'SB is better than DyConv.')[2] == '3 open, 1 supported'
    samples = report.printed_samples(find_cell('t6-x0.75-sb'))
    assert len(samples) == 5
    assert stats.tmean(samples) == pytest.approx(92.59)
    assert stats.tstd(samples) == pytest.approx(0.082)


def test_a_claim_is_judged_without_failed_trainings(make_record):
    records = [
        make_record(cell, mean + seed / 10, seed=seed)
        for cell, mean in (('t6-x0.35-sb', 91.0), ('t6-x0.35-static', 90.0))
        for seed in range(3)
    ]
    claim = 'SB is better than the static network.'
    found = _row(results_page(records), claim)
    assert found[1:] == ['6', '4 supported', '3 open, 1 supported']
    # It is no part of a mean that is judged.
    records.append(make_record('t6-x0.35-sb', 10.0, seed=3))
    assert _row(results_page(records), claim)[3] == 'not run'
