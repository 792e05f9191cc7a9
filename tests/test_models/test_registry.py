"""Every public name resolves from the hosts' registries by itself."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMON = [
    'AttentionConvModule',
    'AttentionMobileNetV2',
    'DyConvMobileNetV2',
    'DynamicConv2d',
    'SBMobileNetV2',
    'SEMobileNetV2',
    'SSDLiteNeck',
    'ShiftBalance',
    'SqueezeExcite',
]
PUBLIC = [*COMMON, 'SSDLiteHead']

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
exec(open({root!r} + '/sb_mm_ops.pth').read())  # as Python does at its start
from {host}.registry import DATASETS, HOOKS, METRICS, MODELS, TASK_UTILS
assert 'sb_mm' not in sys.modules
priors = TASK_UTILS.get('sb_mm.SSDLitePriorGenerator')
missing = [n for n in {names!r} if MODELS.get('sb_mm.' + n) is None]
print('missing:', missing + ([] if priors else ['SSDLitePriorGenerator']))
assert DATASETS.get('sb_mm.VOCDevkitDataset')
assert METRICS.get('sb_mm.PascalVOCMetric')
assert HOOKS.get('sb_mm.AttentionStatsHook')
import sb_mm
assert all(hasattr(sb_mm, n) for n in {names!r})
"""


@pytest.mark.parametrize('host', ['mmdet', 'mmpretrain'])
def test_public_names_resolve_without_importing_sb_mm(host, tmp_path):
    pytest.importorskip('mmdet')
    pytest.importorskip(host)
    code = SCRIPT.format(root=str(ROOT), host=host, names=PUBLIC)
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert 'missing: []' in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


def test_without_mmdet_the_backbones_still_resolve(tmp_path):
    """Whoever classifies only has no mmdet."""
    code = (
        'import sys\n'
        "sys.modules['mmdet'] = None\n"
        f'sys.path.insert(0, {str(ROOT)!r})\n'
        'from mmengine.registry import MODELS\n'
        f'print([n for n in {COMMON!r} if not MODELS.get("sb_mm." + n)])\n'
        "assert MODELS.get('sb_mm.SSDLiteHead') is None\n"
        'from mmengine.registry import METRICS, TASK_UTILS, TRANSFORMS\n'
        'for registry in (METRICS, TASK_UTILS, TRANSFORMS):\n'
        "    assert registry.get('sb_mm.Misspelt') is None\n"
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith('[]'), done.stderr
    assert done.returncode == 0, done.stderr


def test_a_layer_is_imported_without_a_host(tmp_path):
    code = (
        f'import sys\nsys.path.insert(0, {str(ROOT)!r})\n'
        'from sb_mm import ShiftBalance\n'
        "print({'mmdet', 'mmpretrain', 'sb_mm'} & set(sys.modules))\n"
    )
    command = [sys.executable, '-c', code]
    printed = subprocess.check_output(command, cwd=tmp_path, text=True)
    assert printed == "{'sb_mm'}\n"


def test_no_public_name_is_one_of_the_hosts():
    """Under a host's scope its own class would silently be built."""
    for host in ('mmdet', 'mmpretrain'):
        registry = pytest.importorskip(f'{host}.registry').MODELS
        pytest.importorskip(f'{host}.models')
        taken = set(registry.module_dict)
        assert not taken & set(PUBLIC), host
