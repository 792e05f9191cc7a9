"""What the command-line tools share: options, error messages, exit codes."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from mmengine.config import DictAction

from sb_mm.errors import UserInputError

# Shell convention: 128 + SIGINT.
_INTERRUPTED = 130


class Options(DictAction):
    """MMEngine's action, with a sentence for what is no ``key=value``.

    Given twice, the second adds to the first instead of replacing it.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        *args,
    ) -> None:
        """Add what was given to ``namespace``."""
        before = getattr(namespace, self.dest) or {}
        try:
            super().__call__(parser, namespace, *args)
        except ValueError as error:
            raise argparse.ArgumentError(self, 'write key=value') from error
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, {**before, **given})


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of both mmdet's ``train.py`` and ``test.py``."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--data-root', help='folder of the data, for every loader at once'
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load a checkpoint even if it needs more than tensors and '
        "MMEngine's records; this can run code from the file",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        help='override settings of the config: key=value, with lists as '
        'key="[a,b]" or key=a,b and no white space',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # torchrun sets LOCAL_RANK; torch.distributed.launch passes the option.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_check_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-check``, as ``check``."""
    parser.add_argument(
        '--no-check',
        dest='check',
        action='store_false',
        help='start at once, without a look at every file of the data and at '
        'the checkpoint',
    )


def parse_arguments(
    parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> argparse.Namespace:
    """Parse, and export the local rank as the launchers expect it."""
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, with all cleaning up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Not the workers of a pool, which is how a pool ends them: one that waits
    # for a lock would never come to run a handler.
    os.register_at_fork(
        after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)
    )


def run_tool(main: Callable[[], None]) -> NoReturn:
    """Run ``main``; one sentence and exit code 2 for unusable input."""
    try:
        main()
    except UserInputError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(_INTERRUPTED)
    sys.exit(0)
