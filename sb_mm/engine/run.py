"""Training and testing through MMEngine's runner."""

import argparse
import os.path as osp

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from sb_mm.checkpoint import load_checkpoint_file, weights_only
from sb_mm.errors import UserInputError

from .config import load_config
from .preflight import check_checkpoint, check_data, pretrained_files
from .run_info import RunInfoHook


def train(args: argparse.Namespace) -> dict:
    """Train as ``tools/train.py`` is told to.

    Args:
        args: ``config``, the common options, ``amp``, ``auto_scale_lr`` and
            ``resume``.

    Returns:
        The last validation's metrics, if any.

    Raises:
        UserInputError: Before the model is built, if anything that the run
            needs is missing or does not fit.
    """
    cfg = load_config(args)
    if args.amp:
        _use_amp(cfg)
    if args.auto_scale_lr:
        _scale_lr(cfg)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    _check_start(cfg, args.trust_checkpoint)
    with weights_only(not args.trust_checkpoint):
        runner = build_runner(cfg)
        runner.register_hook(RunInfoHook())
        runner.train()
    _leave_processes()
    return last_metrics(runner)


def test(args: argparse.Namespace) -> dict:
    """Test as ``tools/test.py`` is told to.

    Args:
        args: ``config``, ``checkpoint``, the common options, ``out``,
            ``show``, ``show_dir`` and ``wait_time``.

    Returns:
        The metrics.

    Raises:
        UserInputError: Before the model is built, if anything that the run
            needs is missing or does not fit.
    """
    with weights_only(not args.trust_checkpoint):
        metrics = test_runner(args).test()
    _leave_processes()
    return metrics


def test_runner(args: argparse.Namespace) -> Runner:
    """Check the input of a test and return the runner that will do it.

    See :func:`test` for the arguments and errors.
    """
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise UserInputError(
            f'--out must end in .pkl or .pickle, but got {args.out}.'
        )
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        _show(cfg, args)
    check_data(cfg, ('test_dataloader',))
    check_checkpoint(cfg, args.checkpoint, args.trust_checkpoint)
    runner = build_runner(cfg)
    if args.out is not None:
        _dump_predictions(cfg, runner, args.out)
    return runner


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for."""
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        _join_cpu_processes(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _join_cpu_processes(cfg: Config) -> None:
    """Let torchrun's processes train on CPUs.

    MMEngine's launcher selects a CUDA device before it joins the group, and
    hands the device's number to the wrapper; both stop without a GPU.
    """
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    wrapper = cfg.get('model_wrapper_cfg') or dict(broadcast_buffers=False)
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _leave_processes() -> None:
    """Leave the process group together.

    A process that ends while another still writes a checkpoint or measures
    can take the group's threads down in the middle of their work: it aborts,
    and the launcher then kills the others.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def last_metrics(runner: Runner) -> dict:
    """Return the newest value of every metric of the validation loop."""
    scalars = runner.message_hub.log_scalars
    return {
        name.removeprefix('val/'): history.current()
        for name, history in scalars.items()
        if name.startswith('val/')
    }


def _check_start(cfg: Config, trust: bool) -> None:
    """Check the checkpoints that a run continues or starts from."""
    path = cfg.get('load_from')
    if not cfg.get('resume'):
        # Fine-tuning: another head is what the user wants, so only that the
        # files can be loaded is checked; MMEngine logs what does not fit.
        for file in [path, *pretrained_files(cfg.model)]:
            if file and '://' not in file:
                load_checkpoint_file(file, trust=trust)
        return
    if path is None and osp.isdir(cfg.work_dir):
        path = find_latest_checkpoint(cfg.work_dir)
    if path is not None:
        check_checkpoint(cfg, path, trust)


def _use_amp(cfg: Config) -> None:
    if not torch.cuda.is_available():
        raise UserInputError(
            "--amp needs a GPU, as MMEngine's AmpOptimWrapper does: leave it "
            'out on this machine.'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def _scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UserInputError(
            '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in '
            'the config.'
        )
    cfg.auto_scale_lr.enable = True


def _show(cfg: Config, args: argparse.Namespace) -> None:
    """Draw predictions, through the config's visualisation hook."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserInputError(
            '--show and --show-dir need default_hooks.visualization in the '
            'config.'
        )
    # mmpretrain's hook has another word for it, and one folder option.
    drawn = 'enable' if cfg.get('default_scope') == 'mmpretrain' else 'draw'
    folder = 'out_dir' if drawn == 'enable' else 'test_out_dir'
    hook.update({drawn: True, 'show': args.show, 'wait_time': args.wait_time})
    if args.show_dir:
        hook[folder] = args.show_dir


def _dump_predictions(cfg: Config, runner: Runner, path: str) -> None:
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.evaluation import DumpDetResults as Dump
    else:
        from mmengine.evaluator import DumpResults as Dump
    runner.test_evaluator.metrics.append(Dump(out_file_path=path))
