import json
import random

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.evaluation import VOCMetric  # noqa: E402
from mmdet.registry import METRICS as MMDET_METRICS  # noqa: E402
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
    for one in samples:
        metric.process({}, [one])
    return metric.evaluate(len(samples))


def random_samples(count=12, classes=2, seed=0):
    rng = random.Random(seed)

    def box():
        x, y = rng.uniform(0, 60), rng.uniform(0, 60)
        return [x, y, x + rng.uniform(5, 40), y + rng.uniform(5, 40)]

    def near(corners):
        return [value + rng.uniform(-6, 6) for value in corners]

    samples = []
    for _ in range(count):
        objects = [(rng.randrange(classes), box()) for _ in range(3)]
        difficult = [(rng.randrange(classes), box())]
        found = [
            (label, near(corners), rng.random())
            for label, corners in [*objects, *objects, *difficult]
        ]
        false = [(rng.randrange(classes), box(), rng.random())]
        samples.append(sample(objects, found + false, difficult))
    return samples


# The paper's formula written again, without mmdet


def curve(hits, num_objects):
    """(recall, precision) after each detection, best score first."""
    hits = np.cumsum(hits)
    ranks = np.arange(1, len(hits) + 1)
    return hits / num_objects, hits / ranks


def ap_11point(hits, num_objects):
    recall, precision = curve(hits, num_objects)
    best = [
        max(precision[recall >= tenth / 10], default=0) for tenth in range(11)
    ]
    return sum(best) / 11


def ap_area(hits, num_objects):
    recall, precision = curve(hits, num_objects)
    area, before = 0, 0
    for index, value in enumerate(recall):
        area += (value - before) * max(precision[index:])
        before = value
    return area


A, B, C, NOWHERE = (
    [0, 0, 9, 9],
    [20, 0, 29, 9],
    [40, 0, 49, 9],
    [80, 80, 89, 89],
)


def test_hand_computed_case():
    # hits of the one class by score: 1 0 1 0, of three objects
    detections = [
        (0, A, 0.9),
        (0, NOWHERE, 0.8),
        (0, B, 0.7),
        (0, NOWHERE, 0.6),
    ]
    objects = [(0, A), (0, B), (0, C)]
    metrics = evaluate([sample(objects, detections)], classes=('cat',))
    # recall 1/3 at precision 1, 2/3 at 2/3: tenths 0-3 give 1, 4-6 give 2/3
    assert metrics['pascal_voc/mAP'] == pytest.approx((4 + 3 * 2 / 3) / 11)
    assert metrics['pascal_voc/mAP_area'] == pytest.approx(1 / 3 + 2 / 9)
    hits = [1, 0, 1, 0]
    assert ap_11point(hits, 3) == pytest.approx((4 + 3 * 2 / 3) / 11)
    assert ap_area(hits, 3) == pytest.approx(1 / 3 + 2 / 9)


def test_formulas_hold_on_random_hits():
    rng = random.Random(3)
    objects = [(0, [30 * i, 0, 30 * i + 9, 9]) for i in range(20)]
    hits = [rng.random() < 0.6 for _ in range(18)]
    detections = [
        (0, objects[i][1] if hit else NOWHERE, 1 - i / 50)
        for i, hit in enumerate(hits)
    ]
    metrics = evaluate([sample(objects, detections)], classes=('cat',))
    found = metrics['pascal_voc/mAP'], metrics['pascal_voc/mAP_area']
    expected = ap_11point(hits, 20), ap_area(hits, 20)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def test_equals_mmdets_metric_in_both_modes():
    samples = random_samples()
    ours = evaluate(samples)
    eleven = evaluate(samples, VOCMetric(eval_mode='11points'))
    area = evaluate(samples, VOCMetric(eval_mode='area'))
    assert 0.1 < ours['pascal_voc/mAP'] < 0.9
    assert ours['pascal_voc/mAP'] == eleven['pascal_voc/mAP']
    assert ours['pascal_voc/mAP_area'] == pytest.approx(
        area['pascal_voc/mAP'], abs=1e-6
    )


def test_a_difficult_object_is_neither_hit_nor_missed(logged):
    detections = [(0, B, 0.9), (0, A, 0.8)]
    metrics = evaluate(
        [sample([(0, A)], detections, difficult=[(0, B), (0, C)])],
        classes=('cat',),
    )
    assert metrics['pascal_voc/mAP'] == pytest.approx(1)
    assert metrics['pascal_voc/mAP_area'] == pytest.approx(1)
    assert '| cat   | 1       | 2          | 1.000' in logged[0]


