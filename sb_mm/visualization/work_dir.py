"""What a training left in its work directory: network and logs."""

import json
from pathlib import Path

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner, find_latest_checkpoint

from sb_mm.checkpoint import load_checkpoint_file, state_dict_of
from sb_mm.engine.config import load_config
from sb_mm.engine.hooks.run_info import start_folders
from sb_mm.engine.preflight import check_checkpoint, check_data
from sb_mm.errors import UserInputError


def load_trained(
    work_dir: str | Path,
    checkpoint: str | None = None,
    data_root: str | None = None,
    trust: bool = False,
) -> tuple[BaseModel, dict]:
    """Return a run's network and the first batch of its validation data.

    Args:
        work_dir: Its work directory, with the config that MMEngine wrote.
        checkpoint: File of the weights; the newest of the run if None.
        data_root: Folder of the data, if it is not where the config says.
        trust: Run the code that the checkpoint may bring with it.

    Returns:
        The network on the CPU in evaluation mode, and a batch as it comes
        from the loader.

    Raises:
        UserInputError: If config, data or checkpoint are missing or do not
            fit.
    """
    check_work_dir(work_dir)
    cfg = _config_of(work_dir, data_root)
    check_data(cfg, ('val_dataloader',))
    checkpoint = checkpoint or _newest_checkpoint(work_dir)
    check_checkpoint(cfg, checkpoint, trust)
    model = MODELS.build(cfg.model).eval()
    content = load_checkpoint_file(checkpoint, trust=trust)
    model.load_state_dict(state_dict_of(content), strict=False)
    loader = dict(cfg.val_dataloader, num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)  # of the dataloader workers
    return model, next(iter(Runner.build_dataloader(loader, seed=0)))


def check_work_dir(work_dir: str | Path) -> None:
    """Raise unless ``work_dir`` is a folder.

    Raises:
        UserInputError: Names it.
    """
    if not Path(work_dir).is_dir():
        raise UserInputError(
            f'The work directory {work_dir} does not exist: give the folder '
            'that a training run wrote.'
        )


def _config_of(work_dir: str | Path, data_root: str | None) -> Config:
    files = sorted(Path(work_dir).glob('*.py'), key=_modified)
    if not files:
        raise UserInputError(
            f'{work_dir} holds no config (*.py), which a training run writes '
            'there: give the work directory of one.'
        )
    cfg = load_config(str(files[-1]), data_root=data_root)
    if not cfg.get('val_dataloader'):
        raise UserInputError(
            f'The config {files[-1]} has no val_dataloader, whose images '
            'are to be shown: add one.'
        )
    # As MMEngine's runner does, for the configs of mmpretrain.
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return cfg


def _newest_checkpoint(work_dir: str | Path) -> str:
    found = find_latest_checkpoint(str(work_dir))
    if found is None:
        raise UserInputError(
            f'{work_dir} holds no checkpoint: give one with --checkpoint.'
        )
    # The run wrote the path as it was then; the folder may have moved.
    moved = Path(work_dir, Path(found).name)
    return str(moved) if moved.is_file() else found


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def read_log_lines(
    work_dir: str | Path, name: str, newest_only: bool = True
) -> list[dict]:
    """Return the objects of a log file.

    Args:
        work_dir: Work directory, which has a log folder for every start of a
            run.
        name: Name of the file in ``vis_data`` of a log folder.
        newest_only: Of the newest start that wrote such a file; if False, of
            all of them, the oldest first.

    Raises:
        FileNotFoundError: If no run wrote such a file.
    """
    folders = start_folders(Path(work_dir))
    files = [folder / 'vis_data' / name for folder in folders]
    files = [file for file in files if file.is_file()]
    if not files:
        raise FileNotFoundError(f'{work_dir} holds no vis_data/{name}.')
    return [
        json.loads(line)
        for file in (files[-1:] if newest_only else files)
        for line in file.read_text().splitlines()
    ]
