"""Both mAPs of PASCAL VOC in one pass, with the dataset's own names."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmdet.evaluation import VOCMetric, average_precision, eval_map
from mmengine.logging import print_log
from terminaltables import AsciiTable, GithubFlavoredMarkdownTable

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError
from sb_mm.registry import METRICS

_HEADER = 'class', 'objects', 'detections', 'recall', 'AP 11-point', 'AP area'


class ClassResult(NamedTuple):
    """The row of one class; shares from 0 to 1 are None without objects."""

    name: str
    objects: int  # in the test set, without difficult ones
    detections: int  # of this class that the detector gave
    recall: float | None  # share of the objects found
    ap_11point: float | None  # of VOC2007
    ap_area: float | None  # of VOC2010 and later


@METRICS.register_module()
class PascalVOCMetric(VOCMetric):
    """Mean average precision of PASCAL VOC, 11-point and area.

    A detection is a hit if its IoU with an object of its class, widths and
    heights counted as ``x2 - x1 + 1``, is at least ``iou_thr`` and no
    detection of higher score took the object. Difficult objects are neither
    found nor missed. Classes without objects are left out of the means.
    Matching and precision are mmdet's ``eval_map``; both APs are taken of
    one precision-recall curve a class.

    Gives ``pascal_voc/mAP`` (11-point, VOC2007: the paper's number) and
    ``pascal_voc/mAP_area``, both 0 to 1 and unrounded, and logs one table of
    all classes under the names of the dataset.

    Args:
        iou_thr: IoU of a hit, above 0 and at most 1.
        out_file: Where to write the table as JSON (``.json``), with a
            Markdown twin (``.md``) beside it; a later evaluation replaces
            them. None writes nothing.
        collect_device: Where results of several processes are gathered,
            'cpu' or 'gpu'.
        prefix: Put before the names of the metrics.

    Raises:
        UserInputError: ``iou_thr`` is out of range, ``out_file`` is not a
            .json file, or (at evaluation) there was no test image.
    """

    def __init__(
        self,
        iou_thr: float = 0.5,
        out_file: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        check_number('iou_thr', iou_thr, 0, 1, open_low=True)
        if out_file is not None and Path(out_file).suffix != '.json':
            raise UserInputError(
                f'out_file is {out_file}: give a file name that ends in .json.'
            )
        super().__init__(
            iou_thrs=[iou_thr], collect_device=collect_device, prefix=prefix
        )
        self.iou_thr = iou_thr
        self.out_file = out_file

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluate what ``process`` collected.

        Args:
            results: One (annotation, boxes) pair an image; boxes is a list
                with one (n, 5) array of x1, y1, x2, y2, score a class.
        """
        if not results:
            raise UserInputError(
                'There is nothing to evaluate, the test set gave no image: '
                'check its image list.'
            )
        annotations, detections = zip(*results, strict=True)
        mean_ap, curves = eval_map(
            detections,
            annotations,
            iou_thr=self.iou_thr,
            logger='silent',
            eval_mode='11points',
            use_legacy_coordinate=True,
        )
        names = self.dataset_meta['classes']
        pairs = zip(names, curves, strict=True)
        rows = [_class_result(name, curve) for name, curve in pairs]
        areas = [row.ap_area for row in rows if row.objects]
        mean_area = sum(areas) / len(areas) if areas else 0.0
        metrics = dict(mAP=mean_ap, mAP_area=mean_area)
        self._report(rows, metrics, len(results))
        return metrics

    def _report(
        self, rows: list[ClassResult], metrics: dict, num_images: int
    ) -> None:
        cells = _table(rows, metrics)
        table = AsciiTable(cells)
        table.inner_footing_row_border = True
        used = sum(row.objects > 0 for row in rows)
        note = (
            f'{num_images} images, IoU {self.iou_thr:g}, difficult objects '
            f'left out; mAP is the mean over the {used} of {len(rows)} '
            'classes that have objects, or 0.'
        )
        print_log(f'\n{table.table}\n{note}', logger='current')
        if self.out_file is None:
            return
        path = Path(self.out_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = dict(
            iou_thr=self.iou_thr,
            images=num_images,
            **metrics,
            classes=[row._asdict() for row in rows],
        )
        path.write_text(json.dumps(content, indent=2) + '\n', 'utf-8')
        markdown = GithubFlavoredMarkdownTable(cells).table
        path.with_suffix('.md').write_text(f'{markdown}\n\n{note}\n', 'utf-8')


def _class_result(name: str, curve: dict[str, Any]) -> ClassResult:
    """Take one class from the curves that ``eval_map`` gave."""
    recalls, objects = curve['recall'], curve['num_gts']
    if not objects:
        return ClassResult(name, 0, curve['num_dets'], None, None, None)
    area = average_precision(recalls, curve['precision'], 'area')
    recall = float(recalls[-1]) if recalls.size else 0.0
    shares = recall, float(curve['ap']), float(area)
    return ClassResult(name, objects, curve['num_dets'], *shares)


def _table(rows: Sequence[ClassResult], metrics: dict) -> list[list[str]]:
    counts = [sum(row[i] for row in rows) for i in (1, 2)]
    last = ['mAP', *counts, '', metrics['mAP'], metrics['mAP_area']]
    return [[*_HEADER], *([*map(_cell, row)] for row in (*rows, last))]


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f'{value:.3f}'
    return 'n/a' if value is None else str(value)
