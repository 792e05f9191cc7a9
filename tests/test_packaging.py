"""The package's metadata, its pins, the Makefile and the set-up."""

import ast
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
# At the end: a tool named like a standard module must not hide it.
sys.path.append(str(ROOT / 'tools'))

import setup_env  # noqa: E402
from environment import SetupError, checks, commands, plan, wheels  # noqa: E402
from environment import setup as steps  # noqa: E402
from environment.state import NAME, State  # noqa: E402

HOSTS = {'torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmpretrain'}
# What the hosts require themselves, so that it is there with either family.
OF_HOSTS = {'cv2', 'rich', 'terminaltables', 'yaml'}
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


def test_only_sb_mm_is_installed(metadata):
    assert metadata.read_text('top_level.txt').split() == ['sb_mm']


def test_nothing_of_an_existing_environment_is_replaced(metadata):
    needs = [line for line in metadata.requires if 'extra ==' not in line]
    assert sorted(needs) == lines_of('runtime')
    # A bare name is satisfied by any version that is there already.
    assert all(re.fullmatch(r'[a-z]+', need) for need in needs)
    assert not HOSTS & set(needs)


@pytest.mark.parametrize(
    'extra',
    ['onedl', 'openmmlab', 'dev', 'export', 'bench', 'cluster'],
)
def test_an_extra_pins_what_its_requirements_file_pins(metadata, extra):
    pattern = rf'(.+); extra == "{extra}"'
    matches = (re.fullmatch(pattern, line) for line in metadata.requires)
    pins = [match[1].strip() for match in matches if match]
    assert sorted(pins) == sorted(lines_of(extra))
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
    for extra, folder in (('export', 'deploy'), ('cluster', 'reproduce')):
        optional = {pin.split('==')[0] for pin in lines_of(extra)}
        of_extra = {(f, name) for f, name in foreign if name in optional}
        assert {f for f, _ in of_extra} == {folder}
        foreign -= of_extra
    assert {name for _, name in foreign} <= set(lines_of('runtime'))


def test_citation_and_changelog_name_the_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == version()
    paper = citation['references'][0]
    assert paper['identifiers'][0]['value'] == 'arXiv:2103.13080'
    changelog = (ROOT / 'CHANGELOG.md').read_text()
    assert re.search(r'^## \[(.+?)\]', changelog, re.M)[1] == version()


