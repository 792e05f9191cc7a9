"""Makes the pinned environment of one OpenMMLab family in the clone.

This file and nothing else here runs under whatever Python 3 a machine has, so
that a Python that does not fit is told so; the work is in ``environment/``.
It cannot be in ``sb_mm``, which needs what is installed here.
"""

import argparse
import platform
import sys

OLDEST, NEWEST = (3, 10), (3, 12)


def python_problem(version):  # noqa: ANN001, ANN201
    """Return the sentence for a Python that does not fit, or ''."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return ''
    extreme = 'old' if tuple(version[:2]) < OLDEST else 'new'
    return (
        'Python {} is too {}: the pinned packages need 3.10, 3.11 or 3.12; '
        'choose one, for example `make env PYTHON=python3.11`.'
    ).format('.'.join(map(str, version[:3])), extreme)


def main():  # noqa: ANN201
    """Parse the arguments and sets the environment up."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--family',
        choices=['onedl', 'openmmlab'],
        default='onedl',
        help='the OpenMMLab packages to install (default: onedl)',
    )
    family = parser.parse_args().family
    problem = python_problem(sys.version_info)
    if not problem and platform.system() not in ('Linux', 'Darwin'):
        problem = 'The set-up runs on Linux and macOS; on Windows use WSL.'
    if problem:
        sys.stderr.write(problem + '\n')
        return 2
    from environment.setup import run

    return run(family)


if __name__ == '__main__':
    sys.exit(main())
