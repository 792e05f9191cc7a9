"""Children of MMEngine's registries under the scope ``sb_mm``.

``type='sb_mm.Name'`` resolves from any other scope (mmdet, mmpretrain, ...)
because MMEngine imports ``<scope>.registry`` for an unknown scope and then the
``locations`` given here on the first look-up.
"""

from importlib.util import find_spec

from mmengine import registry as root
from mmengine.registry import Registry


def _child(parent: Registry, *modules: str, detection: str = '') -> Registry:
    """Return a registry of what modules of sb_mm define.

    That of ``detection`` is left out for whoever classifies without mmdet.
    """
    if detection and find_spec('mmdet'):
        modules = (*modules, detection)
    locations = [f'sb_mm.{module}' for module in modules]
    return Registry(
        parent.name, parent=parent, scope='sb_mm', locations=locations
    )


MODELS = _child(
    root.MODELS,
    'models.layers',
    'models.backbones',
    'models.necks',
    'models.data_preprocessors',
    detection='models.dense_heads',
)
TASK_UTILS = _child(root.TASK_UTILS, detection='models.task_modules')
DATASETS = _child(
    root.DATASETS, 'datasets.indexed_images', detection='datasets.voc'
)
FUNCTIONS = _child(root.FUNCTIONS, 'datasets.indexed_images')
TRANSFORMS = _child(root.TRANSFORMS, detection='datasets.transforms')
METRICS = _child(root.METRICS, detection='evaluation.voc_metric')
HOOKS = _child(
    root.HOOKS,
    'engine.hooks',
    'paper.job_hook',
    detection='engine.hooks.drawing',
)
