"""The section of ``docs/results.md`` on runs with another recipe."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from .cells import find_cell
from .claims import CLAIMS, CONFIDENCE, difference, direction, judge, of_runs
from .records import Record, Summary
from .writing import NOT_RUN, bullets, final_result, markdown, our_result

_NOTE = (
    "Not the paper's recipe: they show that a cell runs, and in which "
    'direction numbers point at that recipe, and are not to be put beside '
    "the paper's."
)
_NETWORK = 'model.'
_Key = TypeVar('_Key')


def reduced_section(records: Sequence[Record]) -> str:
    """Return the runs that are not of the paper's recipe, recipe by recipe.

    Of one recipe are the runs that were trained alike; where the network was
    changed too, that is said row by row.
    """
    recipes = _grouped((r for r in records if r.deviations), _recipe)
    if not recipes:
        return 'None recorded.'
    parts = [_NOTE]
    for number, (recipe, runs) in enumerate(recipes.items(), 1):
        parts += [f'### Recipe {number}', *_of_recipe(recipe, runs)]
    return '\n\n'.join(parts)


def _grouped(
    records: Iterable[Record], key: Callable[[Record], _Key]
) -> dict[_Key, list[Record]]:
    groups: dict[_Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _recipe(record: Record) -> tuple[str, ...]:
    return tuple(c for c in record.deviations if not c.startswith(_NETWORK))


def _network(record: Record) -> tuple[str, ...]:
    """Return what was changed of the cell's network."""
    return tuple(c for c in record.deviations if c.startswith(_NETWORK))


def _of_recipe(
    recipe: Sequence[str], records: Sequence[Record]
) -> Iterator[str]:
    """Yield the parts of the section on one recipe."""
    if recipe:
        yield bullets([f'`{c}`' for c in recipe])
    else:
        yield "The paper's recipe, with changed networks."
    header = [
        'cell', 'changed network', 'result (%)', 'seeds', 'each (%)', 'hours',
        'from',
    ]  # fmt: skip
    rows = _grouped(records, lambda r: (r.experiment, _network(r)))
    yield markdown(header, [_row(runs) for runs in rows.values()])
    if findings := list(_findings(records)):
        yield 'What these runs say of the claims above, at this recipe:'
        header = [
            'claim', 'cells', 'changed network', 'difference',
            f'{CONFIDENCE:.0%} interval', 'verdict',
        ]  # fmt: skip
        yield markdown(header, findings)
    if changed := list(_changed(records)):
        yield 'The changed networks against the unchanged ones, one by one:'
        header = [
            'cell', 'changed network', 'difference',
            f'{CONFIDENCE:.0%} interval', 'changed is',
        ]  # fmt: skip
        yield markdown(header, changed)


def _row(records: list[Record]) -> list[str]:
    first = records[0]
    runs = Summary(sorted(records, key=lambda r: r.seed))
    return [
        f'`{first.cell}`',
        _changes(_network(first)),
        our_result(runs),
        ', '.join(str(r.seed) for r in runs.records),
        ', '.join(final_result(r) for r in runs.records),
        f'{sum(r.hours for r in records):.2f}',
        _origin(records),
    ]


def _changes(network: Sequence[str]) -> str:
    return ', '.join(f'`{c.removeprefix(_NETWORK)}`' for c in network)


def _origin(records: Sequence[Record]) -> str:
    """Return what the runs ran on, and when."""
    kinds = sorted({(r.hardware, r.commit, r.date) for r in records})
    return '; '.join(', '.join(kind) for kind in kinds)


def _findings(records: Sequence[Record]) -> Iterator[list[str]]:
    """Judge the claims on runs whose networks are changed alike."""
    for network, runs in _grouped(records, _network).items():
        for claim in CLAIMS:
            for finding in judge(claim, of_runs(runs)):
                if finding.reason == NOT_RUN:
                    continue
                verdict, reason = finding.verdict, finding.reason
                yield [
                    claim.text,
                    ', '.join(f'`{cell.id}`' for cell in finding.cells),
                    _changes(network),
                    _signed(finding.difference),
                    ' to '.join(map(_signed, finding.interval or ())),
                    f'{verdict} ({reason})' if reason else verdict,
                ]


def _changed(records: Sequence[Record]) -> Iterator[list[str]]:
    """Set runs of changed networks against those of the unchanged ones."""
    kinds = _grouped(records, _network)
    unchanged = of_runs(kinds.pop((), []))
    for network, runs in kinds.items():
        for same in _grouped(runs, lambda r: r.experiment).values():
            cell = find_cell(same[0].cell)
            before, after = unchanged(cell), of_runs(same)(cell)
            if before is None:
                continue
            value, interval = difference(after, before)
            yield [
                f'`{cell.id}`',
                _changes(network),
                _signed(value),
                ' to '.join(map(_signed, interval or ())),
                direction(after, before),
            ]


def _signed(value: float | None) -> str:
    return '' if value is None else f'{value:+.2f}'
