"""Whether sb_mm's augmentation of SSD draws what mmdet's draws."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from .measurement import Measurement, Settings
from .networks import installed

DRAWS = 10_000
P_VALUE = 'p'  # the unit of the values
# Its draws and tests are those of the tests, which run without this.
TESTS = Path('tests/test_datasets/test_transforms')
_FILE = (
    Path(__file__).resolve().parents[1] / TESTS / 'test_ssd_augmentation.py'
)


def distribution(settings: Settings) -> Iterator[Measurement]:
    """Measure how likely the draws of both are of one distribution.

    A value is the p of a two-sample test of one statistic of the output:
    Kolmogorov and Smirnov's, or, if it is discrete, chi-square's.
    """
    if not all(installed(p, settings.notes) for p in ('scipy', 'pytest')):
        return
    tests = _load_tests()
    draws = 200 if settings.tiny else DRAWS
    np.random.seed(1)
    shapes, boxes = tests.scenes(draws, seed=101)
    stock = tests.statistics(tests.draws_of_stock(shapes, boxes))
    ours = tests.statistics(tests.draws_of_ours(shapes, boxes))
    case, threads = dict(draws=draws), torch.get_num_threads()
    for name, p in tests.p_values(ours, stock).items():
        rounded = float(f'{p:.4g}')
        yield Measurement(case, name, P_VALUE, [rounded], threads)


def _load_tests() -> ModuleType:
    spec = importlib.util.spec_from_file_location('test_of_draws', _FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
