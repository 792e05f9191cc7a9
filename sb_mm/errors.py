"""What the command-line tools say instead of a traceback."""

from collections.abc import Sequence


class UserInputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one sentence that names what was wrong and what to do. The
    command-line tools print it without a traceback and exit with code 2.
    """


class DivergedError(RuntimeError):
    """A training's loss or weights became infinite or NaN.

    The command-line tools print it without a traceback and exit with code 4.
    """


def first_few(
    items: Sequence[str], separator: str = ', ', limit: int = 3
) -> str:
    """Join the first items and say how many more there are."""
    text = separator.join(items[:limit])
    rest = len(items) - limit
    return f'{text} and {rest} more' if rest > 0 else text


def first_line(error: Exception) -> str:
    """Return the first line of a host's message, to stand in parentheses."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip('.!')


def root_cause(error: BaseException) -> BaseException:
    """Return what an error was raised for, of a chain of errors."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return error