def test_the_second_detection_of_an_object_is_false():
    detections = [(0, A, 0.9), (0, A, 0.8), (0, B, 0.7)]
    metrics = evaluate([sample([(0, A), (0, B)], detections)], classes=('c',))
    hits = [1, 0, 1]
    assert metrics['pascal_voc/mAP_area'] == pytest.approx(ap_area(hits, 2))
    assert metrics['pascal_voc/mAP'] == pytest.approx(ap_11point(hits, 2))
    assert ap_area(hits, 2) < 0.9


def test_widths_count_both_end_pixels():
    # IoU 5 / 10 with both ends counted, 4 / 9 without
    metrics = evaluate(
        [sample([(0, [0, 0, 9, 0])], [(0, [0, 0, 4, 0], 0.9)])],
        classes=('cat',),
    )
    assert metrics['pascal_voc/mAP_area'] == 1


def test_iou_thr_decides_what_is_a_hit():
    pair = [sample([(0, [0, 0, 9, 9])], [(0, [0, 0, 9, 7], 0.9)])]  # IoU 0.8
    strict = evaluate(pair, PascalVOCMetric(iou_thr=0.81), ('cat',))
    loose = evaluate(pair, PascalVOCMetric(iou_thr=0.79), ('cat',))
    assert strict['pascal_voc/mAP'] == 0
    assert loose['pascal_voc/mAP'] == pytest.approx(1)


def test_one_table_names_the_classes_of_the_data_set(logged):
    evaluate(random_samples(), classes=('gadget', 'widget'))
    (text,) = logged
    for word in ('gadget', 'widget', 'recall', 'AP 11-point', 'AP area'):
        assert word in text
    assert 'aeroplane' not in text
    assert 'all 2 classes' in text


def test_a_class_without_objects_is_left_out_of_the_mean(logged):
    metrics = evaluate([sample([(0, A)], [(0, A, 0.9), (1, B, 0.9)])])
    assert metrics['pascal_voc/mAP'] == pytest.approx(1)
    assert metrics['pascal_voc/mAP_area'] == pytest.approx(1)
    row = next(line for line in logged[0].splitlines() if 'dog' in line)
    assert row.count('n/a') == 3
    assert 'the 1 of 2 classes that have objects' in logged[0]


def test_no_detections_at_all_give_zero():
    metrics = evaluate([sample([(0, A)]), sample([(1, A)])])
    assert metrics == {'pascal_voc/mAP': 0, 'pascal_voc/mAP_area': 0}


def test_no_objects_at_all_give_zero_and_say_so(logged):
    metrics = evaluate([sample(detections=[(0, A, 0.9)])])
    assert metrics == {'pascal_voc/mAP': 0, 'pascal_voc/mAP_area': 0}
    assert 'none has objects' in logged[0]


def test_an_empty_test_set_is_refused():
    with pytest.raises(UserInputError, match='nothing to evaluate'):
        evaluate([])


def test_the_table_is_written_as_json_and_markdown(tmp_path):
    path = tmp_path / 'new' / 'classes.json'
    images = [sample([(0, A), (0, B)], [(0, A, 0.9), (1, B, 0.5)])]
    metrics = evaluate(images, PascalVOCMetric(out_file=str(path)))
    written = json.loads(path.read_text())
    assert written['mAP'] == metrics['pascal_voc/mAP']
    assert written['mAP_area'] == metrics['pascal_voc/mAP_area']
    assert written['images'] == 1
    cat, dog = written['classes']
    assert (cat['name'], cat['objects'], cat['recall']) == ('cat', 2, 0.5)
    assert cat['ap_11point'] == pytest.approx(6 / 11)
    assert cat['ap_area'] == pytest.approx(0.5)
    assert (dog['detections'], dog['ap_area']) == (1, None)
    assert '| cat ' in path.with_suffix('.md').read_text()


@pytest.mark.parametrize('iou_thr', [0, -1, 1.1, 50])
def test_an_iou_out_of_range_is_refused(iou_thr):
    with pytest.raises(UserInputError, match='iou_thr'):
        PascalVOCMetric(iou_thr=iou_thr)


def test_another_suffix_of_out_file_is_refused():
    with pytest.raises(UserInputError, match=r'ends in \.json'):
        PascalVOCMetric(out_file='table.csv')


def test_is_found_from_the_scope_of_mmdet():
    metric = MMDET_METRICS.build(dict(type='sb_mm.PascalVOCMetric'))
    assert isinstance(metric, PascalVOCMetric)
