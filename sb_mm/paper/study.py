"""The study of how SE and SB begin to train: docs/attention.md's tables."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sb_mm.errors import UserInputError, first_line
from sb_mm.files import write_in_one_step

from .cells import Cell, find_cell
from .claims import CONFIDENCE, Sample, difference, direction, sample_of
from .records import RESULTS, Record, Summary
from .writing import NOT_RUN, final_result, markdown

STARTS = RESULTS / 'start_of_training.json'
# Of the trainings in the second table.
_RECIPE = (
    'train images=10000',
    'train_cfg.max_epochs=4',
    'train_dataloader.dataset.indices=10000',
)
_SE = 't5-x0.35-se-expand-depthwise-project'
_CLIPPED = 'optim_wrapper.clip_grad.max_norm=5'
_BEFORE_NORM = 'model.backbone.attention_after=conv'


@dataclass(frozen=True)
class MeasuredStart:
    """What the first batches of a network showed.

    Attributes:
        cell: Id of the cell.
        options: What was changed of it, as ``key=value``.
        seeds: Of weights and images; what follows are means over them.
        gradient: Norm of the whole gradient.
        spread: Standard deviation over the images of a gate's value; None
            without attention by gates.
        hardware: GPU, or processor.
        versions: Of Python and the packages.
        commit: Of this repository, with ``+`` if its code was changed.
        date: ISO.
    """

    cell: str
    options: list[str]
    seeds: list[int]
    gradient: float
    spread: float | None
    hardware: str
    versions: dict[str, str]
    commit: str
    date: str

    @property
    def network(self) -> tuple:
        """What is equal for equal networks."""
        return find_cell(self.cell).experiment, tuple(sorted(self.options))


@dataclass(frozen=True)
class _Network:
    """A row: a cell, what is changed of it, and what it is set against."""

    label: str
    cell_id: str
    changes: tuple[str, ...] = ()
    unchanged: '_Network | None' = None

    @property
    def cell(self) -> Cell:
        return find_cell(self.cell_id)


_SB_ALL = _Network('SB, all three layers, lambda = 0.1, tanh', 't6-x0.35-sb')
_SE_ALL = _Network('SE, all three layers', _SE)
_LARGE = _Network(
    '- lambda = 1.0', 't8-x0.35-lambda_init-1.0', unchanged=_SB_ALL
)
_NETWORKS = (
    _Network('static', 't6-x0.35-static'),
    _Network('DyConv', 't6-x0.35-dyconv'),
    _Network('SB, expand', 't5-x0.35-sb-expand'),
    _Network('SB, expand and project', 't5-x0.35-sb-expand-project'),
    _SB_ALL,
    *(
        _Network(f'- gate: {gate}', f't9-x0.35-gate-{gate}', (), _SB_ALL)
        for gate in ('sigmoid', 'softmax', 'relu', 'none')
    ),
    _Network(
        "- attention before the layer's norm",
        't6-x0.35-sb',
        (_BEFORE_NORM,),
        _SB_ALL,
    ),
    *(
        _Network(
            f'- lambda = {value}', f't8-x0.35-lambda_init-{value}', (), _SB_ALL
        )
        for value in ('0.01', '0.05', '0.5')
    ),
    _LARGE,
    _Network(
        '- - gradient clipped to a norm of 5',
        't8-x0.35-lambda_init-1.0',
        (_CLIPPED,),
        _LARGE,
    ),
    _Network('SE, expand', 't5-x0.35-se-expand'),
    _Network('SE, expand and project', 't5-x0.35-se-expand-project'),
    _SE_ALL,
    *(
        _Network(f'- {label}', _SE, (change,), _SE_ALL)
        for label, change in (
            ("attention before the layer's norm", _BEFORE_NORM),
            (
                'gates without norm',
                'model.backbone.attention.gate_norm=False',
            ),
            (
                "4 added to the gates' logits",
                'model.backbone.attention.gate_offset=4',
            ),
            ('gradient clipped to a norm of 5', _CLIPPED),
        )
    ),
)


def read_starts(file: Path = STARTS) -> list[MeasuredStart]:
    """Return what a file of measured starts holds; nothing if there is none.

    Raises:
        UserInputError: If it is no such file.
    """
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, list):
            raise TypeError('not a list')  # noqa: TRY301
        return [MeasuredStart(**entry) for entry in found]
    except (TypeError, ValueError) as error:
        raise UserInputError(
            f'{file} is no file of measured starts ({first_line(error)}): '
            'give another --out.'
        ) from error


def check_out(file: Path) -> None:
    """Raise unless starts can be added to a file.

    Raises:
        UserInputError: If it is a folder, or no such file.
    """
    if file.is_dir():
        raise UserInputError(f'--out {file} is a folder: give a file.')
    read_starts(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserInputError(
            f'--out {file} cannot be written ({error.strerror}): give another '
            'file.'
        ) from error


def add_starts(new: Iterable[MeasuredStart], file: Path) -> None:
    """Add to a file of measured starts, in the place of the same networks."""
    known = {start.network: start for start in read_starts(file)}
    known.update({start.network: start for start in new})
    lines = [json.dumps(asdict(start)) for start in known.values()]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_step(file, '[\n' + ',\n'.join(lines) + '\n]\n')


def starts_table(starts: Sequence[MeasuredStart]) -> str:
    """Return the table of gradients and gates before the first step."""
    known = {start.network: start for start in starts}
    header = ['network', 'norm of the gradient', 'spread of a gate', 'from']
    # What changes the steps only is the same network before the first.
    networks = [n for n in _NETWORKS if _CLIPPED not in n.changes]
    return markdown(header, [_started(n, known) for n in networks])


def _started(network: _Network, known: dict) -> list[str]:
    start = known.get((network.cell.experiment, network.changes))
    if start is None:
        return [network.label, NOT_RUN, '', '']
    seeds = ', '.join(map(str, start.seeds))
    return [
        network.label,
        _two_digits(start.gradient),
        '-' if start.spread is None else f'{start.spread:.2g}',
        f'seeds {seeds}; {start.hardware}, commit {start.commit}, '
        f'{start.date}',
    ]


def _two_digits(value: float) -> str:
    return f'{float(f"{value:.2g}"):,.6g}'


def trainings_table(records: Sequence[Record]) -> str:
    """Return the table of short trainings of the same networks."""
    header = [
        'network', 'top-1 (%)', 'mean', 'seeds', 'difference',
        f'{CONFIDENCE:.0%} interval', 'changed is',
    ]  # fmt: skip
    rows = []
    known = {network: _runs(network, records) for network in _NETWORKS}
    for network, runs in known.items():
        unchanged = known.get(network.unchanged)
        compared = ['', '', '']
        if runs and unchanged:
            compared = _compared(sample_of(runs), sample_of(unchanged))
        rows.append([network.label, *_results(runs), *compared])
    return markdown(header, rows)


def _runs(network: _Network, records: Sequence[Record]) -> Summary | None:
    wanted = {*_RECIPE, *network.changes}
    runs = [
        record
        for record in records
        if record.experiment == network.cell.experiment
        and set(record.deviations) == wanted
    ]
    runs.sort(key=lambda record: record.seed)
    return Summary(runs) if runs else None


def _results(runs: Summary | None) -> list[str]:
    """Return each result, their mean, and the seeds."""
    if runs is None:
        return [NOT_RUN, '', '']
    return [
        ', '.join(map(final_result, runs.records)),
        '/' if runs.mean is None else f'{runs.mean:.1f}',
        ', '.join(str(record.seed) for record in runs.records),
    ]


def _compared(changed: Sample, unchanged: Sample) -> list[str]:
    """Return the difference of the means, its interval, and what it says."""
    value, interval = difference(changed, unchanged)
    ends = ' to '.join(f'{end:+.1f}' for end in interval or ())
    shown = '' if value is None else f'{value:+.1f}'
    return [shown, ends, direction(changed, unchanged)]
