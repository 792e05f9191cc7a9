import json
import random

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.structures import DetDataSample  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from sb_mm.errors import UserInputError  # noqa: E402
from sb_mm.evaluation.voc_metric import PascalVOCMetric  # noqa: E402

CLASSES = ('cat', 'dog')


def instances(rows, scores=False):
    """Rows are (label, box) or (label, box, score)."""
    data = InstanceData(
        labels=torch.tensor([row[0] for row in rows], dtype=torch.long),
        bboxes=torch.tensor([row[1] for row in rows]).float().reshape(-1, 4),
    )
    if scores:
        data.scores = torch.tensor([row[2] for row in rows]).float()
    return data


def sample(objects=(), detections=(), difficult=()):
    return DetDataSample(
        gt_instances=instances(objects),
        ignored_instances=instances(difficult),
        pred_instances=instances(detections, scores=True),
    ).to_dict()


@pytest.fixture
def logged(monkeypatch):
    messages = []
    monkeypatch.setattr(
        'sb_mm.evaluation.voc_metric.print_log',
        lambda message, logger: messages.append(message),
    )
    return messages


def evaluate(samples, metric=None, classes=CLASSES):
    metric = metric or PascalVOCMetric()
    metric.dataset_meta = dict(classes=classes)
    samples = [*samples]
    for one in samples:
        metric.process({}, [one])
    return metric.evaluate(len(samples))


# The paper's formula written again, without mmdet


def both_aps(hits, num_objects):
    """Return the 11-point and the area AP; the best score comes first."""
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)

    def best(recall):
        return max(precision[found / num_objects >= recall], default=0)

    tenths = [best(tenth / 10) for tenth in range(11)]
    steps = [best(k / num_objects) for k in range(1, found[-1] + 1)]
    return [sum(tenths) / 11, sum(steps) / num_objects]


def aps_of(metrics):
    return [metrics['pascal_voc/mAP'], metrics['pascal_voc/mAP_area']]


A, B, C, NOWHERE = ([x, 0, x + 9, 9] for x in (0, 20, 40, 990))
RANDOM = [random.Random(i).random() < 0.6 for i in range(18)]


@pytest.mark.parametrize(('hits', 'count'), [([1, 0, 1, 0], 4), (RANDOM, 20)])
def test_the_formulas_hold_over_images_and_classes(hits, count):
    """One class as ``hits`` says, and one with all found, in three images."""
    boxes = [[30 * i, 0, 30 * i + 9, 9] for i in range(count)]
    found = [
        (0, boxes[i] if hit else NOWHERE, 1 - i / 50)
        for i, hit in enumerate(hits)
    ]
    metrics = evaluate(
        sample(
            [(label, box) for box in boxes[i::3] for label in (0, 1)],
            [*found[i::3], *((1, box, 0.5) for box in boxes[i::3])],
        )
        for i in range(3)
    )
    expected = [(ap + 1) / 2 for ap in both_aps(hits, count)]
    assert aps_of(metrics) == pytest.approx(expected, abs=1e-6)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)


def test_a_difficult_object_is_neither_hit_nor_missed(logged):
    detections = [(0, B, 0.9), (0, A, 0.8)]
    metrics = evaluate(
        [sample([(0, A)], detections, difficult=[(0, B), (0, C)])]
    )
    assert aps_of(metrics) == pytest.approx([1, 1])
    assert '| cat  | 1       | 2          | 1.000' in logged[0]


def test_the_second_detection_of_an_object_is_false():
    detections = [(0, A, 0.9), (0, A, 0.8), (0, B, 0.7)]
    metrics = evaluate([sample([(0, A), (0, B)], detections)])
    assert aps_of(metrics) == pytest.approx(both_aps([1, 0, 1], 2))


def test_iou_thr_decides_what_is_a_hit_and_widths_count_both_ends():
    # IoU 5 / 10 with both ends counted, 4 / 9 without
    pair = [sample([(0, [0, 0, 9, 0])], [(0, [0, 0, 4, 0], 0.9)])]
    found = [
        aps_of(evaluate(pair, PascalVOCMetric(iou_thr)))
        for iou_thr in (0.49, 0.5, 0.51)
    ]
    assert found == [[1, 1], [1, 1], [0, 0]]


def test_nothing_found_or_nothing_there_gives_zero_and_no_image_nothing():
    for only in (sample([(0, A)]), sample(detections=[(0, A, 0.9)])):
        assert aps_of(evaluate([only])) == [0, 0]
    with pytest.raises(UserInputError, match='nothing to evaluate'):
        evaluate([])


def test_the_table_has_the_dataset_s_names_and_is_written(tmp_path, logged):
    path = tmp_path / 'new/deep/classes.json'
    objects = [(0, A), (0, B), (2, C)]
    images = [sample(objects, [(0, A, 0.9), (1, B, 0.5)])]
    metric = PascalVOCMetric(out_file=str(path))
    for _ in range(2):  # the second replaces the first
        metrics = evaluate(images, metric, classes=('gadget', 'cog', 'nut'))
    written = json.loads(path.read_text())
    assert [written['mAP'], written['mAP_area']] == aps_of(metrics)
    assert (written['images'], written['iou_thr']) == (1, 0.5)
    one, two, three = written['classes']
    assert (one['name'], one['objects'], one['recall']) == ('gadget', 2, 0.5)
    assert one['ap_11point'] == pytest.approx(6 / 11)
    assert one['ap_area'] == pytest.approx(0.5)
    assert (two['detections'], two['ap_area']) == (1, None)
    assert (three['recall'], three['ap_area']) == (0, 0)
    # A class without objects is left out of the mean.
    assert 'the 2 of 3 classes that have objects' in logged[0]
    table = logged[0].replace('|', ' ').split('\n')
    for row in (
        [*one],
        ['gadget', '2', '1', '0.500', '0.545', '0.500'],
        ['cog', '0', '1', *3 * ['n/a']],
        ['mAP', '0.273', '0.250'],
    ):
        assert row in [line.split() for line in table]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        *((dict(iou_thr=value), 'iou_thr') for value in (0, -1, 1.1, 50)),
        (dict(out_file='table.csv'), r'ends in \.json'),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(UserInputError, match=message):
        PascalVOCMetric(**arguments)
