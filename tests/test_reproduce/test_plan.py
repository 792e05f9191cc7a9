"""Which runs are done, with which configs, and what is known of them."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sb_mm.errors import UserInputError
from sb_mm.paper.cells import find_cell, select_cells
from sb_mm.paper.runs import _NEEDED, config_deviations
from sb_mm.reproduce import commands
from sb_mm.reproduce.cluster import Share, _place
from sb_mm.reproduce.commands import Engine, Selection
from sb_mm.reproduce.recipe import Recipe
from sb_mm.reproduce.runs import Run
from sb_mm.reproduce.slurm import array_script

REPOSITORY = Path(__file__).resolve().parents[2]
SB = find_cell('t6-x0.35-sb')


def _names(runs):
    return [run.name for run in runs]


@pytest.fixture
def make_run(tmp_path):
    def make(cell=SB, seed=0, **recipe):
        return Run(cell, seed, Recipe(**recipe), tmp_path)

    return make


def test_a_table_gives_its_cells_once_for_each_seed(tmp_path):
    selection = Selection(tables=[6], widths=[0.35, 0.5], seeds=[3, 1])
    runs = commands.plan(selection, Recipe(), tmp_path)
    cells = [c.id for c in select_cells(6) if c.width in (0.35, 0.5)]
    assert len(cells) == 6
    # The first seed of every cell first.
    assert _names(runs) == [f'{c} seed {s}' for s in (3, 1) for c in cells]
    assert len({run.work_dir for run in runs}) == 12


def test_cells_that_tables_repeat_are_done_once(tmp_path):
    selection = Selection(
        cells=['t6-x0.35-sb', 't9-x0.35-gate-tanh', 't6-x0.35-static']
    )
    runs = commands.plan(selection, Recipe(), tmp_path)
    assert _names(runs) == ['t6-x0.35-sb seed 0', 't6-x0.35-static seed 0']


def test_one_run_is_picked_by_its_number(tmp_path):
    selection = Selection(tables=[6], attentions=['SB'], seeds=[0, 1])
    runs = commands.plan(selection, Recipe(), tmp_path)
    (only,) = commands.plan(selection, Recipe(), tmp_path, only=5)
    assert only.name == runs[5].name == 't6-x0.5-sb seed 1'
    with pytest.raises(UserInputError, match='--only must be .* 8'):
        commands.plan(selection, Recipe(), tmp_path, only=8)


@pytest.mark.parametrize(
    ('selection', 'message'),
    [
        (Selection(), 'Nothing to reproduce'),
        (Selection(tables=[11]), 'no table 11'),
        (Selection(tables=[6], widths=[0.4]), 'no width 0.4'),
        (Selection(tables=[10], widths=[0.5]), 'No cell of table 10'),
        (Selection(tables=[6], attentions=['SE']), 'No cell of table 6'),
        (Selection(cells=['t6-sb']), "no cell 't6-sb'"),
        (Selection(cells=[SB.id], widths=[0.5]), 'select from a table'),
        (Selection(cells=[SB.id], attentions=['SB']), 'select from a table'),
        (Selection(tables=[6], seeds=[1, 1]), 'names a seed twice'),
        (Selection(tables=[6], seeds=[-1]), '--seeds must be'),
    ],
    ids=str,
)
def test_what_does_not_exist_is_refused(selection, message, tmp_path):
    with pytest.raises(UserInputError, match=message):
        commands.plan(selection, Recipe(), tmp_path)


def test_a_file_cannot_hold_the_runs(tmp_path):
    file = tmp_path / 'file'
    file.touch()
    for root in (file, file / 'out'):
        with pytest.raises(UserInputError, match='file is a file: give an'):
            commands.plan(Selection(tables=[6]), Recipe(), root)


def test_a_data_set_that_cannot_be_made_is_named(make_run, cifar):
    options = {'train_dataloader.dataset.indices': 'abc'}
    run = make_run(options=options, data_root=cifar)
    with pytest.raises(UserInputError, match=r'PackedCIFAR10 cannot be made'):
        commands._check_inputs([run], Engine())


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Recipe(epochs=0), '--epochs must be'),
        (lambda: Engine(jobs=0), '--jobs must be'),
        (lambda: Engine(retries=-1), '--retries must be'),
        (lambda: commands.Share(cpus=0), '--cpus-per-run must be'),
        (lambda: commands.Share(gpus=-0.5), '--gpus-per-run must be'),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(UserInputError, match=message):
        make()


def test_the_paper_recipe_is_no_deviation(make_run, cifar):
    for run in (
        make_run(data_root=cifar),
        make_run(data_root=cifar, on_device=False),
        make_run(data_root=cifar, compile='default'),
        make_run(find_cell('t4-ssd-mobilenetv2-x0.35-sb')),
        make_run(find_cell('t1-sb-x0.35')),
    ):
        assert config_deviations(run.cell, run.config()) == []
        assert run.recipe.name.split('-')[0] == 'full'
    changed = config_deviations(SB, make_run(amp=True).config())
    assert changed == [
        'optim_wrapper.dtype=bfloat16',
        'optim_wrapper.loss_scale.enabled=False',
        'optim_wrapper.type=AmpOptimWrapper',
    ]


@pytest.mark.parametrize(
    'options',
    [
        {'train_dataloader.num_workers': 3},
        {'train_dataloader': {'num_workers': 3}},
        {'val_dataloader.collate_fn.type': 'pseudo_collate'},
        {'val_cfg.type': 'ValLoop'},
    ],
    ids=str,
)
def test_what_has_no_effect_on_the_device_is_refused(make_run, options):
    run = make_run(options=options)
    with pytest.raises(
        UserInputError, match=r'\w+\.\w+ has no effect .* --host'
    ):
        run.config()
    host = make_run(
        options={'train_dataloader.num_workers': 3}, on_device=False
    )
    assert host.config().train_dataloader.num_workers == 3


def test_attention_is_found_in_any_case():
    done = subprocess.run(
        [
            sys.executable, 'tools/reproduce.py', '--table', '6', '--width',
            '0.35', '--attention', 'sb', 'DYCONV', '--dry-run',
        ],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 't6-x0.35-sb seed 0' in done.stdout
    assert 't6-x0.35-dyconv seed 0' in done.stdout
    assert 'static' not in done.stdout


def test_a_changed_recipe_has_its_own_folder(make_run):
    recipes = [
        dict(),
        dict(epochs=3),
        dict(epochs=4),
        dict(epochs=3, options={'optim_wrapper.optimizer.lr': 0.2}),
        dict(amp=True),
    ]
    assert len({make_run(**r).work_dir for r in recipes}) == 5
    same = make_run(epochs=3, on_device=False)
    assert same.work_dir == make_run(epochs=3).work_dir
    # There may be other images.
    other = make_run(epochs=3, data_root='elsewhere')
    assert other.work_dir != same.work_dir


def test_a_cell_that_is_named_twice_is_planned_once(tmp_path):
    named = Selection(tables=[6, 6], widths=[0.35], cells=['t6-x0.35-sb'] * 2)
    runs = commands.plan(named, Recipe(), tmp_path)
    assert sorted(run.cell.id for run in runs) == [
        't6-x0.35-dyconv', 't6-x0.35-sb', 't6-x0.35-static',
    ]  # fmt: skip


def test_a_run_of_other_data_or_batch_is_no_full_one(
    make_run, make_record, cifar
):
    full = make_run(data_root=cifar)  # other data again
    for found in ('batch of all processes=8', 'train images=16'):
        assert not full.find_in([make_record(SB.id, deviations=[found])])
    assert full.find_in([make_record(SB.id)])
    half = make_run(options={'train_dataloader.batch_size': 64})
    assert not half.find_in([make_record(SB.id)])
    batch = make_record(SB.id, deviations=['batch of all processes=64'])
    assert half.find_in([batch])


@pytest.mark.parametrize(
    'key',
    ['default_hooks.checkpoint.interval', 'randomness.seed', 'compile'],
)
def test_settings_of_the_tool_itself_are_refused(key):
    with pytest.raises(UserInputError, match=f'{key} is set by this tool'):
        Recipe(options={key: 1})


def test_the_epochs_are_set_once():
    with pytest.raises(UserInputError, match='both set the epochs'):
        Recipe(3, {'train_cfg.max_epochs': 7})


def test_the_config_of_a_run_has_what_was_asked_for(make_run, cifar):
    run = make_run(
        seed=7, epochs=100, data_root=cifar, compile='reduce-overhead'
    )
    cfg = run.config()
    assert cfg.randomness.seed == 7
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.work_dir == str(run.work_dir)
    data = cfg.train_dataloader.dataset
    assert data.type == 'sb_mm.IndexedImages'
    assert data.dataset.type == 'sb_mm.PackedCIFAR10'
    assert data.dataset.data_root == cifar
    # A twentieth of the epochs can be lost, and the best is not looked for.
    assert cfg.default_hooks.checkpoint.interval == 5
    # A line tells the time of all iterations since the last one.
    assert cfg.log_processor.window_size == cfg.default_hooks.logger.interval
    assert 'save_best' not in cfg.default_hooks.checkpoint
    assert [h.type for h in cfg.custom_hooks] == [
        'sb_mm.EpochSeedHook',
        'sb_mm.CompileHook',
    ]
    assert cfg.custom_hooks[-1].mode == 'reduce-overhead'
    hook = cfg.default_hooks.runtime_info
    assert hook.type == 'sb_mm.DeferredRuntimeInfoHook'
    assert cfg.optim_wrapper.optimizer.fused
    assert 10_000 % cfg.val_dataloader.batch_size == 0
    host = make_run(data_root=cifar, on_device=False).config()
    assert host.train_dataloader.dataset.type == 'sb_mm.PackedCIFAR10'
    assert host.train_dataloader.num_workers == 2
    own = {
        'val_dataloader.batch_size': 64,
        'optim_wrapper.optimizer.fused': False,
    }
    cfg = make_run(data_root=cifar, options=own).config()
    assert cfg.val_dataloader.batch_size == 64
    assert not cfg.optim_wrapper.optimizer.fused
    own = {'optim_wrapper.optimizer.foreach': True}
    # PyTorch takes one of the two.
    assert (
        'fused' not in make_run(options=own).config().optim_wrapper.optimizer
    )


def test_an_option_that_names_nothing_is_refused(make_run):
    run = make_run(options={'optim_wrapper.optimiser.lr': 1})
    with pytest.raises(UserInputError, match='optimiser'):
        run.config()


def test_a_recorded_run_is_known_by_recipe_and_seed(make_run, make_record):
    options = {
        'train_dataloader.batch_size': 8,
        'train_dataloader.dataset.indices': 16,
    }
    run = make_run(epochs=3, options=options)
    recorded = make_record(
        # The same experiment in another table, with what the run found.
        't9-x0.35-gate-tanh',
        deviations=[
            'train_cfg.max_epochs=3',
            'train_dataloader.dataset.indices=16',
            'train_dataloader.dataset.type=CIFAR10',
            'train images=16',
            'batch of all processes=8',
        ],
    )
    assert run.find_in([recorded])
    assert not run.find_in([])
    assert not make_run(seed=1, epochs=3).find_in([recorded])
    assert not make_run(epochs=4).find_in([recorded])
    assert not make_run().find_in([recorded])
    static = find_cell('t6-x0.35-static')
    assert not make_run(static, epochs=3).find_in([recorded])


def test_a_record_of_other_data_counts_for_those_data(
    make_run, make_record, cifar
):
    run = make_run(epochs=3, data_root=cifar)
    found = ['train_cfg.max_epochs=3', 'train images=16', 'val images=10']
    # The same experiment under another table.
    recorded = make_record('t9-x0.35-gate-tanh', deviations=found)
    assert run.find_in([recorded]) is recorded
    other = [*found[:2], 'val images=9']
    assert not run.find_in([make_record(SB.id, deviations=other)])
    whole = make_record(SB.id, deviations=found[:1])
    assert run.find_in([whole, recorded]) is whole


def _log(run, lines, images=100):
    folder = run.work_dir / '20260101_000000/vis_data'
    folder.mkdir(parents=True)
    info = dict.fromkeys(_NEEDED)
    info.update(train=dict(images=images), batch=32)
    (folder / 'run_info.json').write_text(json.dumps(info))
    (folder / 'scalars.json').write_text('\n'.join(lines))


def test_progress_is_read_from_the_log(make_run):
    run = make_run()
    assert run.progress().epochs == 0
    # 100 images are 4 batches of 32: 6 are an epoch and a half.
    _log(
        run,
        [
            json.dumps({'loss': 2.0, 'step': 4, 'epoch': 1}),
            json.dumps({'accuracy/top1': 33.0, 'step': 1}),
            json.dumps({'loss': 1.5, 'step': 6, 'epoch': 2}),
            '{"loss": 1.4, "st',  # being written
        ],
    )
    progress = run.progress()
    assert (progress.epochs, progress.loss, progress.metric) == (1.5, 1.5, 33)


def test_progress_of_a_long_log_is_read_from_its_end(make_run):
    run = make_run()
    lines = [json.dumps({'loss': 9.0, 'step': n}) for n in range(1, 5000)]
    _log(run, [*lines, json.dumps({'loss': 1.0, 'step': 5000})])
    assert run.progress().epochs == 1250
    assert math.isnan(run.progress().metric)


def test_a_damaged_run_does_not_stop_the_others(make_run):
    run = make_run()
    _log(run, [json.dumps({'loss': 2.0, 'step': 4})])
    (info,) = run.work_dir.glob('*/vis_data/run_info.json')
    info.write_text('')  # the disk was full
    run.config().dump(str(info.with_name('config.py')))
    (run.work_dir / 'epoch_1.pth').touch()
    assert run.progress().loss == 2
    assert run.result() is None
    with pytest.raises(UserInputError, match='run_info.json is damaged: del'):
        run.check_resume()


def test_the_script_for_slurm_does_one_run_in_each_job():
    words = ['--table', '6', '--data-root', 'my data', '--cpus-per-run', '4']
    words += ['--slurm', '--gpus-per-run=0.25']
    script = array_script(words, runs=12, cpus=4, gpus=0.25)
    assert '#SBATCH --array=0-11\n' in script
    assert '#SBATCH --cpus-per-task=4\n' in script
    assert '#SBATCH --gres=gpu:1\n' in script
    assert script.endswith(
        "python tools/reproduce.py --table 6 --data-root 'my data' "
        '--only "$SLURM_ARRAY_TASK_ID"\n'
    )
    assert 'gres=gpu:1' in array_script(words, 1, 1, None)
    assert 'gres' not in array_script(words, 1, 1, 0)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(slurm=True, only=0), '--slurm and --only cannot'),
        (dict(slurm=True, dry_run=True), '--slurm and --dry-run'),
        (dict(slurm=True, ray='auto'), '--slurm and --ray'),
        (dict(ray='auto', jobs=2), '--ray and --jobs'),
        (
            dict(host_loader=True, channels_last=True),
            '--host-loader and --channels-last',
        ),
        (dict(gpus_per_run=0.0), '--gpus-per-run is for --ray and --slurm'),
        (dict(cpus_per_run=2, jobs=1), '--cpus-per-run is for --ray'),
    ],
    ids=str,
)
def test_options_that_would_be_ignored_are_refused(options, message):
    left_out = dict.fromkeys(('only', 'ray', 'jobs', 'cpus_per_run'))
    left_out |= dict(slurm=False, dry_run=False, host_loader=False)
    with pytest.raises(UserInputError, match=message):
        commands.check_options(left_out | options)
    commands.check_options(left_out | dict(ray='auto', gpus_per_run=0.0))
    commands.check_options(left_out | dict(only=0, dry_run=True))


def test_channels_last_is_for_images_on_the_device(make_run):
    run = make_run(find_cell('t1-sb-x0.35'), channels_last=True)
    with pytest.raises(UserInputError, match=r't1-sb-x0\.35 has other data'):
        run.config()


def _cluster(*nodes):
    """A stand-in for Ray, with nodes of these resources."""
    entries = [dict(Alive=bool(n), Resources=n) for n in nodes]
    return SimpleNamespace(nodes=lambda: entries)


def test_a_run_on_ray_gets_a_gpu_where_there_are_some():
    with_gpus = _cluster({}, dict(CPU=4), dict(CPU=4, GPU=2))
    without = _cluster(dict(CPU=4))
    assert _place(with_gpus, Share(), amp=True) == 1
    assert _place(with_gpus, Share(gpus=0.5), amp=True) == 0.5
    assert _place(with_gpus, Share(gpus=0), amp=False) == 0
    assert _place(without, Share(), amp=False) == 0
    for ray, share in ((without, Share()), (with_gpus, Share(gpus=0))):
        with pytest.raises(UserInputError, match='--amp needs a GPU'):
            _place(ray, share, amp=True)
    for ray, share in ((without, Share(cpus=5)), (with_gpus, Share(gpus=3))):
        with pytest.raises(UserInputError, match='No node of the Ray'):
            _place(ray, share, amp=False)
