"""Training and testing through MMEngine's runner."""

# The linter takes `test` for one of pytest.
# ruff: noqa: PT028

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from sb_mm.errors import UserInputError, first_line
from sb_mm.files import check_writable
from sb_mm.weights import weights_only

from .checks.checkpoint import check_checkpoint, check_start, newest_checkpoint
from .checks.data import check_data
from .checks.options import check_values
from .hooks import ResumedScheduleHook
from .memory import keep_freed_memory
from .work_dir import lock_work_dir

# What MMEngine raises at a checkpoint of another form than its own.
_MALFORMED = (
    *(AssertionError, AttributeError, IndexError),
    *(KeyError, TypeError, ValueError),
)


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
        resume: Checkpoint to go on from; ``'auto'`` for the newest in the
            work directory.
        amp: Automatic mixed precision.
        auto_scale_lr: Scale the learning rate with the total batch size.
        trust: Run the code that a checkpoint may bring with it.
        check: Look at data and checkpoint before the model is built; without
            it at the lists of classes only.

    Returns:
        The last validation's metrics, if any.

    Raises:
        UserInputError: Before the model is built, if anything that the
            training needs is missing or does not fit.
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
    loaders = ('train_dataloader', 'val_dataloader')
    _check_device(cfg)
    check_values(cfg, loaders)
    if first := _is_first_process(cfg.launcher):
        check_data(cfg, loaders, files=check)
        if check:
            check_start(cfg, trust)
    lock = lock_work_dir(cfg.work_dir) if first else nullcontext()
    with lock, weights_only(not trust):
        runner = build_runner(cfg)
        runner.register_hook(ResumedScheduleHook())
        runner.load_or_resume = partial(
            _load_or_say_why, runner.load_or_resume, cfg.get('load_from')
        )
        runner.train()
        # The runner and its loops hold each other: Python would end the
        # dataloader workers at any time and in any order.
        for loop in filter(None, (runner.train_loop, runner.val_loop)):
            loop.dataloader._iterator = None
    _leave_processes()
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
        out: The predictions are written there, a ``.pkl``.
        show: Show the predictions in a window.
        show_dir: Write images with the predictions there.
        wait_time: Seconds that a window stays.
        trust: See :func:`train`.
        check: The same.

    Returns:
        The metrics.

    Raises:
        UserInputError: Before the model is built, if anything that the test
            needs is missing or does not fit.
    """
    if out is not None:
        with suppress(OSError):  # which the next line explains
            Path(out).parent.mkdir(parents=True, exist_ok=True)
        check_writable(Path(out), '.pkl', '.pickle')
    cfg.load_from = checkpoint
    if show or show_dir:
        _show(cfg, show, show_dir, wait_time)
    loaders = ('test_dataloader',)
    _check_device(cfg)
    check_values(cfg, loaders)
    if _is_first_process(cfg.launcher):
        check_data(cfg, loaders, files=check)
        if check:
            check_checkpoint(cfg, checkpoint, trust)
    with weights_only(not trust):
        runner = build_runner(cfg)
        if out is not None:
            dump = _dump_class(cfg)(out_file_path=out)
            runner.test_evaluator.metrics.append(dump)
        metrics = runner.test()
    _leave_processes()
    return metrics


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for."""
    if not torch.cuda.is_available():
        keep_freed_memory()
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        _join_cpu_processes(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _is_first_process(launcher: str) -> bool:
    """Return whether this process checks, before all have joined."""
    names = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    rank = next((os.environ[n] for n in names if n in os.environ), '0')
    return launcher == 'none' or rank == '0'


def _join_cpu_processes(cfg: Config) -> None:
    """Do without the CUDA device that MMEngine selects for each process."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    wrapper = cfg.get('model_wrapper_cfg') or dict(broadcast_buffers=False)
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _leave_processes() -> None:
    """Leave together: else one that ends aborts what others still write."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _load_or_say_why(load: Callable[[], None], path: str | None) -> None:
    """Load a checkpoint, with a sentence for what its readers raise."""
    try:
        load()
    except UserInputError:
        raise
    except _MALFORMED as error:
        raise UserInputError(
            f'The checkpoint {path} does not fit this training '
            f'({first_line(error)}): use the config that it was made with, '
            f'or start from its weights, with --cfg-options load_from={path} '
            'and without --resume.'
        ) from error


def _check_device(cfg: Config) -> None:
    """Raise if the config needs a GPU and there is none."""
    if get_device() != 'cpu':
        return
    if 'AmpOptimWrapper' in str(cfg.get('optim_wrapper')):
        raise UserInputError(
            "MMEngine's AmpOptimWrapper (--amp) needs a GPU: leave it out on "
            'this machine.'
        )
    detects = cfg.get('default_scope') == 'mmdet'  # its metrics need float32
    for name in ('val_cfg', 'test_cfg') if detects else ():
        if (cfg.get(name) or {}).get('fp16'):
            raise UserInputError(
                f'{name}.fp16 needs a GPU: leave it out on this machine.'
            )
    synchronised = cfg.get('sync_bn') or 'SyncBN' in str(cfg.model)
    alone = cfg.launcher == 'none' and 'MMSyncBN' not in str(cfg.model)
    if synchronised and not alone:
        raise UserInputError(
            'SyncBN in several processes needs GPUs: use one process, or '
            "norm_cfg=dict(type='BN') and no sync_bn on this machine."
        )


def _scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UserInputError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in '
            'the config.'
        )
    cfg.auto_scale_lr.enable = True


def _show(
    cfg: Config, show: bool, folder: str | None, wait_time: float
) -> None:
    """Draw predictions, through the config's visualisation hook."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserInputError(
            '--show and --show-dir need default_hooks.visualization in the '
            'config.'
        )
    # mmpretrain's hook has another word for it, and one folder option.
    classifies = cfg.get('default_scope') == 'mmpretrain'
    drawn = 'enable' if classifies else 'draw'
    hook.update({drawn: True, 'show': show, 'wait_time': wait_time})
    if folder:
        hook['out_dir' if classifies else 'test_out_dir'] = folder


def _dump_class(cfg: Config) -> type[DumpResults]:
    """Return mmdet's for detectors, which compresses masks."""
    if cfg.get('default_scope') != 'mmdet':
        return DumpResults
    from mmdet.evaluation import DumpDetResults

    class DumpWithTruth(DumpDetResults):
        """Keep what mmdet's own ``eval_metric.py`` asks for."""

        def process(self, data_batch: dict, data_samples: list[dict]) -> None:
            start = len(self.results)
            super().process(data_batch, data_samples)
            for packed, sample in zip(
                self.results[start:], data_samples, strict=True
            ):
                truth = ('gt_instances', 'ignored_instances')
                packed.update({k: sample[k] for k in truth if k in sample})

    return DumpWithTruth
