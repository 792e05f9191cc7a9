"""Checks of constructor arguments, and the channel rounding rule."""

import math
from collections.abc import Collection, Sequence

from sb_mm.errors import UserInputError


def check_choice(name: str, value: object, allowed: Collection) -> None:
    """Raise UserInputError unless ``value`` is one of ``allowed``."""
    if value not in list(allowed):
        raise UserInputError(
            f'{name} must be one of {_listed(allowed)}, but got {value!r}.'
        )


def check_subset(name: str, values: Sequence, allowed: Collection) -> None:
    """Raise UserInputError unless ``values`` are some of ``allowed``.

    At least one, and none twice.
    """
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    chosen = [item for item in allowed if listed and item in values]
    # Fewer: an item stands twice, or is none of the allowed ones.
    if not chosen or len(chosen) < len(values):
        raise UserInputError(
            f'{name} must be a non-empty sequence of distinct items from '
            f'{_listed(allowed)}, but got {values!r}.'
        )


def check_number(
    name: str,
    value: float,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    integer: bool = False,
) -> None:
    """Raise UserInputError unless ``value`` is finite and in an interval.

    Its ends are in it unless they are open; ``integer`` excludes floats.
    """
    kind = int if integer else (int, float)
    if isinstance(value, kind) and not isinstance(value, bool):
        above = low < value if open_low else low <= value
        below = value < high if open_high else value <= high
        if above and below and math.isfinite(value):
            return
    left = '(' if open_low else '['
    right = ')' if open_high or high == math.inf else ']'
    raise UserInputError(
        f'{name} must be {"an integer" if integer else "a number"} in '
        f'{left}{low}, {high}{right}, but got {value!r}.'
    )


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round channels to a multiple of ``divisor``, never below 90 percent.

    The rule of MobileNetV2's reference code, with the same results as
    torchvision's ``_make_divisible`` and mmpretrain's ``make_divisible``.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _listed(allowed: Collection) -> str:
    return ', '.join(map(repr, allowed))
