"""What the command-line tools share: options, error messages, exit codes."""

import argparse
import ast
import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
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

_TERMINATED = 128 + signal.SIGTERM  # as shells say it
# How MMEngine says that a config's type is unknown.
_UNREGISTERED = re.compile(r'[\w.]+ is not in the \S+ registry')
# How mmcv says that it could not decode an image, also in a worker.
_UNDECODED = re.compile(r'failed to load image: (.+)$', re.MULTILINE)
# A disk that is full, or a folder that is not the user's or is none.
_UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES),
    *(errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


class Options(DictAction):
    """MMEngine's action, which reads ``dict(type='EMAHook')`` as well."""

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if 'dict(' not in val and '{' not in val:
            return DictAction._parse_iterable(val)
        tree = ast.parse(val.strip(), mode='eval')
        return ast.literal_eval(_DictCalls().visit(tree))

    def __call__(self, *args) -> None:
        """Refuse, in argparse's words, what is no ``key=value``."""
        try:
            super().__call__(*args)
        except (AssertionError, SyntaxError, ValueError) as error:
            raise argparse.ArgumentError(
                self, 'write key=value, in the words of Python'
            ) from error


class _DictCalls(ast.NodeTransformer):
    """Write ``{'a': 1}`` for ``dict(a=1)``, which is no literal."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func) != 'dict' or node.args:
            return node
        names = [k.arg and ast.Constant(k.arg) for k in node.keywords]
        return ast.Dict(names, [k.value for k in node.keywords])


def add_common_options(
    parser: argparse.ArgumentParser, check: bool = True
) -> None:
    """Add options of mmdet's tools, and ours; ``--no-check`` if ``check``."""
    add = parser.add_argument
    add('--work-dir', help='folder for logs and checkpoints')
    add('--data-root', help='folder of the data, for every loader at once')
    text = 'load a checkpoint even if that can run code from the file'
    add('--trust-checkpoint', action='store_true', help=text)
    text = 'override settings of the config: key=value, with lists as '
    text += 'key=a,b, or as in a config, key="[dict(type=\'A\')]"'
    add('--cfg-options', nargs='+', action=Options, help=text)
    launchers = ['none', 'pytorch', 'slurm', 'mpi']
    add('--launcher', choices=launchers, default='none', help='job launcher')
    # torch.distributed.launch passes it, and sets LOCAL_RANK as well.
    add('--local_rank', '--local-rank', help=argparse.SUPPRESS)
    if check:
        text = 'start without a look at every file and at the checkpoint'
        add('--no-check', dest='check', action='store_false', help=text)


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, with all cleaning up.

    Workers of a pool, which may wait for a lock, end at once. Python forgets
    a signal that comes before a new process's first line: it has to wait.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    mask, term = signal.pthread_sigmask, signal.SIGTERM
    unblock = partial(mask, signal.SIG_UNBLOCK, {term})
    os.register_at_fork(
        before=partial(mask, signal.SIG_BLOCK, {term}),
        after_in_parent=unblock,
        after_in_child=partial(signal.signal, term, signal.SIG_DFL),
    )
    os.register_at_fork(after_in_child=unblock)


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
    except BaseException as error:
        text, code = _last_words(error)
        if text is None:
            raise
        print(text, file=sys.stderr)
        sys.exit(code)
    sys.exit(0)


def _last_words(error: BaseException) -> tuple[str | None, int]:
    # MMEngine's Config.pretty_text takes a signal for an error of syntax.
    for cause in chain(error):
        if isinstance(cause, KeyboardInterrupt):
            return 'interrupted', 128 + signal.SIGINT
        if isinstance(cause, SystemExit) and cause.code == _TERMINATED:
            return 'terminated', _TERMINATED
    sentence = _sentence(error)
    code = 4 if isinstance(error, DivergedError) else 2
    return sentence and f'error: {sentence}', code


def _sentence(error: BaseException) -> str | None:
    """Return what was wrong and what to do; None if only a traceback can."""
    root = root_cause(error)
    # mmpretrain inherits classes that newer transformers do not have.
    if 'NoneType takes no arguments' in str(root):
        with suppress(PackageNotFoundError):
            return (
                'mmpretrain cannot be imported beside transformers '
                f'{version("transformers")} ({root}): install an older one, '
                'pip install "transformers<5".'
            )
    match error:
        case UserInputError() | DivergedError():
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
