"""The demo: draw a devkit, train SB-SSDLite on it, test it, show it."""

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from sb_mm.arguments import check_number
from sb_mm.datasets.synthetic_voc import make_synthetic_voc
from sb_mm.visualization.detections import draw_sheet, plot_curves
from sb_mm.weights import load_checkpoint_file, weights_only

from .config import load_config
from .runner import build_runner, train

_CONFIG = 'sb_mm::voc/ssd_sb_synthetic.py'


def run_demo(
    out: Path, epochs: int, images: int, seed: int, workers: int
) -> dict:
    """Run the demo.

    Args:
        out: Folder of everything that it leaves.
        epochs: Training epochs.
        images: Training images.
        seed: Seed of the training; the images are always the same.
        workers: Dataloader workers; 0 loads them in this one.

    Returns:
        The test's metrics.

    Raises:
        UserInputError: If an argument is out of its range, or the folder
            cannot be written.
    """
    check_number('--epochs', epochs, 1, integer=True)
    check_number('--images', images, 8, 9999, integer=True)
    check_number('--workers', workers, 0, 64, integer=True)
    devkit = out / 'devkit'
    make_synthetic_voc(
        devkit, num_train=images, num_test=max(8, images // 4), force=True
    )
    # A new folder each time: nothing of an earlier training is deleted.
    folder = out / 'runs' / time.strftime('%Y%m%d_%H%M%S')
    options = {
        'train_cfg.max_epochs': epochs,
        'randomness.seed': seed,
        # MMEngine keeps one visualiser a name and process.
        'visualizer.name': str(folder),
    }
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options[f'{loader}.num_workers'] = workers
        options[f'{loader}.persistent_workers'] = workers > 0
    data_root = str(devkit / 'VOC2007')
    start = time.perf_counter()
    train(load_config(_CONFIG, options, data_root, str(folder)))
    seconds = time.perf_counter() - start
    checkpoint = out / 'checkpoint.pth'
    _publish(folder, checkpoint)
    results = dict(
        checkpoint=checkpoint,
        table=out / 'per_class.md',
        curves=out / 'curves.png',
        sheet=out / 'detections.png',
    )
    plot_curves(folder, results['curves'])
    options['test_evaluator.out_file'] = f'{out}/per_class.json'
    cfg = load_config(_CONFIG, options, data_root, str(folder / 'test'))
    cfg.load_from = str(checkpoint)
    with weights_only():
        runner = build_runner(cfg)
        metrics = runner.test()
    draw_sheet(runner, results['sheet'])
    _print_summary(metrics, seconds, results)
    return metrics


def _publish(folder: Path, file: Path) -> None:
    """Write the best weights, without the records of the training.

    The original family's inferencers cannot load those on PyTorch 2.6.
    """
    best = max(folder.glob('best_*.pth'), key=lambda p: p.stat().st_mtime)
    loaded = load_checkpoint_file(str(best))
    torch.save({key: loaded[key] for key in ('meta', 'state_dict')}, file)


def _print_summary(metrics: dict, seconds: float, results: dict) -> None:
    table = Table(title='SB-SSDLite x0.35 on drawn shapes', show_header=False)
    table.add_row('mAP (11-point)', f'{metrics["pascal_voc/mAP"]:.3f}')
    table.add_row('mAP (area)', f'{metrics["pascal_voc/mAP_area"]:.3f}')
    table.add_row('training', f'{seconds / 60:.1f} minutes')
    for name, path in results.items():
        table.add_row(name, str(path))
    Console(soft_wrap=True).print(table)
