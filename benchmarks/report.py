#!/usr/bin/env python
"""Write docs/performance.md from results/performance.json and page.md."""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

# Python puts benchmarks/ on the path, not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matplotlib.figure import Figure

from benchmarks import explanations, results, targets
from benchmarks.measurement import Measurement
from benchmarks.networks import SB, SE, STATIC
from benchmarks.pipeline import OURS, STOCK
from benchmarks.results import Result
from sb_mm.engine.cli import run_tool
from sb_mm.paper.cells import REPOSITORY
from sb_mm.paper.report import fill, markdown

PAGE = REPOSITORY / 'docs/performance.md'
TEMPLATE = REPOSITORY / 'benchmarks/page.md'
_WITHOUT_TABLE = ('scaling', 'loading')  # in the figure
FIGURE = REPOSITORY / 'docs/images/scaling.png'
NO_RESULT = f'`{targets.NOT_RUN}`'
_GENERATED = re.compile(r'<!-- generated: (\w+) -->')
_AXES = dict(
    batch='images in a batch',
    width='width multiplier',
    size='pixels of a side',
)
_COLOURS = {STATIC: 'tab:gray', SE: 'tab:orange', SB: 'tab:blue'}
_LOADER_COLOURS = {STOCK: 'tab:gray', OURS: 'tab:blue'}


def parse_args() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; exit 1 if the page is not up to date',
    )
    return parser.parse_args()


def main() -> None:
    """Write the page and the figure, or say whether the page is stale."""
    args = parse_args()
    found = results.read()
    text = page(found)
    stale = not PAGE.is_file() or text != PAGE.read_text()
    if args.check:
        sys.exit('run: python benchmarks/report.py' if stale else 0)
    PAGE.write_text(text)
    if 'scaling' in found and 'loading' in found:
        figure(found).savefig(FIGURE, dpi=110)
    print(f'written: {PAGE.relative_to(REPOSITORY)}')


def page(found: dict[str, Result]) -> str:
    """Return the text of the page with its tables filled in."""
    text = TEMPLATE.read_text()
    parts = dict.fromkeys(_GENERATED.findall(text), NO_RESULT)
    parts['targets'] = markdown(targets.HEADER, targets.table(found))
    parts['limits'] = explanations.limits(found)
    parts['machine'] = machine(found)
    for name, result in found.items():
        if name not in _WITHOUT_TABLE and result.measurements:
            make = sums if name == 'dynamic_conv' else times
            parts[name] = make(result)
    for name, part in parts.items():
        text = fill(text, name, part, TEMPLATE)
    return text


def machine(found: dict[str, Result]) -> str:
    """Return where and when each benchmark ran."""
    rows = []
    for name, result in found.items():
        where = result.environment
        rows.append(
            [
                name,
                results.machine(where),
                _all(m.threads or 'not noted' for m in result.measurements),
                _all(len(m.values) for m in result.measurements),
                where['date'],
                where['commit'],
                f'`{where["command"]}`',
                results.packages(where),
                '; '.join(result.notes),
            ]
        )
    header = [
        'benchmark', 'machine', 'threads', 'rounds', 'date', 'commit',
        'command', 'versions', 'left out',
    ]  # fmt: skip
    return markdown(header, rows)


def _all(values: Iterable[object]) -> str:
    """Return the different ones of what the measurements have."""
    return ', '.join(dict.fromkeys(map(str, values)))


def sums(result: Result) -> str:
    """Return the table of DyConv: a row a kind, summed over the layers."""
    names = list(dict.fromkeys(m.contender for m in result.measurements))
    groups: dict[str, dict[str, float]] = {}
    for taken in result.measurements:
        group = f'{taken.case["kind"]}, x{taken.case["width"]}'
        total = groups.setdefault(group, dict.fromkeys(names, 0.0))
        total[taken.contender] += targets.spread(taken.values)[0]
    rows = [
        [group, *(f'{v:.4g}' if v else '' for v in total.values())]
        for group, total in groups.items()
    ]
    unit = result.measurements[0].unit
    return markdown([f'sum of medians, {unit}', *names], rows)


