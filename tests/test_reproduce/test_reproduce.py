"""Trainings from the command to the record: resumed, failed, on a cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sb_mm.paper.cells import find_cell
from sb_mm.paper.records import read_results
from sb_mm.paper.runs import _NEEDED
from sb_mm.reproduce import child, commands
from sb_mm.reproduce.cluster import Share, run_on_ray
from sb_mm.reproduce.commands import Engine, Selection
from sb_mm.reproduce.execute import Processes, RunFailedError, execute
from sb_mm.reproduce.recipe import Recipe
from sb_mm.reproduce.runs import Run

REPOSITORY = Path(__file__).resolve().parents[2]
CELLS = ('t6-x0.35-static', 't6-x0.35-sb')
BATCH = {'train_dataloader.batch_size': 8}
FOUND = [
    'train images=16',
    'val images=10',
    'batch of all processes=8',
]


@pytest.fixture
def make_run(cifar, tmp_path):
    def make(cell=CELLS[0], epochs=1, seed=0, **options):
        recipe = Recipe(epochs, {**BATCH, **options}, cifar)
        return Run(find_cell(cell), seed, recipe, tmp_path / 'out')

    return make


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')


def _starts(run):
    return sorted(p.parent.name for p in run.work_dir.glob('*/vis_data'))


@pytest.mark.slow
def test_a_table_is_trained_once_and_recorded(cifar, tmp_path, capsys):
    recipe = Recipe(1, BATCH, cifar)
    selection = Selection(cells=CELLS)
    runs = commands.plan(selection, recipe, tmp_path / 'out')
    results = tmp_path / 'results'
    assert commands.reproduce(runs, results, Engine(jobs=2)) == 0
    records = {r.cell: r for r in read_results(results).records}
    assert sorted(records) == sorted(CELLS)
    sb = records['t6-x0.35-sb']
    assert sb.deviations == ['train_cfg.max_epochs=1', *FOUND]
    assert (sb.seed, sb.epochs, sb.parameters) == (0, 1, 1_440_510)
    assert sb.history == [[1, sb.final]]
    printed = capsys.readouterr().out
    assert 'runs: 2, recorded already: 0, to do: 2' in printed
    assert 'results: 2, failed: 0' in printed
    # The same command again: nothing to do, nothing changed.
    lines = (results / 'table6.jsonl').read_text()
    starts = [_starts(run) for run in runs]
    assert commands.reproduce(runs, results, Engine(jobs=2)) == 0
    printed = capsys.readouterr()
    assert 'runs: 2, recorded already: 2, to do: 0' in printed.out
    assert printed.err.count('recorded with other data (train_cfg.max_') == 2
    assert (results / 'table6.jsonl').read_text() == lines
    assert [_starts(run) for run in runs] == starts
    commands.show(runs, results)
    assert capsys.readouterr().out.count('recorded') == 2


@pytest.fixture
def _interruptible():
    """What a shell has started in the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures('_interruptible')
def test_an_interrupted_reproduction_goes_on(cifar, tmp_path, make_run):
    epochs = 30
    run = make_run(epochs=epochs)
    command = [
        sys.executable, 'tools/reproduce.py', '--cells', CELLS[0],
        '--epochs', epochs, '--data-root', cifar, '--jobs', 1,
        '--out', tmp_path / 'out', '--results', tmp_path / 'results',
        '--cfg-options', 'train_dataloader.batch_size=8',
    ]  # fmt: skip
    command = [str(word) for word in command]
    options = dict(cwd=REPOSITORY, stdout=-1, stderr=-1, text=True)
    process = subprocess.Popen(command, **options)
    deadline = time.monotonic() + 240
    while not list(run.work_dir.glob('epoch_*.pth')):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.splitlines()[-1] == 'interrupted'
    assert 'the same command again goes on' in printed
    # Whoever trained has ended with it.
    with child.FileLock(run.work_dir / 'lock', timeout=60):
        assert run.result() is None
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    (record,) = read_results(tmp_path / 'results').records
    assert [epoch for epoch, _ in record.history] == list(range(1, epochs + 1))
    assert len(_starts(run)) == 2


