"""Checkpoints of which one is whole at any moment."""

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmengine.utils import mkdir_or_exist

from sb_mm.errors import UserInputError, first_few
from sb_mm.files import DRAFT_SUFFIX, write_in_one_step
from sb_mm.registry import HOOKS

_BACKEND = 'sb_mm.atomic'
_OUTDATED = 'outdated_ckpts'


@register_backend(_BACKEND, force=True)
class AtomicBackend(LocalBackend):
    """Local files that are replaced in one step, and removed later."""

    def __init__(self) -> None:
        self.outdated: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write beside, then rename."""
        mkdir_or_exist(Path(filepath).parent)
        write_in_one_step(Path(filepath), obj)

    def remove(self, filepath: str | Path) -> None:
        """Note that a file is not wanted any more."""
        self.outdated.append(Path(filepath).name)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, which loses nothing when it is killed.

    MMEngine's deletes the old checkpoint and then writes the new one in its
    final place: with ``max_keep_ckpts=1``, a kill in between leaves none, or
    half of one. On local storage, this hook writes beside, renames, and
    deletes last; what a killed training left to delete, when that goes on.
    """

    def before_train(self, runner: Runner) -> None:
        """Choose the storage, and clean up behind a killed training."""
        local = '://' not in str(self.out_dir or runner.work_dir)
        if local and not (self.backend_args or self.file_client_args):
            self.backend_args = dict(backend=_BACKEND)
        super().before_train(runner)
        if not isinstance(self.file_backend, AtomicBackend):
            return
        for draft in Path(self.out_dir).glob(f'.*{DRAFT_SUFFIX}'):
            draft.unlink(missing_ok=True)
        hub = runner.message_hub
        listed = hub.get_info(_OUTDATED)
        names = listed if isinstance(listed, list) else []
        self.file_backend.outdated += [n for n in names if isinstance(n, str)]
        # The list itself: each checkpoint gets what it holds at the time.
        hub.update_info(_OUTDATED, self.file_backend.outdated)
        self._remove_outdated(runner)

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict
    ) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_outdated(runner)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        try:
            super()._save_best_checkpoint(runner, metrics)
        except KeyError as error:
            raise UserInputError(
                f'save_best names {error}, but the validation gives '
                f'{first_few([*metrics], limit=9)}: correct save_best.'
            ) from error
        self._remove_outdated(runner)

    def _remove_outdated(self, runner: Runner) -> None:
        outdated = runner.message_hub.get_info(_OUTDATED, [])
        used = {
            Path(str(path)).name
            for key, path in runner.message_hub.runtime_info.items()
            if key.startswith(('best_ckpt', 'last_ckpt'))
        }
        # The list may be anybody's: it deletes checkpoints, and only here.
        names = {Path(name).name for name in outdated if name[-4:] == '.pth'}
        # A name may have been written again, such as that of a best one.
        for name in names - used:
            Path(self.out_dir, name).unlink(missing_ok=True)
        outdated.clear()
