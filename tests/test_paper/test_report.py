"""The generated files are up to date, and say what was measured only."""

import pytest
import yaml
from scipy import stats

from sb_mm.paper.cells import REPOSITORY, find_cell, load_cells
from sb_mm.paper.claims import (
    CONTRADICTED,
    OPEN,
    SUPPORTED,
    load_claims,
    printed_samples,
    verdict,
    welch,
)
from sb_mm.paper.datasets import DATASETS
from sb_mm.paper.records import Results, read_results
from sb_mm.paper.report import generate, leaves, results_page, stale

PAGE = REPOSITORY / 'docs/results.md'


def _row(text, cell_id):
    (line,) = [x for x in text.splitlines() if f'`{cell_id}`' in x]
    return [part.strip() for part in line.strip('|').split('|')]


@pytest.fixture(scope='module')
def files():
    return generate(Results([], []))


def test_no_generated_file_is_stale():
    outdated = stale(generate(read_results(REPOSITORY / 'results')))
    assert not outdated, 'run: python tools/paper.py report'


def test_without_records_every_cell_says_not_run(files):
    for cell in load_cells():
        assert _row(files[PAGE], cell.id)[6:] == ['not run', '', '']


def test_records_become_mean_deviation_and_difference(make_record):
    records = [
        make_record('t6-x0.35-sb', 90.0),
        make_record('t6-x0.35-sb', 92.0, seed=1, note='Noted.'),
        make_record('t6-x0.5-sb', 50.0, options={'train_cfg.max_epochs': 1}),
        make_record(
            't6-x0.75-sb', 60.0, train=dict(images=20, classes=10), note='Old.'
        ),
        make_record('t4-ssd-mobilenetv2-x0.5-se', 12.0),
        make_record('t6-x0.5-static', None, history=[]),
    ]
    made = generate(Results(records, ['table6.jsonl line 9 is broken']))
    # 91 - 91.22; the sample deviation of 90 and 92 is sqrt(2).
    assert _row(made[PAGE], 't10-x0.35-hidden-x1')[5:] == [
        '91.220 ± 0.137',
        '91.000 ± 1.414',
        '-0.220',
        '2 (seeds 0, 1); GPU, abc, 2026-01-01; Noted.',
    ]
    printed_slash = _row(made[PAGE], 't4-ssd-mobilenetv2-x0.5-se')
    assert printed_slash[5:8] == ['/', '12.000', '']
    assert _row(made[PAGE], 't6-x0.5-static')[6:8] == ['/', '']
    # What is not the paper's recipe stands in a table of its own.
    full, reduced = made[PAGE].split('## Reduced trainings')
    assert _row(full, 't6-x0.5-sb')[6] == 'not run'
    assert _row(full, 't6-x0.75-sb')[6] == 'not run'
    assert _row(reduced, 't6-x0.5-sb')[:5] == [
        '`train_cfg.max_epochs=1`',
        '50,000 / 10,000',
        '`t6-x0.5-sb`',
        '50.000',
        '50.00',
    ]
    assert _row(reduced, 't6-x0.75-sb')[1] == '20 / 10,000'
    assert _row(reduced, 't6-x0.75-sb')[6].endswith('; Old.')
    assert '## Records left out\n\n- table6.jsonl line 9' in reduced
    meta = yaml.safe_load(made[REPOSITORY / 'configs/cifar10/metafile.yml'])
    results = [m['Results'] for m in meta['Models'] if 'Results' in m]
    assert results == [
        [
            dict(
                Task='Image Classification',
                Dataset='CIFAR-10',
                Metrics={'Top 1 Accuracy': 91.0},
            )
        ]
    ]


@pytest.mark.parametrize(
    ('dataset', 'count', 'leaf', 'parameters'),
    [
        ('imagenet', 24, 'mobilenetv2-sb-w0.35', 2_700_348),
        ('cifar10', 16, 'mobilenetv2-sb-w0.35', 1_440_510),
        ('voc0712', 16, 'ssdlite_mobilenetv2-sb-w1.0', 11_413_134),
    ],
)
def test_metafiles_hold_every_leaf_with_its_size(
    dataset, count, leaf, parameters, files
):
    spec = DATASETS[dataset]
    index = yaml.safe_load(files[REPOSITORY / 'model-index.yml'])
    name = f'configs/{spec.folder}/metafile.yml'
    assert name in index['Import']
    meta = yaml.safe_load(files[REPOSITORY / name])
    assert len(meta['Models']) == len(leaves(spec)) == count
    for model in meta['Models']:
        assert (REPOSITORY / model['Config']).is_file()
        assert model['In Collection'] == meta['Collections'][0]['Name']
        assert 'Results' not in model
    sizes = {m['Name']: m['Metadata']['Parameters'] for m in meta['Models']}
    assert sizes[leaf + spec.suffix.removesuffix('.py')] == parameters


