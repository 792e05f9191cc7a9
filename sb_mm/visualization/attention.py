"""Figures of what attention does: layer by layer, and point by point."""

import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.model import BaseModel
from torch import Tensor

from sb_mm.engine.hooks.attention_stats import (
    STATS_FILE,
    attention_layers,
    run_batch,
)
from sb_mm.errors import UserInputError, first_few, first_line
from sb_mm.models.layers import ChannelAttention

from .work_dir import check_work_dir, load_trained, read_log_lines

MAX_POINTS = 20_000
# A row of the figure for each.
_ROWS = {
    'output_std': 'standard deviation',
    'inactivated': 'share of channels\ninactivated (SE)',
    'saturated': 'share of gate values\nsaturated',
    'lambda_mean': 'lambda (SB)\nmean and deviation',
}
# What of a layer's name is not the name of its block.
_IN_BLOCK = re.compile(r'^backbone\.|\.(conv|branch\d|shortcut)(\.\d+)?$')


def plot_attention(
    work_dirs: Sequence[str],
    out: str | None = None,
    epoch: int | None = None,
    labels: Sequence[str] | None = None,
) -> Path:
    """Draw the attention statistics of trainings side by side.

    The arguments are the options of ``tools/plot.py attention``.

    Raises:
        UserInputError: If there are none, or ``out`` cannot be written.
    """
    labels = _labels(work_dirs, labels)
    records = [read_attention_stats(d, epoch) for d in work_dirs]
    figure = attention_figure(labels, records)
    return _save(figure, out or Path(work_dirs[0], 'attention.png'))


def plot_shift(
    work_dirs: Sequence[str],
    layer: str | None = None,
    checkpoint: str | None = None,
    out: str | None = None,
    data_root: str | None = None,
    trust_checkpoint: bool = False,
    labels: Sequence[str] | None = None,
) -> Path:
    """Draw a layer's output against its trunk, for trained networks.

    The arguments are the options of ``tools/plot.py shift``.

    Raises:
        UserInputError: If config, data, checkpoint or layer are missing or do
            not fit, or ``out`` cannot be written.
    """
    labels = _labels(work_dirs, labels)
    if checkpoint and len(work_dirs) > 1:
        raise UserInputError(
            '--checkpoint is for a single work directory, but got '
            f'{len(work_dirs)}: leave it out for the newest of each.'
        )
    panels = []
    for folder in work_dirs:
        loaded = load_trained(folder, checkpoint, data_root, trust_checkpoint)
        panels.append(layer_points(*loaded, layer))
    figure = shift_figure(labels, panels)
    return _save(figure, out or Path(work_dirs[0], 'shift.png'))


def _labels(
    work_dirs: Sequence[str], labels: Sequence[str] | None
) -> list[str]:
    labels = list(labels or work_dirs)
    if len(labels) != len(work_dirs):
        raise UserInputError(
            f'--labels must be as many as the work directories, '
            f'{len(work_dirs)}, but got {len(labels)}.'
        )
    return labels


def read_attention_stats(
    work_dir: str | Path, epoch: int | None = None
) -> dict:
    """Return an epoch's record, counted from 1; the last if None.

    Raises:
        UserInputError: If there is no such folder, file or epoch.
    """
    check_work_dir(work_dir)
    try:
        # All starts: a resumed training goes on in a folder of its own.
        records = read_log_lines(work_dir, STATS_FILE, newest_only=False)
    except FileNotFoundError as error:
        raise UserInputError(
            f'{work_dir} holds no {STATS_FILE}: train with --cfg-options '
            'default_hooks.attention.type=sb_mm.AttentionStatsHook.'
        ) from error
    last = records[-1]['epoch']
    # What lies beyond is of an older training in the same folder.
    by_epoch = {r['epoch']: r for r in records if r['epoch'] <= last}
    chosen = last if epoch is None else epoch
    if chosen not in by_epoch:
        raise UserInputError(
            f'--epoch {epoch} is not in the {STATS_FILE} of {work_dir}, which '
            f'has epochs {min(by_epoch)} to {max(by_epoch)}: choose one.'
        )
    return by_epoch[chosen]


def attention_figure(labels: Sequence[str], records: Sequence[dict]) -> Figure:
    """Draw records of the statistics layer by layer, a column for each.

    A row stands for each kind of metric that a record has.
    """
    layers = [x for record in records for x in record['layers'].values()]
    rows = [row for row in _ROWS if any(row in layer for layer in layers)]
    size = (1 + 5 * len(records), 1 + 2.2 * len(rows))
    figure = Figure(size, dpi=120, layout='constrained')
    grid = figure.subplots(
        len(rows), len(records), sharex='col', sharey='row', squeeze=False
    )
    for axes, metric in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(_ROWS[metric])
    for column, label, record in zip(grid.T, labels, records, strict=True):
        column[0].set_title(f'{label}, epoch {record["epoch"]}')
        column[-1].set_xlabel('layer, by its block')
        for axes, metric in zip(column, rows, strict=True):
            _draw_metric(axes, record['layers'], metric)
    return figure