def make(*arguments):
    # What the make that runs these tests was called with is not for this one.
    called_with = {'MAKEFLAGS', 'MAKEOVERRIDES', 'MFLAGS'}
    called_with |= {'FAMILY', 'PYTHON', 'ARGS'}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in called_with
    }
    command = ['make', '--no-print-directory', *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
class TestMakefile:
    @pytest.mark.parametrize(
        ('arguments', 'venv'),
        [([], '.venv'), (['FAMILY=openmmlab'], '.venv-openmmlab')],
    )
    def test_a_verb_sets_up_before_it_runs(self, arguments, venv):
        result = make('-n', 'test', 'ARGS=-k name', *arguments)
        set_up, run = result.stdout.splitlines()
        assert set_up.startswith('python3 tools/setup_env.py --family ')
        assert run == f'{venv}/bin/python -m pytest tests -k name'

    def test_the_demo_runs_in_the_environment(self):
        last = make('-n', 'demo').stdout.splitlines()[-1]
        assert last.split() == ['.venv/bin/python', 'tools/demo.py']

    def test_an_unknown_family_is_refused(self):
        result = make('env', 'FAMILY=mmlab')
        assert result.returncode == 2
        assert 'set it to onedl or openmmlab' in result.stderr

    def test_help_lists_every_verb(self):
        listed = re.findall(r'^make (\w+)', make('help').stdout, re.M)
        text = (ROOT / 'Makefile').read_text()
        assert listed == re.search(r'\.PHONY: (.+)', text)[1].split()

    def test_each_family_has_the_venv_of_the_set_up(self):
        text = (ROOT / 'Makefile').read_text()
        assert dict(re.findall(r'VENV_(\w+) := (.+)', text)) == plan.VENVS


class FakeRunner(commands.Runner):
    """Notes the commands; `wheel` makes a file as pip does, or fails."""

    def __init__(self, log, failing=''):
        super().__init__(log)
        self.failing = failing
        self.tasks = []
        self.commands = []

    def run(self, task, *command, env=None):
        self.tasks.append(task)
        self.commands.append([str(part) for part in command])
        if 'venv' in command:
            python = Path(command[-1]) / 'bin' / 'python'
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)
        if 'wheel' in command:
            folder = command[command.index('--wheel-dir') + 1]
            folder.mkdir()
            zipfile.ZipFile(folder / 'mmcv.whl', 'w').close()
        if self.failing and self.failing in task:
            raise SetupError(f'{task} failed.')


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The plan of a clone with the real pins and an empty wheel cache."""
    root = tmp_path / 'a clone'
    shutil.copytree(ROOT / 'requirements', root / 'requirements')
    shutil.copy(ROOT / 'setup.py', root)
    monkeypatch.setenv('SB_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(wheels, 'find_variant', lambda plan: 'cpu')
    monkeypatch.setattr(wheels, 'check_compiler', lambda: None)
    monkeypatch.setattr(wheels, 'check_room', lambda *_: None)
    monkeypatch.setattr(checks, 'check_room', lambda *_: None)
    return plan.Plan('onedl', root)


def set_up(clone, failing=''):
    """Runs the set-up as one call does, and returns what it ran."""
    setup = steps.Setup(clone, State.load(clone.venv), lock=0)
    setup.runner = FakeRunner(clone.log, failing)
    setup.run()
    return setup.runner.tasks


def test_a_first_call_does_every_step_and_a_second_none(clone):
    tasks = ' '.join(set_up(clone))
    for part in ('virtual', 'torch', 'onedl-mmcv', 'sb_mm', 'import check'):
        assert part in tasks
    assert set_up(clone) == []


def test_torch_is_held_when_other_packages_are_installed(clone):
    setup = steps.Setup(clone, State.load(clone.venv), lock=0)
    setup.runner = FakeRunner(clone.log)
    setup.run()
    torch = str(clone.requirements('torch'))
    for name in (
        'onedl',
        'runtime',
        'dev',
        'export',
        'bench',
        'cluster',
    ):
        needs = str(clone.requirements(name))
        command = next(c for c in setup.runner.commands if needs in c)
        assert command[command.index('-c') + 1] == torch


def test_a_changed_setup_py_repeats_only_the_cheap_steps(clone):
    set_up(clone)
    with (clone.root / 'setup.py').open('a') as file:
        file.write('# changed\n')
    assert set_up(clone) == [
        'Installing sb_mm',
        'Installing the tools',
        'The import check',
    ]


def test_a_changed_pin_makes_the_environment_anew(clone):
    set_up(clone)
    (clone.venv / 'old').touch()
    pins = clone.requirements('onedl')
    pins.write_text(pins.read_text().replace('0.10.12', '0.10.11'))
    assert 'Making the virtual environment' in set_up(clone)
    assert not list(clone.root.rglob('old*'))


def test_a_failed_step_is_repeated_and_the_finished_ones_are_kept(clone):
    with pytest.raises(SetupError, match='Installing the OpenMMLab'):
        set_up(clone, failing='OpenMMLab')
    assert set_up(clone)[0] == 'Installing the OpenMMLab packages'


def test_an_install_that_was_cut_off_starts_anew(clone):
    set_up(clone)
    state = State.load(clone.venv)
    with pytest.raises(KeyboardInterrupt), state.step('torch', 'key', True):
        raise KeyboardInterrupt
    assert 'Installing torch' in set_up(clone)


def test_a_build_that_was_cut_off_keeps_the_environment(clone, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(wheels, 'publish', interrupt)
        with pytest.raises(KeyboardInterrupt):
            set_up(clone)
    shelf = clone.wheel_folder('cpu').parent
    assert list(shelf.iterdir()) == []
    assert set_up(clone)[0] == 'Building onedl-mmcv'


def test_a_cached_wheel_is_not_built_again(clone):
    set_up(clone)
    shutil.rmtree(clone.venv)
    tasks = set_up(clone)
    assert 'Installing torch' in tasks
    assert 'Building onedl-mmcv' not in tasks


def test_a_wheel_that_left_the_cache_is_announced(clone, capsys):
    with pytest.raises(SetupError):
        set_up(clone, failing='OpenMMLab')
    shutil.rmtree(clone.wheel_folder('cpu'))
    capsys.readouterr()
    set_up(clone)
    assert "[3/6] building onedl-mmcv==2.3.6's" in capsys.readouterr().out


def test_opencv_that_does_not_load_is_replaced(clone, monkeypatch):
    monkeypatch.setattr(
        steps.subprocess, 'check_output', lambda *_, **__: '4.12.0.88\n'
    )
    tasks = set_up(clone, failing='Importing OpenCV')
    assert 'Installing opencv-python-headless==4.12.0.88' in tasks


def test_the_first_of_two_simultaneous_builds_is_kept(tmp_path):
    for name in ('first', 'second'):
        (tmp_path / name).mkdir()
        (tmp_path / name / f'{name}.whl').touch()
        wheels.publish(tmp_path / name, tmp_path / 'cache')
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == [
        'first.whl'
    ]


def test_only_the_old_remains_of_a_build_are_deleted(tmp_path):
    for name in ('old', 'new'):
        (tmp_path / f'.partial-{name}').mkdir()
    yesterday = time.time() - 25 * 3600
    os.utime(tmp_path / '.partial-old', (yesterday, yesterday))
    wheels.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['.partial-new']


def test_a_wheel_is_cached_by_all_that_it_depends_on(clone):
    name = clone.wheel_folder('cpu').name
    torch, python, *mmcv = name.split('-')[:5]
    assert torch == f'torch{clone.pins("torch")["torch"]}'
    assert python == 'cp{}{}'.format(*sys.version_info[:2])
    assert '-'.join(mmcv) == 'onedl-mmcv-' + clone.pins('onedl')['onedl-mmcv']
    upstream = plan.Plan('openmmlab', clone.root).wheel_folder('cpu').name
    assert len({name, clone.wheel_folder('cuda').name, upstream}) == 3


def test_an_environment_of_the_user_is_left_alone(clone):
    clone.venv.mkdir(parents=True)
    (clone.venv / 'theirs').touch()
    with pytest.raises(SetupError, match='was not made by `make env`'):
        set_up(clone)
    assert [path.name for path in clone.venv.iterdir()] == ['theirs']


def test_a_half_written_record_counts_as_unfinished(tmp_path):
    (tmp_path / NAME).write_text('{"finished": {"torch"')
    assert State.load(tmp_path).finished == {}


@pytest.mark.parametrize(
    ('found', 'expected'),
    [
        ((2, 7, 18), 'too old'),
        ((3, 9, 18), 'too old'),
        ((3, 10, 0), ''),
        ((3, 12, 9), ''),
        ((3, 13, 0), 'too new'),
    ],
)
def test_a_python_that_does_not_fit_is_named(found, expected):
    problem = setup_env.python_problem(found)
    assert expected in problem
    assert bool(problem) == bool(expected)


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(SetupError, match='1e.*GiB of disk are needed'):
        checks.check_room(tmp_path, 1e9, 'make room')


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(SetupError, match='No C.. compiler .no-such-compiler'):
        checks.check_compiler()


def test_a_missing_venv_module_is_named(clone, monkeypatch):
    monkeypatch.setattr(checks.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(SetupError, match='has no venv module'):
        checks.check_fresh(clone)


def test_an_unwritable_cache_is_named(clone, monkeypatch):
    (clone.root / 'file').touch()
    monkeypatch.setenv('SB_MM_CACHE', str(clone.root / 'file'))
    with pytest.raises(SetupError, match='set SB_MM_CACHE'):
        set_up(clone)


@pytest.mark.parametrize(
    ('output', 'expected'),
    [
        ('NewConnectionError: refused\nERROR: No match', 'check the network'),
        ('OSError: [Errno 28] No space left on device', 'disk is full'),
        ('Error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('x\nERROR: Failed to build\ny', 'with "ERROR: Failed to build"'),
        ('', 'failed; the log'),
    ],
)
def test_a_failed_command_gives_one_sentence(output, expected, tmp_path):
    code = f'import sys; print({output!r}); sys.exit(1)'
    runner = commands.Runner(tmp_path / 'log')
    with pytest.raises(SetupError) as caught:
        runner.run('Building', sys.executable, '-c', code)
    message = str(caught.value)
    assert message.startswith('Building failed')
    assert expected in message
    assert '\n' not in message
    assert str(tmp_path / 'log') in message


def test_a_long_command_gives_signs_of_life(tmp_path, capsys):
    runner = commands.Runner(tmp_path / 'log', every=0.1)
    runner.run('Sleeping', sys.executable, '-c', 'import time; time.sleep(1)')
    assert '... 0 s' in capsys.readouterr().out


def test_ending_the_set_up_ends_its_commands(tmp_path):
    code = f"""
import sys
sys.path.append({str(ROOT / 'tools')!r})
from pathlib import Path
from environment.commands import Runner
from environment.setup import end_by_exception
end_by_exception()
child = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'
Runner(Path('log')).run('Sleeping', sys.executable, '-c', child)
"""
    process = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path)
    child = wait_for_pid(tmp_path / 'log')
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def wait_for_pid(log):
    for _ in range(100):
        text = log.read_text() if log.exists() else ''
        found = re.findall(r'^(\d+)$', text, re.M)
        if found:
            return int(found[0])
        time.sleep(0.1)
    pytest.fail('the command did not start')
