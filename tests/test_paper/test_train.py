"""Jobs side by side, with a training that is played, and on a cluster."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sb_mm.errors import UserInputError
from sb_mm.paper import cluster, train
from sb_mm.paper.cells import select_cells
from sb_mm.paper.cluster import run_on_ray, slurm_array
from sb_mm.paper.job import Execution
from sb_mm.paper.train import follow, plan_jobs, run_locally


@pytest.fixture
def jobs(make_job):
    return [make_job(seed=seed) for seed in range(3)]


@pytest.fixture
def play(monkeypatch):
    """Put a function in the place of the training."""

    def replace(function):
        fork = multiprocessing.get_context('fork')
        monkeypatch.setattr(train, '_SPAWN', fork)
        monkeypatch.setattr(train, 'train_job', function)

    return replace


def test_repeated_cells_are_one_job_and_seeds_come_first(tmp_path):
    cells = select_cells([5, 6], [0.35], ['SB', 'SE'])
    planned = plan_jobs(cells, [0, 1], {}, Execution(), tmp_path)
    names = [job.name for job in planned]
    assert len(names) == 2 * 6
    assert 't6-x0.35-sb seed 0' not in names  # that of Table 5
    assert [job.seed for job in planned] == [0] * 6 + [1] * 6
    with pytest.raises(UserInputError, match='a seed twice'):
        plan_jobs(cells, [1, 1], {}, Execution(), tmp_path)


def test_one_failure_is_a_sentence_and_stops_no_other(
    jobs, play, make_record, tmp_path, capsys
):
    def played(job, results):
        if job.seed == 0:
            raise ValueError('the disk is full\nand more')
        if job.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return make_record(job.cell.id, seed=job.seed)

    play(played)
    failed = follow(jobs, run_locally(jobs, tmp_path, 2))
    assert failed == jobs[:2] or failed == jobs[1::-1]
    text = capsys.readouterr().out
    assert f'failed: ValueError: the disk is full (see {jobs[0].log})' in text
    assert 'failed: its process ended with code -9' in text
    assert 't6-x0.35-static seed 2: 91.00 %, 1.00 h' in text


def test_no_more_than_the_given_number_run_at_a_time(
    jobs, play, make_record, tmp_path
):
    def played(job, results):
        begin = time.monotonic()
        time.sleep(0.3)
        threads = int(os.environ['OMP_NUM_THREADS'])
        end = time.monotonic()
        return make_record(job.cell.id, history=[[begin, end], [0, threads]])

    play(played)
    events = [event for event in run_locally(jobs, tmp_path, 2) if event]
    spans = sorted(tuple(record.history[0]) for _, record in events)
    assert len(spans) == 3
    assert spans[2][0] >= min(spans[0][1], spans[1][1])
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {record.history[1][1] for _, record in events} == {share}


@pytest.mark.parametrize(
    ('given', 'count', 'places'),
    [
        (None, 3, ['0', '1', '0']),
        ('4,7', 2, ['4', '7']),
        ('GPU-a', 2, ['GPU-a', 'GPU-a']),
    ],
)
def test_processes_share_the_gpus_in_turn(monkeypatch, given, count, places):
    visible = len(given.split(',')) if given else 2
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: visible)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if given:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
    found = [place['CUDA_VISIBLE_DEVICES'] for place in train._places(count)]
    assert found == places


def test_leaving_the_loop_ends_what_runs(jobs, play, tmp_path):
    def played(job, results):
        (tmp_path / f'begun{job.seed}').touch()
        time.sleep(60)

    play(played)
    events = run_locally(jobs, tmp_path, 1)
    while not (tmp_path / 'begun0').exists():
        next(events)
    begin = time.monotonic()
    events.close()
    assert time.monotonic() - begin < 30
    assert not multiprocessing.active_children()
    assert not (tmp_path / 'begun1').exists()


def test_the_script_for_slurm_does_one_job_in_each_task():
    words = ['train', '--cells', 't6-x0.35-sb', '--slurm', '--cfg-options']
    script = slurm_array([*words, "x='a b'"], 6, 4, None)
    assert '#SBATCH --array=0-5\n' in script
    assert '#SBATCH --cpus-per-task=4\n#SBATCH --gres=gpu:1\n' in script
    assert script.splitlines()[-1] == (
        'python tools/paper.py train --cells t6-x0.35-sb --cfg-options '
        """'x='"'"'a b'"'"'' --only "$SLURM_ARRAY_TASK_ID\""""
    )
    assert 'gres' not in slurm_array(words, 6, 4, 0)
    done = subprocess.run(['bash', '-n'], input=script, text=True)
    assert done.returncode == 0


def test_without_ray_it_says_what_to_install(jobs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(UserInputError, match=r'\[cluster\]'):
        next(run_on_ray(jobs, tmp_path, 'auto'))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='made for CPU nodes')
def test_ray_starts_a_job_again_whose_process_died(
    jobs, make_record, tmp_path, monkeypatch
):
    ray = pytest.importorskip('ray', reason='the extra cluster')

    def played(job, results):
        first = tmp_path / f'tried{job.seed}'
        if job.seed == 0 and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return make_record('t6-x0.35-sb') if job.seed < 2 else 'no data'

    monkeypatch.setattr(cluster, 'outcome_of', played)
    try:
        events = [*run_on_ray(jobs, tmp_path, 'local')]
        outcomes = dict(event for event in events if event)
        record = make_record('t6-x0.35-sb')
        assert [outcomes[job] for job in jobs] == [record, record, 'no data']
        with pytest.raises(UserInputError, match='No node of the Ray'):
            next(run_on_ray(jobs, tmp_path, 'local', 1, 1))
    finally:
        ray.shutdown()
