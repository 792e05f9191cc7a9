"""Every public name resolves from the hosts' registries by itself."""

import subprocess
import sys
from pathlib import Path

import pytest

import sb_mm

ROOT = Path(__file__).parents[2]
DETECTION = {'SSDLiteHead', 'SSDLitePriorGenerator'}
# As whoever has one host alone would start, in a process of his own.
SCRIPT = """
import sys
sys.path.insert(0, {root!r})
sys.modules.update(dict.fromkeys({absent!r}))
exec(open({root!r} + '/sb_mm_ops.pth').read())  # as Python does at its start
from {host}.registry import DATASETS, HOOKS, METRICS, MODELS, TASK_UTILS
assert 'sb_mm' not in sys.modules
found = lambda n: MODELS.get('sb_mm.' + n) or TASK_UTILS.get('sb_mm.' + n)
print([n for n in {names!r} if not found(n)])
assert HOOKS.get('sb_mm.AttentionStatsHook')
for registry, name in (
    (DATASETS, 'VOCDevkitDataset'), (METRICS, 'PascalVOCMetric')
):
    assert bool(registry.get('sb_mm.' + name)) == ('mmdet' not in {absent!r})
    assert registry.get('sb_mm.Misspelt') is None
"""


@pytest.mark.parametrize(
    ('host', 'absent', 'missing'),
    [('mmdet', ['mmpretrain'], []), ('mmpretrain', ['mmdet'], DETECTION)],
)
def test_public_names_resolve_without_importing_sb_mm(
    host, absent, missing, tmp_path
):
    pytest.importorskip(host)
    names = [n for n in sb_mm.__all__ if n != '__version__']
    code = SCRIPT.format(root=str(ROOT), host=host, names=names, absent=absent)
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert str(sorted(missing)) in done.stdout.splitlines(), done.stderr
    assert done.returncode == 0, done.stderr


def test_no_public_name_is_one_of_the_hosts():
    """Under a host's scope its own class would silently be built."""
    for host in ('mmdet', 'mmpretrain'):
        registry = pytest.importorskip(f'{host}.registry').MODELS
        pytest.importorskip(f'{host}.models')
        taken = set(registry.module_dict)
        assert not taken & set(sb_mm.__all__), host
