"""Jobs side by side, with commands in place of trainings, and on a cluster."""

import os
import shlex
import signal
import sys
import time

import pytest
import torch

from sb_mm.errors import UserInputError
from sb_mm.files import cores
from sb_mm.paper import launch
from sb_mm.paper.cells import select_cells
from sb_mm.paper.launch import LOG, follow, run_locally, run_on_ray


@pytest.fixture
def jobs(make_job):
    return [make_job(seed=seed) for seed in range(3)]


def test_repeated_cells_are_one_job_and_seeds_come_first(tmp_path):
    cells = select_cells([5, 6], [0.35], ['SB', 'SE'])
    planned = launch.plan_jobs(cells, [0, 1, 0], out=tmp_path)
    names = [job.name for job in planned]
    assert 't6-x0.35-sb seed 0' not in names  # that of Table 5
    assert [job.seed for job in planned] == [0] * 6 + [1] * 6
    assert {job.out for job in planned} == {tmp_path}


def test_two_at_a_time_share_the_cores_and_a_failure_stops_no_other(
    jobs, capsys
):
    scripts = [
        'date +%s.%N; sleep 0.3; echo the disk is full >&2; exit 1',
        'date +%s.%N; sleep 0.3; kill -9 $$',
        'date +%s.%N; echo $OMP_NUM_THREADS threads',
    ]
    pairs = zip(jobs, scripts, strict=True)
    commands = {job: ['sh', '-c', script] for job, script in pairs}
    with run_locally(commands, 2) as futures:
        assert set(follow(futures)) == set(jobs[:2])
    text = capsys.readouterr().out
    assert f'the disk is full (failed, see {jobs[0].folder})' in text
    assert 'its process ended with code -9 (failed' in text
    share = max(1, cores() // 2)
    assert f't6-x0.35-static seed 2: {share} threads\n' in text
    logs = [(job.folder / LOG).read_text() for job in jobs]
    first, _, last = sorted(float(log.split()[0]) for log in logs)
    assert last - first >= 0.3


@pytest.mark.parametrize(
    ('given', 'count', 'places'),
    [('', None, '01'), ('', 3, '010'), ('a,7', 2, 'a7'), ('a,7', 3, 'a7a')],
)
def test_processes_share_the_gpus_in_turn(monkeypatch, given, count, places):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
    found = [place['CUDA_VISIBLE_DEVICES'] for place in launch._places(count)]
    assert found == list(places)


def test_leaving_the_loop_ends_what_runs(jobs):
    commands = {job: ['sh', '-c', 'echo $$; exec sleep 60'] for job in jobs}
    log, begin = jobs[0].folder / LOG, time.monotonic()
    with run_locally(commands, 1):
        while not (log.is_file() and log.read_text()):
            time.sleep(0.02)
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    assert not (jobs[1].folder / LOG).exists()


def test_slurm_does_one_job_in_each_task():
    words = ['train', '--cells', 't6-x0.35-sb', '--slurm', '--cfg-options']
    found = shlex.split(launch.slurm_array([*words, "x='a b'"], 6, 4, None))
    assert found[1:4] == ['--array=0-5', '--cpus-per-task=4', '--gres=gpu:1']
    task, _, only = found[-1].removeprefix('--wrap=').rpartition(' --only ')
    assert only == '$SLURM_ARRAY_TASK_ID'
    words.remove('--slurm')
    assert shlex.split(task)[2:] == [*words, "x='a b'"]
    assert 'gres' not in launch.slurm_array(words, 6, 4, 0)


def test_without_ray_it_says_what_to_install(jobs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(UserInputError, match=r'\[cluster\]'):
        run_on_ray(jobs, tmp_path, 'auto').__enter__()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='made for CPU nodes')
def test_ray_starts_a_job_again_whose_process_died(
    jobs, tmp_path, monkeypatch, capsys
):
    ray = pytest.importorskip('ray', reason='the extra cluster')

    def played(job, results):
        if job.seed == 0 and not results.exists():
            results.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if job.seed == 1:
            raise ValueError('There are no data.')
        return 'a record'

    monkeypatch.setattr(launch, 'train_job', played)
    try:
        with run_on_ray(jobs, tmp_path / 'tried', 'local') as futures:
            assert follow(futures) == jobs[1:2]
    finally:
        ray.shutdown()
    text = capsys.readouterr().out
    assert 'seed 0: a record' in text
    assert 'seed 1: There are no data. (failed' in text
