"""The paper's claims, judged by confidence intervals."""

import pytest
from scipy import stats

from sb_mm.paper.cells import find_cell
from sb_mm.paper.claims import (
    CLAIMS,
    CONTRADICTED,
    OPEN,
    SUPPORTED,
    Claim,
    combined,
    judge,
    of_paper,
    of_runs,
)

SB, STATIC = 't6-x0.35-sb', 't6-x0.35-static'
BETTER = Claim('SB is better.', 'Table 6', ((SB, STATIC),))
EQUAL = Claim('They are alike.', 'Table 6', ((SB, STATIC),), margin=0.5)


@pytest.fixture
def finding(make_record):
    """Judge a claim on results of SB and of static."""

    def judged(claim, sb, static):
        records = [
            make_record(cell, value, seed=seed)
            for cell, values in ((SB, sb), (STATIC, static))
            for seed, value in enumerate(values)
        ]
        (found,) = judge(claim, of_runs(records))
        return found

    return judged


def test_every_claim_names_cells_that_exist():
    for claim in CLAIMS:
        for pair in claim.pairs:
            assert len({find_cell(cell).experiment for cell in pair}) == 2


def test_the_interval_is_that_of_welch(finding):
    sb, static = [91.0, 91.4, 91.1], [90.6, 90.9]
    found = finding(BETTER, sb, static)
    test = stats.ttest_ind(sb, static, equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high))
    assert found.difference == pytest.approx(91.1667 - 90.75, abs=1e-3)


@pytest.mark.parametrize(
    ('sb', 'static', 'verdict'),
    [
        ([91.0, 91.1, 91.2], [90.0, 90.1, 90.2], SUPPORTED),
        ([90.0, 90.1, 90.2], [91.0, 91.1, 91.2], CONTRADICTED),
        ([91.0, 90.0, 92.0], [90.9, 90.0, 91.8], OPEN),
        ([95.0], [90.0, 90.1], OPEN),
        ([91.0, 91.0], [90.0, 90.0], SUPPORTED),
        ([10.0, 10.0], [90.0, 90.1], CONTRADICTED),
        ([90.0, 90.1], [10.0, 10.0], SUPPORTED),
        ([10.0, 10.0], [10.0, 10.0], OPEN),
        # One run tells nothing, and neither do the best of several.
        ([91.0], [10.0], OPEN),
        ([91.0, 91.1], [10.0], OPEN),
        ([91.0, 91.1], [90.0, 90.1, 10.0], OPEN),
        ([91.0, 10.0], [10.0, 10.0], OPEN),
    ],
)
def test_better_is_tested_against_zero(finding, sb, static, verdict):
    assert finding(BETTER, sb, static).verdict == verdict


@pytest.mark.parametrize(
    ('sb', 'static', 'verdict'),
    [
        ([91.0, 91.1, 91.05], [91.1, 91.2, 91.15], SUPPORTED),
        ([91.0, 91.1, 91.05], [90.0, 90.1, 90.05], CONTRADICTED),
        ([90.0, 90.1, 90.05], [91.0, 91.1, 91.05], CONTRADICTED),
        ([91.0, 92.0, 90.0], [91.0, 92.0, 90.0], OPEN),
        ([91.0, 91.1], [10.0, 10.0], CONTRADICTED),
    ],
)
def test_alike_is_tested_against_the_margin(finding, sb, static, verdict):
    assert finding(EQUAL, sb, static).verdict == verdict


def test_one_pair_of_many_must_contradict_more_clearly(make_record):
    values = {SB: [90.0, 90.4, 90.2], STATIC: [90.6, 91.0, 90.9]}
    records = [
        make_record(cell, value, seed=seed)
        for cell, finals in values.items()
        for seed, value in enumerate(finals)
    ]
    test = stats.ttest_ind(values[SB], values[STATIC], equal_var=False)
    assert 0.05 / 6 < test.pvalue < 0.05
    alone, among = (
        next(judge(Claim('', '', ((SB, STATIC),) * n), of_runs(records)))
        for n in (1, 6)
    )
    assert (alone.verdict, among.verdict) == (CONTRADICTED, OPEN)
    assert alone.interval == among.interval
    assert among.reason == 'not clear enough for one of 6 pairs'
    # Support is needed of every pair, so that nothing is divided.
    good = Claim('', '', ((STATIC, SB),) * 6)
    verdicts = {f.verdict for f in judge(good, of_runs(records))}
    assert verdicts == {SUPPORTED}


def test_what_was_not_run_is_open(finding):
    found = finding(BETTER, [91.0, 92.0], [])
    assert (found.verdict, found.reason) == (OPEN, 'not run')
    assert found.difference is None


def test_a_claim_holds_if_all_its_pairs_do(finding):
    good = finding(BETTER, [91.0, 91.0], [90.0, 90.0])
    bad = finding(BETTER, [90.0, 90.0], [91.0, 91.0])
    unknown = finding(BETTER, [91.0], [90.0])
    assert combined([good, good]) == SUPPORTED
    assert combined([good, unknown]) == OPEN
    assert combined([good, unknown, bad]) == CONTRADICTED


def test_the_paper_is_judged_by_its_own_numbers():
    claims = {claim.text: claim for claim in CLAIMS}
    found = list(judge(claims['SB is better than DyConv.'], of_paper))
    # 92.59 +- 0.082 and 92.506 +- 0.1, five runs each.
    test = stats.ttest_ind_from_stats(
        92.59, 0.082, 5, 92.506, 0.102, 5, equal_var=False
    )
    assert test.pvalue > 0.05
    assert [f.verdict for f in found] == [OPEN, OPEN, OPEN, SUPPORTED]
