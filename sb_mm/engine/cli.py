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
_UNDECODED = re.compile(
    r'^(?:AssertionError: )?failed to load image: (.+)$', re.MULTILINE
)
# A disk that is full, or a folder that is not the user's.
_UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
}


class Options(DictAction):
    """MMEngine's action, which also reads ``dict(type='EMAHook', begin=1)``.

    Given twice, the second adds to the first instead of replacing it.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if 'dict(' not in val and '{' not in val:
            return DictAction._parse_iterable(val)
        tree = _DictCalls().visit(ast.parse(val.strip(), mode='eval'))
        return ast.literal_eval(tree)

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
        except (SyntaxError, ValueError) as error:
            raise argparse.ArgumentError(
                self, 'write key=value, in the words of Python'
            ) from error
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, {**before, **given})


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
        'key="[a,b]" or key=a,b and no white space, or as in a config, '
        'key="[dict(type=\'A\')]"',
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
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_) -> NoReturn:
    sys.exit(_TERMINATED)


def _forget_sigterm() -> None:
    """Leave the workers of a pool, which a pool ends so, as they are.

    One that waits for a lock would never come to run a handler.
    """
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_sigterm)


def run_tool(main: Callable[[], None]) -> NoReturn:
    """Run ``main``; one sentence instead of a traceback, where there is one.

    Exit codes: 0; 2 for invalid input and what cannot be written; 4 for a
    training that diverged; 130 for an interrupt; 143 for SIGTERM.
    """
    # One of several processes may wait for the others, deaf to a handler.
    if os.environ.get('WORLD_SIZE', '1') == '1':
        exit_on_sigterm()
    try:
        _unmask_signals(main)
    except UserInputError as error:
        _leave(f'error: {_sentence(error) or error}', 2)
    except DivergedError as error:
        _leave(f'error: {error}', _DIVERGED)
    except KeyboardInterrupt:
        _leave('interrupted', _INTERRUPTED)
    except SystemExit as end:
        if end.code == _TERMINATED:
            print('terminated', file=sys.stderr)
        raise
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _leave(
            f'error: {error.filename or "A file"} cannot be opened or written '
            f'({error.strerror}): make room, or choose another folder.',
            2,
        )
    except AssertionError as error:
        if not (found := _UNDECODED.search(str(error))):
            raise
        _leave(f'error: {found[1]} is not a readable image: replace it.', 2)
    except ModuleNotFoundError as error:
        if error.name not in ('mmdet', 'mmpretrain'):
            raise
        _leave(f'error: This needs {error.name}, which is not installed.', 2)
    except KeyError as error:
        if not (found := _UNREGISTERED.search(str(error))):
            raise
        _leave(
            f'error: {found[0]}: correct the type, or name the module that '
            'defines it in custom_imports.',
            2,
        )
    except TypeError as error:
        if sentence := _sentence(error):
            _leave(f'error: {sentence}', 2)
        raise
    sys.exit(0)


def _unmask_signals(main: Callable[[], None]) -> None:
    """Run ``main``; a signal ends it, whatever a host made of it.

    MMEngine's ``Config.pretty_text`` takes one for an error of syntax.
    """
    try:
        main()
    except Exception as error:
        for cause in chain(error):
            if isinstance(cause, KeyboardInterrupt) or (
                isinstance(cause, SystemExit) and cause.code == _TERMINATED
            ):
                raise cause from None
        raise


def _leave(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


def _sentence(error: Exception) -> str | None:
    """Return what to do about an mmpretrain that cannot be imported.

    It sets classes of transformers that are gone to None, and inherits them.
    """
    cause = root_cause(error)
    if 'NoneType takes no arguments' not in str(cause):
        return None
    with contextlib.suppress(PackageNotFoundError):
        return (
            'mmpretrain cannot be imported beside transformers '
            f'{version("transformers")} ({cause}): install an older one, '
            'pip install "transformers<5".'
        )
    return None
