"""Images of a finished run: its curves and its detections."""

from pathlib import Path

import matplotlib
import mmcv
import numpy as np
import torch
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from .work_dir import read_log_lines

matplotlib.use('Agg')  # no display is needed

from matplotlib import pyplot as plt  # noqa: E402


def read_scalars(work_dir: str | Path) -> list[dict]:
    """Return the records that the newest run of a work directory logged.

    Raises:
        FileNotFoundError: If no run logged anything there.
    """
    return read_log_lines(work_dir, 'scalars.json')


def plot_curves(work_dir: str | Path, out: str | Path) -> None:
    """Plot the losses by iteration and the mAPs by epoch of a run."""
    records = read_scalars(work_dir)
    train = [r for r in records if 'loss' in r]
    val = [r for r in records if 'pascal_voc/mAP' in r]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name in ('loss', 'loss_cls', 'loss_bbox'):
        left.plot(
            [r['step'] for r in train], [r[name] for r in train], label=name
        )
    left.set(xlabel='iteration', ylabel='training loss', ylim=(0, None))
    for name, label in (('mAP', '11-point'), ('mAP_area', 'area')):
        right.plot(
            [r['step'] for r in val],
            [r[f'pascal_voc/{name}'] for r in val],
            marker='o',
            label=label,
        )
    right.set(xlabel='epoch', ylabel='mAP', ylim=(0, 1))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    plt.close(figure)


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
    size = (4 * columns, 2 * rows)
    figure, grid = plt.subplots(
        rows, 2 * columns, figsize=size, squeeze=False, layout='constrained'
    )
    for axes in grid.flat:
        axes.axis('off')
    pairs = grid.reshape(-1, 2)
    for pair, index in zip(pairs, range(len(dataset)), strict=False):
        drawn = _draw_pair(runner, visualizer, dataset[index], score_thr)
        for axes, half in zip(pair, np.hsplit(drawn, 2), strict=True):
            axes.imshow(half)
    for true, detected in grid[0].reshape(-1, 2):
        true.set_title('true')
        detected.set_title('detected')
    figure.savefig(out, dpi=100)
    plt.close(figure)


def _draw_pair(
    runner: Runner, visualizer: DetLocalVisualizer, item: dict, thr: float
) -> np.ndarray:
    """Return the RGB image of true boxes beside detected ones."""
    with torch.no_grad():
        sample = runner.model.test_step(pseudo_collate([item]))[0].cpu()
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    visualizer.add_datasample('', image, sample, pred_score_thr=thr)
    return visualizer.get_image()