def _forget_validation(run):
    """Cut the newest log before its last line, which is a validation."""
    folder = run.work_dir / _starts(run)[-1] / 'vis_data'
    log = folder / 'scalars.json'
    lines = log.read_text().splitlines()
    assert 'accuracy/top1' in lines.pop()
    log.write_text('\n'.join(lines) + '\n')


def _info(run):
    folder = run.work_dir / _starts(run)[-1] / 'vis_data'
    return json.loads((folder / 'run_info.json').read_text())


_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'),
]
_GRAPHS = dict(channels_last=True, compile='reduce-overhead')


@pytest.mark.slow
@pytest.mark.parametrize(
    'how',
    [
        dict(channels_last=True),
        pytest.param(_GRAPHS, marks=_GPU),
        pytest.param(dict(_GRAPHS, amp=True), marks=_GPU),
    ],
    ids=str,
)
def test_however_it_is_computed_a_run_goes_on(cifar, tmp_path, how):
    recipe = Recipe(2, BATCH, cifar, **how)
    run = Run(find_cell(CELLS[1]), 0, recipe, tmp_path / 'out')
    first = execute(run)
    assert [epoch for epoch, _ in first.history] == [1, 2]
    assert first.final is not None
    _forget_validation(run)
    (run.work_dir / 'epoch_2.pth').unlink()
    (run.work_dir / 'last_checkpoint').write_text(
        str(run.work_dir / 'epoch_1.pth')
    )
    second = execute(run)
    assert _info(run)['start_epoch'] == 1
    assert [epoch for epoch, _ in second.history] == [1, 2]
    assert second.execution['channels_last']
    assert second.execution['compile'] == how.get('compile')


@pytest.mark.slow
def test_a_resumed_run_is_the_uncut_one(make_run, one_thread):
    run = make_run(CELLS[1], epochs=2)
    first = execute(run)
    last = run.work_dir / 'epoch_2.pth'
    uncut = torch.load(last, weights_only=False)
    # Cut in the last validation: only that is done again.
    _forget_validation(run)
    assert run.result() is None
    second = execute(run)
    assert second.history == first.history
    assert _info(run)['start_epoch'] == 2
    # Cut in the last epoch, behind a validation that was cut too.
    for start in _starts(run)[1:]:
        shutil.rmtree(run.work_dir / start)
    log = run.work_dir / _starts(run)[0] / 'vis_data/scalars.json'
    lines = log.read_text().splitlines()
    kept = [x for x in lines if 'accuracy/top1' not in x]
    log.write_text('\n'.join(kept) + '\n')
    last.unlink()
    newest = str(run.work_dir / 'epoch_1.pth')
    (run.work_dir / 'last_checkpoint').write_text(newest)
    third = execute(run)
    assert _info(run)['start_epoch'] == 1
    assert third.history == first.history
    # With the same crops and flips, and all of the optimizer's state.
    resumed = torch.load(last, weights_only=False)
    for part in ('state_dict', 'optimizer'):
        torch.testing.assert_close(resumed[part], uncut[part], rtol=0, atol=0)


@pytest.mark.slow
def test_a_training_that_diverges_is_a_result(make_run, one_thread):
    run = make_run(epochs=3, **{'optim_wrapper.optimizer.lr': 1e30})
    record = execute(run)
    assert record.final is None
    assert record.diverged
    assert record.epochs == 3
    assert 'optim_wrapper.optimizer.lr=1e+30' in record.deviations
    # It is not tried again.
    starts = _starts(run)
    assert execute(run) == record
    assert _starts(run) == starts


@pytest.mark.slow
def test_a_failing_training_says_why(make_run, one_thread):
    run = make_run(**{'optim_wrapper.optimizer.momentum': -1.0})
    with pytest.raises(RunFailedError, match=r'omentum value.*train\.log'):
        execute(run)
    assert run.result() is None


def test_two_processes_do_not_train_in_one_folder(
    make_run, monkeypatch, capsys
):
    run = make_run()
    run.work_dir.mkdir(parents=True)
    monkeypatch.setattr(child, '_WAIT_SECONDS', 0)
    with child.FileLock(run.work_dir / 'lock'):
        assert child.main(run.work_dir) == child.BUSY
    assert 'another process trains in' in capsys.readouterr().err