@pytest.mark.parametrize(
    ('first', 'second', 'margin', 'expected'),
    [
        ([91.0, 91.1, 91.2], [90.0, 90.1, 90.2], None, SUPPORTED),
        ([90.0, 90.1, 90.2], [91.0, 91.1, 91.2], None, CONTRADICTED),
        ([91.0, 90.0, 92.0], [90.9, 90.0, 91.8], None, OPEN),
        # Two seeds are no test, however clear they look.
        ([95.0, 95.1], [90.0, 90.1, 90.2], None, OPEN),
        ([], [90.0, 90.1, 90.2], None, OPEN),
        # Without any deviation, the interval is the difference.
        ([91.0, 91.0, 91.0], [90.0, 90.0, 90.0], None, SUPPORTED),
        ([91.0, 91.1, 91.05], [91.1, 91.2, 91.15], 0.5, SUPPORTED),
        ([91.0, 91.1, 91.05], [90.0, 90.1, 90.05], 0.5, CONTRADICTED),
        ([90.0, 90.1, 90.05], [91.0, 91.1, 91.05], 0.5, CONTRADICTED),
        ([91.0, 92.0, 90.0], [91.0, 92.0, 90.0], 0.5, OPEN),
    ],
)
def test_a_claim_is_judged_by_its_interval(first, second, margin, expected):
    assert verdict(first, second, margin) == expected


def test_the_interval_is_that_of_welch():
    # Deviation 2, three runs each: 4 degrees of freedom.
    low, high = welch([40.0, 42.0, 44.0], [20.0, 22.0, 24.0])
    reach = stats.t.ppf(0.975, 4) * (8 / 3) ** 0.5
    assert (low, high) == pytest.approx((20 - reach, 20 + reach))


def test_the_paper_is_judged_by_its_own_numbers():
    claims = {claim.text: claim for claim in load_claims()}
    sizes = [len(claim.pairs) for claim in claims.values()]
    assert sizes == [4, 4, 4, 8, 4, 2, 24, 16, 3]
    better = claims['SB is better than DyConv.'].pairs
    found = [verdict(*map(printed_samples, pair)) for pair in better]
    # 92.59 +- 0.082 and 92.506 +- 0.102, five runs each.
    test = stats.ttest_ind_from_stats(
        92.59, 0.082, 5, 92.506, 0.102, 5, equal_var=False
    )
    assert test.pvalue > 0.05
    assert found == [OPEN, OPEN, OPEN, SUPPORTED]
    (cell, _) = better[0]
    assert stats.tmean(printed_samples(cell)) == pytest.approx(cell.result)
    assert stats.tstd(printed_samples(cell)) == pytest.approx(0.137)


def test_only_full_trainings_judge_a_claim(make_record):
    def runs(cell, mean, **changes):
        return [
            make_record(cell, mean + seed / 10, seed=seed, **changes)
            for seed in range(3)
        ]

    short = dict(options={'train_cfg.max_epochs': 1})
    records = [
        *runs('t6-x0.35-sb', 91.0),
        *runs('t6-x0.35-static', 90.0),
        *runs('t6-x0.5-sb', 40.0, **short),
        *runs('t6-x0.5-static', 45.0, **short),
    ]
    text = results_page(Results(records, []))
    claim = 'SB is better than the static network.'
    (row,) = [x for x in text.splitlines() if claim in x]
    assert row.endswith('| 6 | 4 supported | 3 open, 1 supported |')
    # A training that failed is no part of a mean that is judged.
    failed = make_record('t6-x0.35-sb', 10.0, seed=3)
    text = results_page(Results([*records, failed], []))
    (row,) = [x for x in text.splitlines() if claim in x]
    assert row.endswith('| 4 supported | not run |')
    assert find_cell('t6-x0.35-sb').result == 91.22
