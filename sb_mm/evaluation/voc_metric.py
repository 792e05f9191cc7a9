"""Both mAPs of PASCAL VOC in one pass, with the dataset's own names."""

from pathlib import Path
from typing import Any

from mmdet.evaluation import VOCMetric, average_precision, eval_map
from mmengine.fileio import dump
from mmengine.logging import print_log
from terminaltables import AsciiTable

from sb_mm.arguments import check_number
from sb_mm.errors import UserInputError
from sb_mm.registry import METRICS

_COLUMNS = 'name', 'objects', 'detections', 'recall', 'ap_11point', 'ap_area'


@METRICS.register_module()
class PascalVOCMetric(VOCMetric):
    """Mean average precision of PASCAL VOC, 11-point and area.

    A detection is a hit if its IoU with an object of its class, widths and
    heights counted as ``x2 - x1 + 1``, is at least ``iou_thr`` and no
    detection of higher score took the object. Difficult objects are neither
    found nor missed. Classes without objects are left out of the means.
    Both APs are taken of one curve a class, of mmdet's ``eval_map``.

    Gives ``pascal_voc/mAP`` (11-point, VOC2007: the paper's number) and
    ``pascal_voc/mAP_area`` (VOC2010 and later), both 0 to 1 and unrounded,
    and logs one table of all classes under the names of the dataset.

    Args:
        iou_thr: IoU of a hit, above 0 and at most 1.
        out_file: Where to write the table as JSON; a later evaluation
            replaces it. None writes nothing.
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
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.iou_thr = iou_thr
        self.out_file = out_file

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluate what ``process`` collected, a pair of each image."""
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
        rows = [*map(_row, self.dataset_meta['classes'], curves)]
        areas = [row['ap_area'] for row in rows if row['objects']]
        mean_area = sum(areas) / len(areas) if areas else 0.0
        metrics = dict(mAP=mean_ap, mAP_area=mean_area)
        self._report(rows, metrics, len(results))
        return metrics

    def _report(self, rows: list[dict], metrics: dict, images: int) -> None:
        cells = [[*map(_cell, row.values())] for row in rows]
        last = ['mAP', '', '', '', *map(_cell, metrics.values())]
        used = sum(row['objects'] > 0 for row in rows)
        print_log(
            f'\n{AsciiTable([_COLUMNS, *cells, last]).table}\n{images} '
            f'images, IoU {self.iou_thr:g}, difficult objects left out; mAP '
            f'is the mean over the {used} of {len(rows)} classes that have '
            'objects, or 0.',
            'current',
        )
        if self.out_file is not None:
            settings = dict(iou_thr=self.iou_thr, images=images)
            content = dict(**settings, **metrics, classes=rows)
            dump(content, self.out_file, indent=2)


def _row(name: str, curve: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of a class; shares are None without objects."""
    recalls, objects = curve['recall'], curve['num_gts']
    shares: tuple = (None, None, None)
    if objects:
        area = average_precision(recalls, curve['precision'], 'area')
        found = recalls[-1] if recalls.size else 0
        shares = float(found), float(curve['ap']), float(area)
    values = (name, objects, curve['num_dets'], *shares)
    return dict(zip(_COLUMNS, values, strict=True))


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f'{value:.3f}'
    return 'n/a' if value is None else str(value)