def test_who_waited_for_another_training_looks_what_is_left(
    make_run, monkeypatch, make_record
):
    run = make_run()
    run.work_dir.mkdir(parents=True)
    monkeypatch.setattr(child, 'train', lambda _: pytest.fail('trained'))
    lock = child.FileLock(run.work_dir / 'lock', thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.5, lock.release)
    timer.start()
    assert child.main(run.work_dir) == child.WAITED
    timer.join()
    # The result of the other process is taken.
    record = make_record(CELLS[0])
    results = iter([None, record])
    monkeypatch.setattr(Run, 'result', lambda _: next(results))
    processes = Processes()
    monkeypatch.setattr(processes, 'run', lambda *_: child.WAITED)
    assert execute(run, processes=processes) is record


def test_checkpoints_of_other_settings_are_not_gone_on_with(make_run):
    run = make_run(epochs=3)
    folder = run.work_dir / '20260101_000000/vis_data'
    folder.mkdir(parents=True)
    data = [dict(types=['CIFAR10'], images=count) for count in (16, 10)]
    info = dict.fromkeys(_NEEDED)
    info.update(start_epoch=0, train=data[0], val=data[1], batch=8)
    (folder / 'run_info.json').write_text(json.dumps(info))
    changed = run.config()
    changed.optim_wrapper.optimizer.lr = 0.5
    changed.dump(folder / 'config.py')
    run.check_resume()  # nothing to go on with
    (run.work_dir / 'epoch_1.pth').touch()
    with pytest.raises(
        commands.UserInputError, match=r'optimizer\.lr=0\.5.*delete that'
    ):
        execute(run)
    host = Run(run.cell, 0, replace(run.recipe, on_device=False), run.root)
    host.config().dump(folder / 'config.py')
    run.check_resume()  # the other loader of the same images
    data[0]['images'] = 15
    (folder / 'run_info.json').write_text(json.dumps(info))
    with pytest.raises(commands.UserInputError, match='train images=15'):
        run.check_resume()


@pytest.mark.skipif(sys.platform != 'linux', reason='a call of Linux')
def test_a_training_ends_with_the_process_that_started_it(tmp_path):
    code = (
        'import os\n'
        'from sb_mm.reproduce.child import _end_with_parent\n'
        'import pathlib, time\n'
        '_end_with_parent(os.getppid())\n'
        f'pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))'
        '\ntime.sleep(120)\n'
    )
    starter = (
        'import subprocess, sys\n'
        f'subprocess.run([sys.executable, "-c", {code!r}])\n'
    )
    env = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    parent = subprocess.Popen([sys.executable, '-c', starter], env=env)
    file, deadline = tmp_path / 'pid', time.monotonic() + 60
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    pid = int(file.read_text())
    while _is_alive(pid):
        assert time.monotonic() < deadline + 10
        time.sleep(0.1)


def _is_alive(pid):
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rsplit(')')[-1].split()
    except FileNotFoundError:
        return False
    return state[0] != 'Z'


def test_missing_data_stop_it_before_any_training(tmp_path):
    recipe = Recipe(1, BATCH, str(tmp_path / 'nowhere'))
    runs = commands.plan(Selection(cells=CELLS), recipe, tmp_path / 'out')
    with pytest.raises(commands.UserInputError, match='nowhere'):
        commands.reproduce(runs, tmp_path / 'results', Engine(jobs=1))
    assert not (tmp_path / 'out').exists()


def test_an_edited_record_is_said_and_the_run_done_again(
    make_record, tmp_path, capsys
):
    folder = tmp_path / 'results'
    folder.mkdir()
    line = make_record('t6-x0.35-sb').to_line()
    (folder / 'table6.jsonl').write_text(line.replace('91.0', '99.0'))
    runs = commands.plan(Selection(cells=CELLS[1:]), Recipe(), tmp_path)
    assert commands._not_recorded(runs, folder) == runs
    assert 'was edited after the run' in capsys.readouterr().err


