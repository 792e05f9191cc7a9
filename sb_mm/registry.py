"""Children of MMEngine's registries under the scope ``sb_mm``.

``type='sb_mm.Name'`` resolves from any other scope (mmdet, mmpretrain, ...)
because MMEngine imports ``<scope>.registry`` for an unknown scope and then the
``locations`` given here on the first look-up.
"""

from importlib.util import find_spec

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

# Whoever classifies only has no mmdet.
_HAS_MMDET = find_spec('mmdet') is not None
_NEED_MMDET = ['sb_mm.datasets.voc_devkit'] if _HAS_MMDET else []

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
    locations=[
        'sb_mm.datasets.packed_cifar10',
        'sb_mm.datasets.indexed_images',
        *_NEED_MMDET,
    ],
)
FUNCTIONS = Registry(
    'function',
    parent=MMENGINE_FUNCTIONS,
    scope='sb_mm',
    locations=['sb_mm.datasets.indexed_images'],
)
LOOPS = Registry(
    'loop',
    parent=MMENGINE_LOOPS,
    scope='sb_mm',
    locations=['sb_mm.engine.loops'],
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='sb_mm',
    locations=['sb_mm.datasets.transforms'] if _HAS_MMDET else [],
)
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='sb_mm',
    locations=['sb_mm.evaluation.voc_metric'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='sb_mm',
    locations=['sb_mm.engine.hooks'],
)
