"""What pip makes of the repository, used from an empty folder."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sb_mm import __version__
from sb_mm.datasets.synthetic_voc import make_synthetic_voc

build = pytest.importorskip('build')
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
HOSTS = {'torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmpretrain'}
# What the hosts require themselves, so that it is there with either family.
OF_HOSTS = {'cv2', 'rich', 'terminaltables', 'triton', 'yaml'}
DISTRIBUTION = {'PIL': 'pillow'}

# mmdet's own training and inference, with a config of the wheel, where there
# is no mmpretrain and nothing has imported sb_mm before.
DETECTION = """
import runpy, sys
sys.modules['mmpretrain'] = None
import mmdet
from mmdet.apis import DetInferencer
config, data, image = sys.argv[1:]
loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
sys.argv[:] = [
    'train.py', config, '--cfg-options', 'train_cfg.max_epochs=1',
    *(f'{loader}.dataset.data_root={data}' for loader in loaders),
    *(f'{loader}.num_workers=0' for loader in loaders),
    *(f'{loader}.persistent_workers=False' for loader in loaders),
]
runpy.run_path(f'{mmdet.__path__[0]}/.mim/tools/train.py', None, '__main__')
predictions = DetInferencer(config, device='cpu')(image)['predictions']
assert set(predictions[0]) == {'bboxes', 'labels', 'scores'}, predictions
"""

# mmpretrain's model of a config of the wheel, where there is no mmdet.
CLASSIFICATION = """
import sys
sys.modules['mmdet'] = None
import torch
from mmpretrain import get_model
from mmpretrain.registry import METRICS
images = torch.zeros(2, 3, 32, 32)
(scores,) = get_model(sys.argv[1]).eval()(images),
assert scores.shape == (2, 10), scores
assert METRICS.get('sb_mm.Misspelt') is None
"""


def run(*command, cwd, path=''):
    """Run a command in a folder, with no path to the clone."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Venv:
    """A virtual environment without pip, which another one installs into."""

    def __init__(self, folder):
        self.bin = folder / 'bin'
        command = ('-m', 'venv', '--without-pip', folder)
        run(sys.executable, *command, cwd=folder.parent)
        (self.packages,) = folder.glob('lib/python*/site-packages')
        self.configs = self.packages / 'sb_mm/.mim/configs'

    def pip(self, *arguments):
        python = ('--python', self.bin / 'python')
        run(sys.executable, '-m', 'pip', *python, *arguments, cwd=self.bin)

    def own(self):
        return {path.name for path in self.packages.glob('*sb_mm*')}


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    """The folder of an sdist and of the wheel that is made of it.

    They are made as where there is no torch.
    """
    folder = tmp_path_factory.mktemp('dist')
    absent = tmp_path_factory.mktemp('absent')
    (absent / 'torch.py').write_text('raise ImportError("torch is absent")')
    command = (sys.executable, '-m', 'build', '-n', ROOT, '-o', folder)
    run(*command, cwd=folder, path=absent)
    return folder


@pytest.fixture(scope='module')
def metadata(dist):
    """The wheel's metadata."""
    (wheel,) = dist.glob('*.whl')
    folders = [f for f in zipfile.Path(wheel).iterdir() if '-info' in f.name]
    return PathDistribution(folders[0])


@pytest.fixture(scope='module')
def venv(dist, tmp_path_factory):
    """An environment with the wheel and the packages of the running one."""
    venv = Venv(tmp_path_factory.mktemp('environment') / 'venv')
    venv.pip('install', '--no-deps', '--no-index', *dist.glob('*.whl'))
    # Only now, or pip would see sb_mm where the running one has it.
    paths = [path for path in sys.path if path.endswith('-packages')]
    (venv.packages / 'hosts.pth').write_text('\n'.join(paths))
    return venv


def files(folder):
    """The names of all files in a folder of the clone."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob('*')
        if path.is_file() and path.suffix != '.pyc'
    }


def test_the_wheel_holds_the_product(dist):
    (wheel,) = dist.glob('*.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    product = {'model-index.yml', *files('configs'), *files('tools')}
    assert {name for name in names if '.dist-info/' not in name} == {
        'sb_mm_ops.pth',
        *files('sb_mm'),
        *(f'sb_mm/.mim/{name}' for name in product),
    }


def named(lines):
    found = map(Requirement, filter(None, lines))
    return {f'{x.name}{x.specifier}' for x in found}


def required(name):
    """What a file of requirements/ asks for."""
    text = (ROOT / f'requirements/{name}.txt').read_text()
    return named(line.split('#')[0].strip() for line in text.splitlines())


def test_nothing_of_an_existing_environment_is_replaced(metadata):
    assert metadata.version == __version__
    needs = {x for x in metadata.requires if 'extra ==' not in x}
    assert needs == required('runtime')
    # A bare name is satisfied by any version that is there already.
    assert all(re.fullmatch('[a-z]+', need) for need in needs)
    assert not HOSTS & needs


@pytest.mark.parametrize(
    'extra', ['onedl', 'openmmlab', 'dev', 'export', 'bench', 'cluster']
)
def test_an_extra_pins_what_its_requirements_file_pins(metadata, extra):
    marker = f'extra == "{extra}"'
    pins = named(x for x in metadata.requires if x.endswith(marker))
    # Whichever torch fits the machine's driver: one that is there stays.
    pins -= {'torch', 'torchvision'}
    assert pins == required(extra)
    assert all('==' in pin for pin in pins)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split('.')[0]


def test_every_import_of_sb_mm_is_of_the_hosts_or_required():
    optional = {'deploy': 'export', 'paper': 'cluster'}
    for path in (ROOT / 'sb_mm').rglob('*.py'):
        files = {'runtime', optional.get(path.parent.name, 'runtime')}
        known = {x.split('==')[0] for f in files for x in required(f)}
        known |= HOSTS | OF_HOSTS | sys.stdlib_module_names | {'sb_mm'}
        foreign = {DISTRIBUTION.get(x, x) for x in imported(path)} - known
        assert not foreign, path


def test_an_editable_installation_has_the_finder_until_it_goes(dist, tmp_path):
    (sdist,) = dist.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter='data')
    clone = tmp_path / sdist.name.removesuffix('.tar.gz')
    wheel = build.ProjectBuilder(clone).build('editable', tmp_path)
    venv = Venv(tmp_path / 'venv')
    venv.pip('install', '--no-deps', '--no-index', wheel)
    assert 'sb_mm_ops.pth' in venv.own()
    assert str(clone) in run(venv.bin / 'sb-mm', cwd=tmp_path)
    venv.pip('uninstall', '--yes', 'sb_mm')
    assert not venv.own()


def test_mmdet_alone_trains_and_predicts(venv, tmp_path):
    pytest.importorskip('mmdet')
    make_synthetic_voc(tmp_path / 'data', num_train=8, num_test=1)
    data = tmp_path / 'data/VOC2007'
    image = next(data.glob('JPEGImages/*'))
    config = venv.configs / 'voc/ssd_sb_synthetic.py'
    command = (venv.bin / 'python', '-c', DETECTION, config, data, image)
    run(*command, cwd=tmp_path)
    assert list(tmp_path.glob('work_dirs/ssd_sb_synthetic/epoch_1.pth'))


def test_mmpretrain_alone_has_the_classifiers(venv, tmp_path):
    pytest.importorskip('mmpretrain')
    name = 'mobilenetv2-sb-w0.35_1xb128-200e_cifar10.py'
    config = venv.configs / 'cifar10' / name
    command = (venv.bin / 'python', '-c', CLASSIFICATION, config)
    run(*command, cwd=tmp_path)
