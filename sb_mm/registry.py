"""Children of MMEngine's registries under the scope ``sb_mm``.

``type='sb_mm.Name'`` resolves from any other scope (mmdet, mmpretrain, ...)
because MMEngine imports ``<scope>.registry`` for an unknown scope and then the
``locations`` given here on the first look-up.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='sb_mm',
    locations=['sb_mm.models'],
)
TASK_UTILS = Registry(
    'task util',
    parent=MMENGINE_TASK_UTILS,
    scope='sb_mm',
    locations=['sb_mm.models'],
)
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='sb_mm',
    locations=['sb_mm.datasets.voc_devkit'],
)
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='sb_mm',
    locations=['sb_mm.evaluation.voc_metric'],
)