def times(result: Result) -> str:
    """Return a benchmark's table: a row a case, a column a contender."""
    cases = targets.by_case(result.measurements)
    names = list(dict.fromkeys(m.contender for m in result.measurements))
    keys = varying(cases)
    single = all(len(m.values) == 1 for m in result.measurements)
    unit = result.measurements[0].unit
    corner = unit if single else f'median (quartiles), {unit}'
    if len(cases) * 3 < len(names):  # few cases: contenders as rows
        labels = [label(key, keys or list(dict(key))) for key in cases]
        header = [corner, *labels]
        rows = [[n, *(_cell(c, n) for c in cases.values())] for n in names]
    else:
        header = [corner, *names]
        rows = [
            [label(key, keys), *(_cell(case, n) for n in names)]
            for key, case in cases.items()
        ]
    return markdown(header, rows)


def varying(cases: dict[tuple, dict]) -> list[str]:
    """Return the entries of the cases that are not the same for all."""
    first = dict(next(iter(cases)))
    return [
        key
        for key in first
        if len({str(dict(case).get(key)) for case in cases}) > 1
    ]


def label(case: tuple, keys: list[str]) -> str:
    """Return what a case has that others have not."""
    entries = dict(case)
    return ', '.join(f'{key} {entries[key]}' for key in keys)


def _cell(case: dict[str, Measurement], name: str) -> str:
    if name not in case:
        return ''
    median, low, high = targets.spread(case[name].values)
    if len(case[name].values) == 1:
        return f'{median:.4g}'
    return f'{median:.4g} ({low:.4g}-{high:.4g})'


def figure(found: dict[str, Result]) -> Figure:
    """Return the plots of how the cost grows."""
    drawn = Figure(figsize=(13, 6.5), layout='constrained')
    grid = drawn.subplots(2, 4)
    measurements = found['scaling'].measurements
    for row, what in zip(
        grid, ('training step', 'inference, folded'), strict=True
    ):
        for axes, axis in zip(row, _AXES, strict=False):
            _lines(axes, measurements, what, axis)
    _loading(grid[0][3], found['loading'].measurements)
    _ratios(grid[1][3], measurements)
    grid[0][0].legend()
    return drawn


def _series(
    measurements: list[Measurement], what: str, axis: str, contender: str
) -> tuple[list, list]:
    found = [
        (m.case[axis], targets.spread(m.values)[0])
        for m in measurements
        if m.case['what'] == what
        and m.case['axis'] == axis
        and m.contender == contender
    ]
    return tuple(map(list, zip(*found, strict=True)))


def _lines(
    axes: 'Axes',  # noqa: F821
    measurements: list[Measurement],
    what: str,
    axis: str,
) -> None:
    for contender, colour in _COLOURS.items():
        xs, ys = _series(measurements, what, axis, contender)
        axes.plot(xs, ys, marker='o', color=colour, label=contender)
    axes.set(xlabel=_AXES[axis], ylabel='ms per image', title=what)
    axes.set_ylim(bottom=0)
    if axis == 'batch':
        axes.set_xscale('log', base=2)
        axes.set_xticks(xs, [str(x) for x in xs])
    axes.grid(alpha=0.3)


def _loading(axes: 'Axes', measurements: list[Measurement]) -> None:  # noqa: F821
    for name in dict.fromkeys(m.contender for m in measurements):
        taken = [m for m in measurements if m.contender == name]
        rates = [1e3 / targets.spread(m.values)[0] for m in taken]
        xs = [m.case['workers'] for m in taken]
        colour = _LOADER_COLOURS[name]
        axes.plot(xs, rates, 'o-', label=name, color=colour)
    axes.set(
        xlabel='dataloader workers',
        ylabel='images per second',
        title='SSD training data',
        xticks=sorted({m.case['workers'] for m in measurements}),
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()


def _ratios(axes: 'Axes', measurements: list[Measurement]) -> None:  # noqa: F821
    for what in ('training step', 'inference, folded'):
        xs, sb = _series(measurements, what, 'batch', SB)
        _, static = _series(measurements, what, 'batch', STATIC)
        ratios = [a / b for a, b in zip(sb, static, strict=True)]
        axes.plot(xs, ratios, marker='o', label=what)
    axes.axhline(1, color='tab:gray', linewidth=1)
    axes.set(xlabel=_AXES['batch'], ylabel='SB / static', title='x0.35')
    axes.set_xscale('log', base=2)
    axes.set_xticks(xs, [str(x) for x in xs])
    axes.grid(alpha=0.3)
    axes.legend()


if __name__ == '__main__':
    run_tool(main)
