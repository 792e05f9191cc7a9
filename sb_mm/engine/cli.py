"""What the command-line tools share: options, error messages, exit codes."""

import argparse
import ast
import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

try:
    from mmengine.config import DictAction
except ModuleNotFoundError as error:
    raise SystemExit(
        f'error: {error.name} is not installed for {sys.executable}: after '
        '`make env`, `source .venv/bin/activate`; else see docs/install.md.'
    ) from error

from sb_mm.errors import DivergedError, UserInputError, chain, root_cause

_DIVERGED = 4
# Shell convention: 128 + the signal.
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM
# How MMEngine says that a config's type is unknown.
_UNREGISTERED = re.compile(r'[\w.]+ is not in the \S+ registry')
# How mmcv says that it could not decode an image, also in a worker.
_UNDECODED = re.compile(r'failed to load image: (.+)$', re.MULTILINE)
# A disk that is full, or a folder that is not the user's or is none.
_UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


class Options(DictAction):
    """MMEngine's action, which reads ``dict(type='EMAHook')`` as well."""

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if 'dict(' not in val and '{' not in val:
            return DictAction._parse_iterable(val)
        tree = _DictCalls().visit(ast.parse(val.strip(), mode='eval'))
        return ast.literal_eval(tree)

    def __call__(self, *args) -> None:
        """Add what was given to the namespace."""
        try:
            super().__call__(*args)
        except (SyntaxError, ValueError) as error:
            raise argparse.ArgumentError(
                self, 'write key=value, in the words of Python'
            ) from error


class _DictCalls(ast.NodeTransformer):
    """Write ``{'a': 1}`` for ``dict(a=1)``, which is no literal."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        names = [keyword.arg for keyword in node.keywords]
        if ast.unparse(node.func) != 'dict' or node.args or None in names:
            return node
        return ast.Dict(
            [ast.Constant(name) for name in names],
            [keyword.value for keyword in node.keywords],
        )


def add_common_options(
    parser: argparse.ArgumentParser, check: bool = True
) -> None:
    """Add the options of both mmdet's ``train.py`` and ``test.py``.

    Args:
        parser: Gets them.
        check: Add ``--no-check`` as well.
    """
    add = parser.add_argument
    add('--work-dir', help='folder for logs and checkpoints')
    add('--data-root', help='folder of the data, for every loader at once')
    add(
        '--trust-checkpoint',
        action='store_true',
        help='load a checkpoint even if it needs more than tensors and '
        "MMEngine's records; this can run code from the file",
    )
    add(
        '--cfg-options',
        nargs='+',
        action=Options,
        help='override settings of the config: key=value, with lists as '
        'key="[a,b]" or key=a,b and no white space, or as in a config, '
        'key="[dict(type=\'A\')]"',
    )
    launchers = ['none', 'pytorch', 'slurm', 'mpi']
    add('--launcher', choices=launchers, default='none', help='job launcher')
    # torchrun sets LOCAL_RANK; torch.distributed.launch passes the option.
    add('--local_rank', '--local-rank', type=int, default=0)
    if check:
        add(
            '--no-check',
            dest='check',
            action='store_false',
            help='start at once, without a look at every file of the data '
            'and at the checkpoint',
        )


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse, and export the local rank as the launchers expect it."""
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, with all cleaning up."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_) -> NoReturn:
    sys.exit(_TERMINATED)


def _block_sigterm() -> None:
    """Let a fork's SIGTERM wait until the child has no handler for it.

    Python forgets the signals that reach a handler before its first line.
    """
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _unblock_sigterm() -> None:
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _forget_sigterm() -> None:
    """End a pool's workers at once, which may wait for a lock."""
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


os.register_at_fork(
    before=_block_sigterm,
    after_in_parent=_unblock_sigterm,
    after_in_child=_forget_sigterm,
)


def run_tool(main: Callable[[], None]) -> NoReturn:
    """Run ``main``; one sentence instead of a traceback, where there is one.

    Exit codes: 0; 2 for invalid input and what cannot be written; 4 for a
    training that diverged; 130 for an interrupt; 143 for SIGTERM.
    """
    # One of several processes may wait for the others, deaf to a handler.
    if os.environ.get('WORLD_SIZE', '1') == '1':
        exit_on_sigterm()
    try:
        main()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        # MMEngine's Config.pretty_text takes a signal for an error of syntax.
        signals = (KeyboardInterrupt, SystemExit)
        ended = [e for e in chain(error) if isinstance(e, signals)]
        text, code = _last_words((ended or [error])[0])
        if text is None:
            raise
        print(text, file=sys.stderr)
        sys.exit(code)
    sys.exit(0)


def _last_words(error: BaseException) -> tuple[str | None, int]:
    """Return what a tool ends with, and its exit code."""
    match error:
        case KeyboardInterrupt():
            return 'interrupted', _INTERRUPTED
        case SystemExit() if error.code == _TERMINATED:
            return 'terminated', _TERMINATED
        case DivergedError():
            return f'error: {error}', _DIVERGED
    sentence = _sentence(error)
    return sentence and f'error: {sentence}', 2


def _sentence(error: BaseException) -> str | None:
    """Return what was wrong and what to do; None if only a traceback can."""
    root = root_cause(error)
    # mmpretrain sets classes of transformers that are gone to None, and
    # inherits them.
    if 'NoneType takes no arguments' in str(root):
        with contextlib.suppress(PackageNotFoundError):
            return (
                'mmpretrain cannot be imported beside transformers '
                f'{version("transformers")} ({root}): install an older one, '
                'pip install "transformers<5".'
            )
    match error:
        case UserInputError():
            return str(error)
        case OSError() if error.errno in _UNWRITABLE:
            return (
                f'{error.filename or "A file"} cannot be opened or written '
                f'({error.strerror}): make room, or choose another folder.'
            )
        case AssertionError() if found := _UNDECODED.findall(str(error)):
            # A worker's traceback quotes the line of code first.
            return f'{found[-1]} is not a readable image: replace it.'
        case ModuleNotFoundError(name='mmdet' | 'mmpretrain'):
            return f'This needs {error.name}, which is not installed.'
        case KeyError() if found := _UNREGISTERED.search(str(error)):
            return (
                f'{found[0]}: correct the type, or name the module that '
                'defines it in custom_imports.'
            )
    return None
