"""Networks. The detector's parts need mmdet, the others do not."""

from importlib.util import find_spec

from .backbones import *  # noqa: F403
from .data_preprocessors import *  # noqa: F403
from .layers import *  # noqa: F403
from .necks import *  # noqa: F403

if find_spec('mmdet') is not None:
    from .dense_heads import *  # noqa: F403
    from .task_modules import *  # noqa: F403
