"""The package's metadata and its pins."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
HOSTS = {'torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmpretrain'}
# What the hosts require themselves, so that it is there with either family.
OF_HOSTS = {'cv2', 'rich', 'terminaltables', 'triton', 'yaml'}
DISTRIBUTION = {'PIL': 'pillow'}


@pytest.fixture(scope='module')
def metadata(tmp_path_factory):
    """The metadata that setuptools makes of a clone where torch is absent."""
    clone = tmp_path_factory.mktemp('clone')
    shutil.copy(ROOT / 'setup.py', clone)
    shutil.copytree(ROOT / 'requirements', clone / 'requirements')
    shutil.copytree(ROOT / 'sb_mm', clone / 'sb_mm')
    (clone / 'tests').mkdir()
    (clone / 'tests' / '__init__.py').touch()
    (clone / 'README.md').write_text('# sb_mm\n')
    (clone / 'torch.py').write_text('raise ImportError("torch is absent")\n')
    command = [sys.executable, 'setup.py', '-q', 'egg_info']
    subprocess.run(command, cwd=clone, check=True, capture_output=True)
    return importlib.metadata.PathDistribution(clone / 'sb_mm.egg-info')


def lines_of(name):
    text = (ROOT / 'requirements' / f'{name}.txt').read_text()
    return [line.split('#')[0].strip() for line in text.splitlines()]


def version():
    text = (ROOT / 'sb_mm' / 'version.py').read_text()
    return re.search(r"__version__ = '(.+)'", text)[1]


def test_metadata_is_made_without_torch(metadata):
    assert metadata.version == version()
    assert metadata.metadata['Requires-Python'] == '>=3.10'
    assert metadata.read_text('top_level.txt').split() == ['sb_mm']


def test_nothing_of_an_existing_environment_is_replaced(metadata):
    needs = [line for line in metadata.requires if 'extra ==' not in line]
    assert sorted(needs) == lines_of('runtime')
    # A bare name is satisfied by any version that is there already.
    assert all(re.fullmatch(r'[a-z]+', need) for need in needs)
    assert not HOSTS & set(needs)


@pytest.mark.parametrize(
    'extra', ['onedl', 'openmmlab', 'dev', 'export', 'bench', 'cluster']
)
def test_an_extra_pins_what_its_requirements_file_pins(metadata, extra):
    def named(lines):
        found = map(Requirement, filter(None, lines))
        return {f'{r.name}{r.specifier}' for r in found}

    marker = f'extra == "{extra}"'
    pins = named(x for x in metadata.requires if x.endswith(marker))
    # Whichever torch fits the machine's driver: one that is there stays.
    pins -= {'torch', 'torchvision'}
    assert pins == named(lines_of(extra))
    assert all('==' in pin for pin in pins)


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split('.')[0]


def test_every_import_of_sb_mm_is_of_the_hosts_or_required():
    known = HOSTS | OF_HOSTS | sys.stdlib_module_names | {'sb_mm'}
    foreign = {
        (path.parent.name, DISTRIBUTION.get(name, name))
        for path in (ROOT / 'sb_mm').rglob('*.py')
        for name in imported_modules(path)
        if name not in known
    }
    assert foreign
    for extra, folder in (('export', 'deploy'), ('cluster', 'paper')):
        optional = {pin.split('==')[0] for pin in lines_of(extra)}
        of_extra = {(f, name) for f, name in foreign if name in optional}
        assert {f for f, _ in of_extra} == {folder}
        foreign -= of_extra
    assert {name for _, name in foreign} <= set(lines_of('runtime'))
