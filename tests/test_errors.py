"""What is said of bad input stays one line, whatever it quotes."""

import pytest

from sb_mm.errors import UserInputError, first_few, first_line


@pytest.mark.parametrize(
    'make',
    [
        UserInputError,
        lambda text: first_few([text]),
        lambda text: first_line(ValueError(text)),
    ],
)
def test_what_is_quoted_is_cut_to_a_line_in_its_middle(make):
    text = str(make(f'start {"x" * 2_000_000} end'))
    assert len(text) < 1600
    assert text.startswith('start xx')
    assert 'xx ... xx' in text
    assert text.endswith('xx end')
    assert str(make('short')) == 'short'


def test_control_characters_do_not_reach_the_terminal():
    error = UserInputError("the class 'a\x1b[2J\nb\x9bc' is unknown")
    assert str(error) == "the class 'a [2J b c' is unknown"
