"""What a training left in its work directory: network and logs."""

import json
import os.path as osp
from pathlib import Path

from mmengine.model import BaseModel

from sb_mm.engine.build import build_loader, build_model
from sb_mm.engine.checks.checkpoint import check_checkpoint, newest_checkpoint
from sb_mm.engine.checks.data import check_data
from sb_mm.engine.config import load_config
from sb_mm.errors import UserInputError
from sb_mm.weights import state_dict_of


def load_trained(
    work_dir: str | Path,
    checkpoint: str | None = None,
    data_root: str | None = None,
    trust: bool = False,
) -> tuple[BaseModel, dict]:
    """Return a training's network and the first batch of its validation data.

    The network is on the CPU, in evaluation mode.

    Args:
        work_dir: Its work directory, with the config that MMEngine wrote.
        checkpoint: File of the weights; the newest there if None.
        data_root: Folder of the data, if it is not where the config says.
        trust: Run the code that the checkpoint may bring with it.

    Raises:
        UserInputError: If config, data or checkpoint are missing or do not
            fit.
    """
    check_work_dir(work_dir)
    files = map(str, Path(work_dir).glob('*.py'))
    file = max(files, key=osp.getmtime, default=None)
    if file is None:
        raise UserInputError(
            f'{work_dir} holds no config (*.py), which a training run writes '
            'there: give the work directory of one.'
        )
    cfg = load_config(file, data_root=data_root)
    if not cfg.get('val_dataloader'):
        raise UserInputError(
            f'The config {file} has no val_dataloader, whose images are to be '
            'shown: add one.'
        )
    check_data(cfg, ('val_dataloader',))
    checkpoint = checkpoint or newest_checkpoint(work_dir)
    if checkpoint is None:
        raise UserInputError(
            f'{work_dir} holds no checkpoint: give one with --checkpoint.'
        )
    content = check_checkpoint(cfg, checkpoint, trust)
    model = build_model(cfg).eval()
    model.load_state_dict(state_dict_of(content), strict=False)
    return model, next(iter(build_loader(cfg, 'val_dataloader')))


def check_work_dir(work_dir: str | Path) -> None:
    """Raise UserInputError unless ``work_dir`` is a folder."""
    if not Path(work_dir).is_dir():
        raise UserInputError(
            f'The work directory {work_dir} does not exist: give the folder '
            'that a training run wrote.'
        )


def read_log_lines(
    work_dir: str | Path, name: str, newest_only: bool = True
) -> list[dict]:
    """Return the objects of the log files ``vis_data/<name>``.

    Of the newest start in a work directory that wrote one; if not
    ``newest_only``, of all starts, the oldest first.

    Raises:
        FileNotFoundError: If none wrote such a file.
    """
    # MMEngine names the folders by the time of the start.
    files = sorted(Path(work_dir).glob(f'*/vis_data/{name}'))
    if not files:
        raise FileNotFoundError(f'{work_dir} holds no vis_data/{name}.')
    return [
        json.loads(line)
        for file in (files[-1:] if newest_only else files)
        for line in file.read_text().splitlines()
    ]
