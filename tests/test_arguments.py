"""Checks of arguments, and the channel rounding rule."""

import math

import pytest
from torchvision.models._utils import _make_divisible

from sb_mm.arguments import (
    check_choice,
    check_number,
    check_subset,
    make_divisible,
)
from sb_mm.errors import UserInputError


@pytest.mark.parametrize('value', ['c', ['a'], None])
def test_a_choice_is_one_of_the_list(value):
    with pytest.raises(UserInputError, match="letter must .* 'a', 'b', but"):
        check_choice('letter', value, {'a': 1, 'b': 2})


@pytest.mark.parametrize(
    'values',
    [(), 'ab', ('a', 'a'), ('a', 'c'), ['c'], 7, None, [['a']]],
    ids=repr,
)
def test_a_selection_is_not_empty_distinct_and_from_the_list(values):
    with pytest.raises(UserInputError, match="items from 'a', 'b'"):
        check_subset('letters', values, ('a', 'b'))


@pytest.mark.parametrize('value', [0, 3.5, -math.inf, math.nan, '1', True])
def test_a_number_outside_its_interval_is_refused(value):
    with pytest.raises(UserInputError, match=r'x must be .* \[1, 3\]'):
        check_number('x', value, 1, 3)


def test_ends_of_an_interval_are_closed_or_open():
    for value in (1, 3, 2.5):
        check_number('x', value, 1, 3)
    for value in (0, 1):
        with pytest.raises(UserInputError, match=r'in \(0, 1\), but got'):
            check_number('x', value, 0, 1, open_low=True, open_high=True)
    with pytest.raises(UserInputError, match=r'\[0, inf\), but got inf'):
        check_number('x', math.inf, 0)
    with pytest.raises(UserInputError, match='an integer in'):
        check_number('x', 2.0, 1, integer=True)
    check_number('x', 2, 1, integer=True)


def test_channels_are_rounded_to_eights_but_not_below_90_percent():
    for tenths in range(1, 4000):
        expected = _make_divisible(tenths / 10, 8)
        assert make_divisible(tenths / 10) == expected
