"""Training and testing through MMEngine's runner."""

# ruff: noqa: PT028 (it takes `test` for one of pytest)

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from sb_mm.errors import UserInputError, explain
from sb_mm.files import check_writable
from sb_mm.weights import weights_only

from .checks.checkpoint import check_checkpoint, check_start, newest_checkpoint
from .checks.data import check_data
from .checks.options import check_values
from .hooks import ResumedScheduleHook

# The dataloader workers of a killed training need a moment to end.
_WAIT_SECONDS = 10


def train(
    cfg: Config,
    *,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    trust: bool = False,
    check: bool = True,
) -> dict:
    """Train a model.

    Args:
        cfg: Of :func:`~sb_mm.engine.config.load_config`; changed in place.
        resume: Checkpoint to go on from, or ``'auto'`` for the newest.
        amp: Automatic mixed precision.
        auto_scale_lr: Scale the learning rate with the total batch size.
        trust: Run the code that a checkpoint may bring with it.
        check: Look at data and checkpoint first; else at the classes only.

    Returns:
        The last validation's metrics, if any.

    Raises:
        UserInputError: If anything is missing or does not fit.
    """
    if amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if auto_scale_lr:
        _scale_lr(cfg)
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    if cfg.get('resume') and cfg.get('load_from') is None:
        cfg.load_from = newest_checkpoint(cfg.work_dir)
    look = partial(check_start, cfg, trust)
    first = _check(cfg, ('train_dataloader', 'val_dataloader'), check, look)
    lock = lock_work_dir(cfg.work_dir) if first else nullcontext()
    with lock, weights_only(not trust):
        runner = build_runner(cfg)
        runner.register_hook(ResumedScheduleHook())
        _explain_misfits(runner, cfg.get('load_from'))
        runner.train()
        _end(runner)
    scalars = runner.message_hub.log_scalars
    return {
        name.removeprefix('val/'): history.current()
        for name, history in scalars.items()
        if name.startswith('val/')
    }


def test(
    cfg: Config,
    checkpoint: str,
    *,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    trust: bool = False,
    check: bool = True,
) -> dict:
    """Test a checkpoint.

    Args:
        cfg: Of :func:`~sb_mm.engine.config.load_config`; changed in place.
        checkpoint: File or URL.
        out: File for the predictions, a ``.pkl``.
        show: Show the predictions in a window.
        show_dir: Folder for images with the predictions.
        wait_time: Seconds that a window stays.
        trust: See :func:`train`.
        check: The same.

    Returns:
        The metrics.

    Raises:
        UserInputError: If anything is missing or does not fit.
    """
    if out is not None:
        with suppress(OSError):  # which the next line explains
            Path(out).parent.mkdir(parents=True, exist_ok=True)
        check_writable(Path(out), '.pkl', '.pickle')
    cfg.load_from = checkpoint
    if show or show_dir:
        _show(cfg, show, show_dir, wait_time)
    look = partial(check_checkpoint, cfg, checkpoint, trust)
    _check(cfg, ('test_dataloader',), check, look)
    with weights_only(not trust):
        runner = build_runner(cfg)
        if out is not None:
            # With the true boxes, which mmdet's own would leave out.
            dump = DumpResults(out_file_path=out)
            runner.test_evaluator.metrics.append(dump)
        metrics = runner.test()
    _end(runner)
    return metrics


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for."""
    if not torch.cuda.is_available():
        _keep_freed_memory()
        if cfg.launcher == 'pytorch':
            _join_cpu_processes(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def lock_work_dir(work_dir: str) -> AcquireReturnProxy:
    """Lock the work directory until the context or the process ends."""
    folder = Path(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / '.lock').acquire(timeout=_WAIT_SECONDS)
    except Timeout as error:
        raise UserInputError(
            f'Another training goes on in {folder}: wait for it, stop it, or '
            'give another --work-dir.'
        ) from error


def _check(
    cfg: Config,
    loaders: Sequence[str],
    files: bool,
    check_weights: Callable[[], object],
) -> bool:
    """Check what a run needs, and return whether this process is the first."""
    _check_device(cfg)
    check_values(cfg, loaders)
    ranks = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    rank = next((os.environ[n] for n in ranks if n in os.environ), '0')
    first = cfg.launcher == 'none' or rank == '0'
    if first:
        check_data(cfg, loaders, files=files)
    if first and files:
        check_weights()
    return first


def _check_device(cfg: Config) -> None:
    model, fault = str(cfg.model), None
    if 'AmpOptimWrapper' in str(cfg.get('optim_wrapper')):
        fault = "MMEngine's AmpOptimWrapper (--amp) needs a GPU: leave it out"
    for name in ('val_cfg', 'test_cfg'):
        half = (cfg.get(name) or {}).get('fp16')
        if half and cfg.get('default_scope') == 'mmdet':  # metrics in float32
            fault = f'{name}.fp16 needs a GPU: leave it out'
    several = cfg.launcher != 'none' or 'MMSyncBN' in model
    if several and (cfg.get('sync_bn') or 'SyncBN' in model):
        fault = 'SyncBN in several processes needs GPUs: use one process, or '
        fault += "norm_cfg=dict(type='BN') and no sync_bn"
    if fault and get_device() == 'cpu':
        raise UserInputError(f'{fault} on this machine.')


def _scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UserInputError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in '
            'the config.'
        )
    cfg.auto_scale_lr.enable = True


def _explain_misfits(runner: Runner, path: str | None) -> None:
    remedy = 'use the config that it was made with, or start from its weights,'
    remedy += f' with --cfg-options load_from={path} and without --resume'
    fault = f'The checkpoint {path} does not fit this training'
    # Neither a full disk nor too little memory.
    kinds = AssertionError, AttributeError, LookupError, TypeError, ValueError
    explained = explain(fault, remedy, kinds)
    runner.load_or_resume = explained(runner.load_or_resume)


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones.

    Blocks that the kernel hands out again, page by page and zeroed, cost a
    fifth of a training step of SB MobileNetV2 x0.35.
    """
    libc = ctypes.CDLL(None) if sys.platform == 'linux' else None
    if mallopt := getattr(libc, 'mallopt', None):
        # TRIM_THRESHOLD, TOP_PAD and MMAP_MAX of mallopt(3).
        for name, value in ((-1, 2**31 - 1), (-2, 256 * 2**20), (-4, 0)):
            mallopt(name, value)


def _join_cpu_processes(cfg: Config) -> None:
    """Do without the CUDA device that MMEngine selects for each process."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    wrapper = cfg.get('model_wrapper_cfg') or dict(broadcast_buffers=False)
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _end(runner: Runner) -> None:
    """End the dataloader workers, and leave the other processes together."""
    # The runner and its loops hold each other: Python would end the workers
    # at any time and in any order.
    runner._train_loop = runner._val_loop = runner._test_loop = None
    # A process that ends alone aborts what others still write.
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _show(
    cfg: Config, show: bool, folder: str | None, wait_time: float
) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserInputError(
            '--show and --show-dir need default_hooks.visualization in the '
            'config.'
        )
    draw, out_dir = 'draw', 'test_out_dir'
    if cfg.get('default_scope') == 'mmpretrain':
        draw, out_dir = 'enable', 'out_dir'
    hook.update({draw: True, 'show': show, 'wait_time': wait_time})
    if folder:
        hook[out_dir] = folder
