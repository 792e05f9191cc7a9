"""Runs as a job array of Slurm, by a script that is printed."""

import argparse
import shlex
from collections.abc import Sequence

_TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name=sb_mm
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --requeue
#SBATCH --output=%x-%A_%a.out
# Save it, add what your cluster needs (partition, time) and pass it to sbatch
# in the repository's folder, which must be on shared storage, with the
# environment (.venv) activated. A job that was cut goes on from its newest
# checkpoint; sent again, what is recorded already ends at once.
{command} --only "$SLURM_ARRAY_TASK_ID"
"""


def array_script(
    arguments: Sequence[str], runs: int, cpus: int, gpus: float | None
) -> str:
    """Return a batch script with one job for each run.

    Args:
        arguments: Of ``tools/reproduce.py``.
        runs: How many there are.
        cpus: Cores of a job.
        gpus: Of a job; any number but 0 is one, as Slurm does not share
            them.
    """
    return _TEMPLATE.format(
        last=runs - 1,
        cpus=cpus,
        gpus='' if gpus == 0 else '#SBATCH --gres=gpu:1\n',
        command=shlex.join(['python', 'tools/reproduce.py', *_job(arguments)]),
    )


def _job(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without those that speak of the array."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument('--slurm', action='store_true')
    parser.add_argument('--cpus-per-run')
    parser.add_argument('--gpus-per-run')
    return parser.parse_known_args(arguments)[1]