def _draw_metric(axes: Axes, layers: dict[str, dict], metric: str) -> None:
    axes.grid(alpha=0.3)
    _mark_blocks(axes, list(layers))
    x, y = _series(layers, metric)
    if metric == 'lambda_mean':
        axes.errorbar(x, y, _series(layers, 'lambda_std')[1], fmt='.')
        return
    axes.plot(x, y, '.-', label='layer output')
    if metric == 'output_std':
        trunk = _series(layers, 'trunk_std')
        axes.plot(*trunk, 'k--', linewidth=1, label='trunk T(x)')
        # A network that diverges has a thousand times those of the others.
        axes.set_yscale('log')
        axes.legend()


def _series(
    layers: dict[str, dict], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (numbers of the layers that have it, values)."""
    every = enumerate(layers.values())
    found = [(i, layer[metric]) for i, layer in every if metric in layer]
    # None, which stands for what is not finite, becomes NaN: a gap.
    x, y = np.array(found, dtype=float).reshape(-1, 2).T
    return x, y


def _mark_blocks(axes: Axes, layers: Sequence[str]) -> None:
    """Put a tick at the first layer of each block."""
    blocks = [_IN_BLOCK.sub('', name) for name in layers]
    first = {name: blocks.index(name) for name in blocks}
    axes.set_xticks([*first.values()], [*first], rotation=90, fontsize=7)


@torch.no_grad()
def layer_points(
    model: BaseModel, batch: dict, layer: str | None = None
) -> tuple[str, Tensor, Tensor]:
    """Run a batch and pick elements of a layer at random, always the same.

    Returns:
        The layer's name, by default that of the last attention, ``(P,)``
        elements of its trunk T(x), and ``(P,)``, what became of them.

    Raises:
        UserInputError: If the network has no such layer.
    """
    layers = {
        found.name: found
        for found in attention_layers(model)
        if isinstance(found.attention, ChannelAttention)
    }
    if not layers:
        raise UserInputError(
            'The network has no layer with attention, whose output could be '
            'compared with its trunk: give the run of one that has.'
        )
    chosen = layer or list(layers)[-1]
    if chosen not in layers:
        raise UserInputError(
            f'--layer {layer} is no layer with attention of the network, which'
            f' has {first_few(list(layers))}: choose one of these.'
        )
    picked = []

    def pick(trunk: Tensor, output: Tensor) -> None:
        size = trunk.numel()
        some = random.Random(0).sample(range(size), min(size, MAX_POINTS))
        picked[:] = [t.flatten()[some] for t in (trunk, output)]

    with layers[chosen].observe(pick):
        run_batch(model, batch)
    return (chosen, *picked)


def shift_figure(
    labels: Sequence[str], panels: Sequence[tuple[str, Tensor, Tensor]]
) -> Figure:
    """Draw output against trunk, Figure 2 of arXiv:2103.13080.

    SE scales: its points lie in the cone between 0 and T(x). SB shifts: its
    points lie in a strip along T(x), as wide as the layer's largest lambda.
    A panel is what :func:`layer_points` returned.
    """
    size = (1 + 4 * len(panels), 4.5)
    figure = Figure(size, dpi=120, layout='constrained')
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, label, (layer, trunk, output) in zip(
        grid, labels, panels, strict=True
    ):
        axes.scatter(trunk, output, s=2, linewidths=0, label='elements')
        axes.axline((0, 0), slope=1, color='k', lw=0.5, label='unchanged')
        axes.axhline(0, color='k', lw=0.5, ls='--', label='closed (SE)')
        axes.set(xlabel='trunk T(x)', ylabel='output of the layer')
        axes.set(xlim=_central(trunk), ylim=_central(output))
        axes.set_title(f'{label}\n{layer}', fontsize=9)
        axes.legend(markerscale=5)
        axes.grid(alpha=0.3)
    return figure


def _central(values: Tensor) -> tuple[float, float] | None:
    """Return the ends of 98 % of the values: few outliers hide the rest."""
    finite = values[values.isfinite()]
    if not finite.numel():
        return None
    low, high = finite.quantile(torch.tensor([0.01, 0.99])).tolist()
    return (low, high) if low < high else None


def _save(figure: Figure, out: str | Path) -> Path:
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format=out.suffix[1:])
    except (OSError, ValueError) as error:  # no room, or no such format
        raise UserInputError(
            f'The figure {out} cannot be written ({first_line(error)}): '
            'choose another --out.'
        ) from error
    return out