def test_a_record_that_is_there_does_not_stop_the_others(
    make_record, tmp_path, monkeypatch, capsys
):
    results = tmp_path / 'results'
    runs = commands.plan(Selection(cells=CELLS), Recipe(), tmp_path / 'out')
    taken = make_record(CELLS[0])

    def start(self, todo):
        # Another process records it meanwhile.
        commands.append_record(taken, results)
        for run in todo:
            yield run, make_record(run.cell.id)

    monkeypatch.setattr(Engine, 'start', start)
    monkeypatch.setattr(commands, '_check_inputs', lambda *_: None)
    assert commands.reproduce(runs, results, Engine()) == 1
    assert len(read_results(results).records) == 2
    assert ': 1, failed: 1' in capsys.readouterr().out


def test_results_that_cannot_be_written_stop_it_before_any_training(tmp_path):
    file = tmp_path / 'results'
    file.write_text('')
    runs = commands.plan(Selection(cells=CELLS), Recipe(), tmp_path / 'out')
    with pytest.raises(commands.UserInputError, match='cannot be written to'):
        commands.reproduce(runs, file, Engine(jobs=1))


@pytest.mark.skipif(torch.cuda.is_available(), reason='for want of a GPU')
def test_half_precision_without_a_gpu_is_refused(tmp_path):
    runs = commands.plan(
        Selection(cells=CELLS), Recipe(amp=True), tmp_path / 'out'
    )
    with pytest.raises(commands.UserInputError, match='--amp needs a GPU'):
        commands.reproduce(runs, tmp_path / 'results', Engine(jobs=1))


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of two nodes on this machine, one core each."""
    ray = pytest.importorskip('ray', reason='the extra cluster')
    from ray.cluster_utils import Cluster

    # By default Ray gives way to everything else on the machine.
    monkeypatch.setenv('RAY_worker_niceness', '0')
    head = dict(num_cpus=1, include_dashboard=False)
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='made for CPU nodes')
def test_no_run_is_lost_with_a_node_of_a_cluster(cluster, make_run, capsys):
    runs = [make_run(cell, epochs=12) for cell in CELLS]
    node = cluster.add_node(num_cpus=1)
    killed, outcomes = False, {}
    # A node's death is no failure of the run.
    events = run_on_ray(runs, cluster.address, Share(), retries=0)
    for event in events:
        if event:
            outcomes[event[0]] = event[1]
        started = all(list(r.work_dir.glob('epoch_*.pth')) for r in runs)
        if started and not killed:
            assert not outcomes
            cluster.remove_node(node, allow_graceful=False)
            killed = True
    assert killed
    for run in runs:
        record = outcomes[run]
        assert record.cell == run.cell.id, record
        assert record.history[-1][0] == 12
    # One went through; the other was started again and did not begin again.
    assert sorted(len(_starts(run)) for run in runs) == [1, 2]
    (resumed,) = [run for run in runs if len(_starts(run)) == 2]
    folder = resumed.work_dir / _starts(resumed)[1]
    info = json.loads((folder / 'vis_data/run_info.json').read_text())
    assert info['start_epoch'] >= 1


@pytest.mark.slow
@pytest.mark.parametrize(('retries', 'good'), [(1, True), (0, False)])
def test_a_failed_run_is_started_again_on_ray(
    cluster, make_run, tmp_path, monkeypatch, make_record, retries, good
):
    record = make_record(CELLS[0])
    tried = tmp_path / 'tried'

    def fails_once(run, threads):
        if tried.exists():
            return record
        tried.touch()
        raise RunFailedError('for once')

    monkeypatch.setattr('sb_mm.reproduce.cluster._task', fails_once)
    run = make_run()
    events = run_on_ray([run], cluster.address, Share(), retries)
    ((ended, outcome),) = [event for event in events if event]
    assert ended is run
    assert (outcome == record) is good, outcome
    assert isinstance(outcome, RunFailedError) is not good


@pytest.mark.slow
def test_a_share_that_no_node_has_is_refused(cluster, make_run):
    events = run_on_ray([make_run()], cluster.address, Share(gpus=1), 0)
    with pytest.raises(commands.UserInputError, match='No node of the Ray'):
        next(events)


def test_without_ray_it_says_what_to_install(monkeypatch, make_run):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(commands.UserInputError, match=r'\[cluster\]'):
        next(run_on_ray([make_run()], 'auto', Share(), 0))
