"""Checks of arguments, and the channel rounding rule."""

import math

import pytest

from sb_mm.arguments import (
    check_choice,
    check_number,
    check_subset,
    make_divisible,
)
from sb_mm.errors import UserInputError


def test_a_choice_outside_the_list_names_the_list_and_the_value():
    with pytest.raises(UserInputError, match=r"'a', 'b', but got 'c'"):
        check_choice('letter', 'c', ('a', 'b'))
    check_choice('letter', 'a', ('a', 'b'))


def test_an_unhashable_choice_is_refused_by_name_too():
    with pytest.raises(UserInputError, match='letter must be one of'):
        check_choice('letter', ['a'], {'a': 1, 'b': 2})


@pytest.mark.parametrize(
    'values', [(), 'ab', ('a', 'a'), ('a', 'c'), ['c']], ids=repr
)
def test_a_selection_is_not_empty_distinct_and_from_the_list(values):
    with pytest.raises(UserInputError, match="items from 'a', 'b'"):
        check_subset('letters', values, ('a', 'b'))


@pytest.mark.parametrize('values', [7, None, [['a']]], ids=repr)
def test_what_is_no_selection_at_all_is_refused_by_name_too(values):
    with pytest.raises(UserInputError, match="items from 'a', 'b'"):
        check_subset('letters', values, ('a', 'b'))


def test_a_good_selection_passes_in_any_order():
    check_subset('letters', ['b', 'a'], ('a', 'b', 'c'))


@pytest.mark.parametrize('value', [0, 3.5, -math.inf, math.nan, '1', True])
def test_a_number_outside_its_interval_is_refused(value):
    with pytest.raises(UserInputError, match=r'x must be .* \[1, 3\]'):
        check_number('x', value, 1, 3)


@pytest.mark.parametrize('value', [1, 3, 2.5])
def test_closed_ends_belong_to_the_interval(value):
    check_number('x', value, 1, 3)


def test_open_ends_do_not_belong_to_the_interval():
    with pytest.raises(UserInputError, match=r'\(0, 1\), but got 0'):
        check_number('x', 0, 0, 1, open_low=True, open_high=True)
    with pytest.raises(UserInputError, match=r'\(0, 1\), but got 1'):
        check_number('x', 1, 0, 1, open_low=True, open_high=True)
    with pytest.raises(UserInputError, match=r'\[0, inf\), but got inf'):
        check_number('x', math.inf, 0)


def test_an_integer_is_asked_for_where_only_one_will_do():
    with pytest.raises(UserInputError, match='an integer in'):
        check_number('x', 2.0, 1, integer=True)
    check_number('x', 2, 1, integer=True)


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (32, 32),
        (33.6, 32),  # 96 * 0.35
        (11.2, 16),  # 32 * 0.35: 8 would be below 90 percent
        (8.4, 8),  # 24 * 0.35
        (5.6, 8),  # 16 * 0.35
        (12, 16),  # halves go up
        (56, 56),
        (1, 8),
    ],
)
def test_channels_are_rounded_to_eights_but_not_below_90_percent(
    value, expected
):
    assert make_divisible(value) == expected


def test_rounding_agrees_with_torchvision():
    models = pytest.importorskip('torchvision.models._utils')
    for base in (16, 24, 32, 64, 96, 160, 320):
        for width in (0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
            expected = models._make_divisible(base * width, 8)
            assert make_divisible(base * width) == expected
