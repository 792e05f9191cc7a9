"""What a training ran on: written beside its log when it starts."""

import json
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from mmengine.dist import get_world_size, master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import Dataset

from sb_mm.files import write_in_one_step

RUN_INFO_FILE = 'run_info.json'
_REPOSITORY = Path(__file__).resolve().parents[3]
_CODE = ('sb_mm', 'configs', 'tools')  # what a training depends on
_PACKAGES = (
    'sb_mm',
    'numpy',
    'torch',
    'torchvision',
    'mmcv',
    'onedl-mmcv',
    'mmengine',
    'onedl-mmengine',
    'mmdet',
    'onedl-mmdetection',
    'mmpretrain',
    'onedl-mmpretrain',
)


class RunInfoHook(Hook):
    """Write what no config says to ``<log folder>/vis_data/run_info.json``.

    Number of the start, seed, epochs done before a resume, processes, batch
    of all of them, images and classes of the datasets, parameters,
    hardware, versions and the commit of sb_mm: without them, a result cannot
    be put beside the paper's.
    """

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Write the file."""
        file = Path(runner.log_dir, 'vis_data', RUN_INFO_FILE)
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(run_info(runner), indent=2) + '\n'
        write_in_one_step(file, text)


def run_info(runner: Runner) -> dict:
    """Return what :class:`RunInfoHook` writes."""
    processes = get_world_size()
    model = runner.model
    return dict(
        start=_last_start(Path(runner.work_dir)) + 1,
        seed=runner.seed,
        start_epoch=runner.epoch,
        processes=processes,
        batch=processes * (runner.train_dataloader.batch_size or 1),
        train=describe_data(runner.train_dataloader.dataset),
        val=describe_data(runner.val_dataloader.dataset)
        if runner.val_loop
        else None,
        parameters=sum(p.numel() for p in model.parameters()),
        hardware=hardware(),
        versions=versions(),
        commit=commit(),
        date=date.today().isoformat(),
    )


def _last_start(work_dir: Path) -> int:
    """Return the number of the newest start in a folder, 0 if there is none.

    The folders' names do not tell which it is, as the clocks and time zones
    of machines differ.
    """
    files = work_dir.glob(f'*/vis_data/{RUN_INFO_FILE}')
    return max((_start_number(file) or 0 for file in files), default=0)


def _start_number(file: Path) -> int | None:
    """Return what a start noted, 0 for no number; None if it is not known."""
    try:
        return int(json.loads(file.read_text()).get('start', 0))
    except (AttributeError, OSError, TypeError, ValueError):
        return None


def start_folders(work_dir: Path) -> list[Path]:
    """Return the log folders of all starts in a work directory.

    The oldest first: by their numbers, as clocks and time zones of a
    cluster's nodes differ. Of equal number, such as those of before starts
    were numbered, and of none, such as those that began no training, by name
    and after the one that the name puts before them.
    """
    last, order = 0, []
    for folder in sorted(p.parent for p in work_dir.glob('*/vis_data')):
        number = _start_number(folder / 'vis_data' / RUN_INFO_FILE)
        last = last if number is None else number
        order.append((last, folder))
    return [folder for _, folder in sorted(order)]


def describe_data(dataset: Dataset) -> dict:
    """Return the classes that read the images, and how many there are."""
    # Whatever holds the images, IndexedImages and its like left out.
    source = getattr(dataset, 'dataset', dataset)
    leaves = getattr(source, 'datasets', None) or [source]
    kinds = sorted({type(leaf).__name__ for leaf in leaves})
    return dict(types=kinds, images=len(dataset))


def hardware() -> str:
    """Return the name of the GPU, or threads and kind of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    kind = f'{processor()}, {torch.backends.cpu.get_cpu_capability()}'
    return f'CPU, {torch.get_num_threads()} threads ({kind})'


def processor() -> str:
    """Return the model's name; Python knows the architecture only."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [n.split(':', 1)[1] for n in lines if n.startswith('model name')]
    return names[0].strip() if names else platform.machine()


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that are there.

    Args:
        more: Packages besides PyTorch and the hosts.
    """
    found = dict(python=platform.python_version())
    for name in (*_PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda and torch.cuda.is_available():
        found['cuda'] = torch.version.cuda
        found['cudnn'] = str(torch.backends.cudnn.version())
    return found


def commit(*more: str) -> str:
    """Return the commit, with ``+`` if the code differs from it.

    Args:
        more: Folders of the code besides those that a training depends on.
    """
    changed = _git('status', '--porcelain', '--', *_CODE, *more)
    commit = _git('rev-parse', '--short', 'HEAD')
    return f'{commit}{"+" if changed else ""}' if commit else 'unknown'


def _git(*args: str) -> str:
    try:
        done = subprocess.run(
            ['git', '-C', str(_REPOSITORY), *args],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # git is not installed
        return ''
    return done.stdout.strip()
