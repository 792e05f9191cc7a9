"""How numbers and tables are written into the generated pages."""

from collections.abc import Sequence

from .records import Record, Summary

NOT_RUN = 'not run'


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def bullets(items: Sequence[str]) -> str:
    """Return a list in Markdown."""
    return '\n'.join(f'- {item}' for item in items)


def our_result(runs: Summary) -> str:
    """Return mean and standard deviation, and how many runs failed."""
    if runs.mean is None:
        return '/'
    std = '' if runs.std is None else f' ± {runs.std:.3f}'
    failed = ''
    if runs.diverged:
        failed = f' ({runs.diverged} of {len(runs.records)} runs: /)'
    return f'{runs.mean:.3f}{std}{failed}'


def final_result(record: Record) -> str:
    """Return a run's last metric in percent, and whether it failed."""
    if record.final is None:
        return '/'
    return f'{record.final:.2f}' + (' (/)' if record.diverged else '')
