"""What the command-line tools say instead of a traceback."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Longest message, item of a list, and quotation, in characters.
_MESSAGE, _ITEM, _QUOTE = 1500, 300, 80
_CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f]+')


class UserInputError(ValueError):
    """Something that the user gave cannot be used: what, and what to do.

    The command-line tools print it, without a traceback and on one line,
    whatever it quotes, and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        # That of a dataloader worker comes behind its traceback.
        _, _, sentence = message.rpartition('UserInputError: ')
        super().__init__(shorten(sentence, _MESSAGE))


class FileFault(UserInputError):
    """One file cannot be used; those of one remedy are reported together."""

    def __init__(self, path: str, fault: str, remedy: str) -> None:
        super().__init__(f'{path} {fault}: {remedy}.')
        self.path = path
        self.fault = fault
        self.remedy = remedy


class DivergedError(RuntimeError):
    """A training's loss or weights became infinite or NaN.

    The command-line tools print it without a traceback and exit with code 4.
    """


def shorten(text: str, limit: int = _QUOTE) -> str:
    """Return a text on one line, without its middle if it is too long."""
    line = _CONTROL.sub(' ', text)
    half = limit // 2
    return line if len(line) <= limit else f'{line[:half]} ... {line[-half:]}'


def first_few(items: Sequence[str], limit: int = 3) -> str:
    """Join the first items, shortened, and say how many more there are."""
    text = ', '.join(shorten(item, _ITEM) for item in items[:limit])
    rest = len(items) - limit
    return f'{text} and {rest} more' if rest > 0 else text


def first_line(error: Exception) -> str:
    """Return the first line of a host's message, to stand in parentheses."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shorten(lines[0].rstrip('.!'), _ITEM)


@contextmanager
def explain(
    fault: str, remedy: str, kinds: type | tuple = Exception
) -> Iterator[None]:
    """Raise "fault (what a host says): remedy" for what it raises inside."""
    try:
        yield
    except UserInputError:
        raise
    except kinds as error:
        raise UserInputError(
            f'{fault} ({first_line(error)}): {remedy}.'
        ) from error


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised for, down to the root cause."""
    yield error
    if cause := error.__cause__ or error.__context__:
        yield from chain(cause)


def root_cause(error: BaseException) -> BaseException:
    """Return the first of a chain of errors."""
    return [*chain(error)][-1]
