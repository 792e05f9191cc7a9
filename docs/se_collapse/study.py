#!/usr/bin/env python
"""Why SE in every layer hardly learns: measure the first gradients, or report.

    python docs/se_collapse/study.py measure --data-root DIR
    python docs/se_collapse/study.py report

``data.json`` has the networks, and what ``measure`` found; ``report`` prints
the tables of ``README.md`` from it and from the records of the trainings.
"""

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from rich.progress import track

from sb_mm.engine.build import build_model
from sb_mm.engine.cli import run_tool
from sb_mm.engine.environment import commit, hardware, versions
from sb_mm.models.layers import ChannelAttention
from sb_mm.paper.cells import find_cell
from sb_mm.paper.job import Job
from sb_mm.paper.records import Record, identity, read_records
from sb_mm.paper.report import SEEDS, markdown, welch

HERE = Path(__file__).resolve().parent
DATA = HERE / 'data.json'
# Of the trainings, besides what is changed of a network.
_SHORT = {
    'train_cfg.max_epochs': 4,
    'train_dataloader.dataset.indices': 10_000,
}


def measure(data_root: str | None) -> None:
    """Look at all networks before the first step."""
    data = json.loads(DATA.read_text())
    # What changes the steps only is the same network before the first.
    networks = [n for n in data['networks'] if 'gradient' in n]
    for network in track(networks, 'measuring'):
        cell, options = find_cell(network['cell']), network['options']
        found = [
            first_gradient(Job(cell, seed, options, data_root=data_root))
            for seed in data['seeds']
        ]
        norms, spreads = zip(*found, strict=True)
        network['gradient'] = mean(norms)
        network['spread'] = None if None in spreads else mean(spreads)
    data['note'] = ''
    data['date'] = date.today().isoformat()
    data['environment'] = dict(
        versions(), hardware=hardware(), commit=commit()
    )
    DATA.write_text(json.dumps(data, indent=1) + '\n')


def first_gradient(job: Job) -> tuple[float, float | None]:
    """Return what the first batch of a training shows.

    Returns:
        Norm of the whole gradient; standard deviation over the images of a
        gate's value, averaged over gates and layers, None without gates.
    """
    cfg = job.config()
    init_default_scope(cfg.default_scope)
    torch.manual_seed(job.seed)
    model = build_model(cfg)
    model.init_weights()
    loader = Runner.build_dataloader(cfg.train_dataloader, job.seed)
    model.train()
    data = model.data_preprocessor(next(iter(loader)), training=True)
    spreads: list[float] = []
    for module in model.modules():
        if isinstance(module, ChannelAttention):
            module.gate.register_forward_hook(
                lambda _, __, logits, layer=module: spreads.append(
                    layer.gate_function(logits).detach().std(0).mean().item()
                )
            )
    model.parse_losses(model(**data, mode='loss'))[0].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.item(), mean(spreads) if spreads else None


def gradients_table(data: dict) -> str:
    """Return the table of gradients and gates, and where it comes from."""
    rows = []
    for network in data['networks']:
        if 'gradient' in network:
            norm = float(format(network['gradient'], '.2g'))
            spread = network['spread']
            spread = '-' if spread is None else f'{spread:.2g}'
            rows.append([network['label'], f'{norm:,.6g}', spread])
    header = ['network', 'norm of the gradient', 'spread of a gate']
    environment = data['environment']
    origin = (
        f'Seeds {", ".join(map(str, data["seeds"]))}; '
        f'{environment["hardware"]}, commit {environment["commit"]}, '
        f'{data["date"]}. {data["note"]}'
    )
    return f'{markdown(header, rows)}\n\n{origin.strip()}'


def trainings_table(networks: list[dict], records: list[Record]) -> str:
    """Return the table of short trainings, and the notes on them."""
    runs = [_runs(network, records) for network in networks]
    rows = []
    for network, found in zip(networks, runs, strict=True):
        each = ', '.join(record.text for record in found) or 'not run'
        before = network['unchanged']
        compared = _compared(found, [] if before is None else runs[before])
        rows.append([network['label'], each, *compared])
    notes = sorted({record.note for record in records if record.note})
    header = ['network', 'top-1 (%), seeds 0, 1, 2', 'change', '95% interval']
    return '\n\n'.join([markdown(header, rows), *notes])


def _runs(network: dict, records: list[Record]) -> list[Record]:
    cell, options = find_cell(network['cell']), network['options']
    wanted = {
        identity(cell, seed, {**_SHORT, **options}) for seed in range(SEEDS)
    }
    found = [r for r in records if r.identity in wanted]
    return sorted(found, key=lambda record: record.seed)


def _compared(changed: list[Record], before: list[Record]) -> tuple[str, str]:
    """Return the difference of the means, and its interval from 3 seeds on."""
    finals = [[r.final for r in runs] for runs in (changed, before)]
    if not all(finals):
        return '', ''
    difference = f'{mean(finals[0]) - mean(finals[1]):+.1f}'
    if min(map(len, finals)) < SEEDS:
        return difference, ''
    return difference, ' to '.join(f'{end:+.1f}' for end in welch(*finals))


def report() -> None:
    """Print the tables of the page."""
    data = json.loads(DATA.read_text())
    print(gradients_table(data), end='\n\n')
    print(trainings_table(data['networks'], read_records(HERE / 'records')))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('command', choices=['measure', 'report'])
    parser.add_argument('--data-root', help='folder of CIFAR-10')
    args = parser.parse_args()
    if args.command == 'measure':
        measure(args.data_root)
    report()


if __name__ == '__main__':
    run_tool(main)
