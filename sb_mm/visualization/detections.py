"""Images of a finished training: its curves and its detections."""

from pathlib import Path

import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from .work_dir import read_log_lines


def read_scalars(work_dir: str | Path) -> list[dict]:
    """Return the records that the newest training in a folder logged.

    Raises:
        FileNotFoundError: If none logged anything there.
    """
    return read_log_lines(work_dir, 'scalars.json')


def plot_curves(work_dir: str | Path, out: str | Path) -> None:
    """Plot the losses by iteration and the mAPs by epoch of a training."""
    figure = Figure((10, 4), dpi=120, layout='constrained')
    left, right = figure.subplots(1, 2)
    curves = {
        left: {name: name for name in ('loss', 'loss_cls', 'loss_bbox')},
        right: {
            'pascal_voc/mAP': '11-point',
            'pascal_voc/mAP_area': 'area',
        },
    }
    left.set(xlabel='iteration', ylabel='training loss')
    right.set(xlabel='epoch', ylabel='mAP')
    records = read_scalars(work_dir)
    for axes, names in curves.items():
        for name, label in names.items():
            points = [(r['step'], r[name]) for r in records if name in r]
            axes.plot(*np.array(points).reshape(-1, 2).T, '.-', label=label)
        axes.legend()
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    figure.savefig(out)


def draw_sheet(
    runner: Runner,
    out: str | Path,
    rows: int = 4,
    columns: int = 2,
    score_thr: float = 0.3,
) -> None:
    """Draw the first test images, true boxes left and detected ones right.

    Args:
        runner: A runner that has tested, so that its weights are loaded.
        out: File of the sheet.
        rows: Images from top to bottom.
        columns: Images from left to right.
        score_thr: Boxes of a lower score are not drawn.
    """
    dataset = runner.test_dataloader.dataset
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dataset.metainfo
    runner.model.eval()
    figure = Figure((4 * columns, 2 * rows), dpi=100, layout='constrained')
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.axis('off')
    pairs = grid.reshape(-1, 2)
    for pair, index in zip(pairs, range(len(dataset)), strict=False):
        with torch.no_grad():
            batch = pseudo_collate([dataset[index]])
            sample = runner.model.test_step(batch)[0].cpu()
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        visualizer.add_datasample('', image, sample, pred_score_thr=score_thr)
        halves = np.hsplit(visualizer.get_image(), 2)
        for axes, half in zip(pair, halves, strict=True):
            axes.imshow(half)
    for true, detected in grid[0].reshape(-1, 2):
        true.set_title('true')
        detected.set_title('detected')
    figure.savefig(out)
