"""The generated files are up to date, and say what was measured only."""

import pytest
import yaml

from sb_mm.paper.cells import REPOSITORY, load_cells
from sb_mm.paper.records import Results, read_results
from sb_mm.paper.report import generate, leaves, stale


def _row(text, cell_id):
    (line,) = [x for x in text.splitlines() if f'`{cell_id}`' in x]
    return [part.strip() for part in line.strip('|').split('|')]


@pytest.fixture(scope='module')
def files():
    return generate(Results([], []))


@pytest.mark.slow
def test_no_generated_file_is_stale():
    outdated = stale(generate())
    assert not outdated, 'run: python tools/paper.py report'


def test_without_records_every_cell_says_not_run(files):
    text = files[REPOSITORY / 'docs/results.md']
    for cell in load_cells():
        assert _row(text, cell.id)[6:] == ['not run', '', '']


def test_records_become_mean_deviation_and_difference(make_record):
    records = [
        make_record('t6-x0.35-sb', 90.0),
        make_record('t6-x0.35-sb', 92.0, seed=1),
        make_record('t6-x0.5-sb', 50.0, deviations=['train_cfg.max_epochs=1']),
        make_record('t4-ssd-mobilenetv2-x0.5-se', 12.0),
    ]
    made = generate(Results(records, []))
    text = made[REPOSITORY / 'docs/results.md']
    # 91 - 91.22; the sample deviation of 90 and 92 is sqrt(2).
    assert _row(text, 't10-x0.35-hidden-x1')[5:] == [
        '91.220 ± 0.137',
        '91.000 ± 1.414',
        '-0.220',
        'seeds 0, 1; 200 epochs, GPU, commit abc',
    ]
    failed = _row(text, 't4-ssd-mobilenetv2-x0.5-se')
    assert failed[5:8] == ['/', '12.000', '']
    full, reduced = text.split('## Reduced runs')
    assert _row(full, 't6-x0.5-sb')[6] == 'not run'
    assert '### Recipe 1\n\n- `train_cfg.max_epochs=1`\n' in reduced
    assert _row(reduced, 't6-x0.5-sb')[1:5] == ['', '50.000', '0', '50.00']
    meta = yaml.safe_load(made[REPOSITORY / 'configs/cifar10/metafile.yml'])
    results = {m['Name']: m.get('Results') for m in meta['Models']}
    assert [v for v in results.values() if v] == [
        [
            dict(
                Task='Image Classification',
                Dataset='CIFAR-10',
                Metrics={'Top 1 Accuracy': 91.0},
            )
        ]
    ]


@pytest.mark.parametrize(
    ('folder', 'count'), [('imagenet', 24), ('cifar10', 16), ('voc', 16)]
)
def test_metafiles_hold_every_leaf_with_its_size(folder, count, files):
    meta = yaml.safe_load(files[REPOSITORY / f'configs/{folder}/metafile.yml'])
    assert len(meta['Models']) == len(leaves(folder)) == count
    for model in meta['Models']:
        assert (REPOSITORY / model['Config']).is_file()
        assert model['In Collection'] == meta['Collections'][0]['Name']
        assert 'Results' not in model
    sizes = {m['Name']: m['Metadata'] for m in meta['Models']}
    known = dict(
        imagenet='mobilenetv2-sb-w0.35_1xb256-300e_in1k',
        cifar10='mobilenetv2-sb-w0.35_1xb128-200e_cifar10',
        voc='ssdlite_mobilenetv2-sb-w1.0_1xb32-200e_voc0712',
    )
    parameters = dict(imagenet=2_700_348, cifar10=1_440_510, voc=11_413_134)
    assert sizes[known[folder]]['Parameters'] == parameters[folder]
    if folder == 'imagenet':
        assert sizes[known[folder]]['FLOPs'] == 60_284_656


def test_the_index_names_every_metafile(files):
    index = yaml.safe_load(files[REPOSITORY / 'model-index.yml'])
    assert all((REPOSITORY / name).is_file() for name in index['Import'])
    assert len(index['Import']) == 4


def test_a_changed_file_is_stale(files, tmp_path):
    path = REPOSITORY / 'model-index.yml'
    assert stale({path: path.read_text()}) == []
    assert stale({path: path.read_text() + ' '}) == [path]


def test_a_failed_training_is_a_slash_in_the_table(make_record):
    records = [
        make_record('t6-x0.35-sb', 10.0),
        make_record('t6-x0.35-sb', 91.0, seed=1),
        make_record('t6-x0.5-sb', None, history=[]),
    ]
    made = generate(Results(records, ['table6.jsonl line 9 is broken']))
    text = made[REPOSITORY / 'docs/results.md']
    assert _row(text, 't6-x0.35-sb')[6] == '91.000 (1 of 2 runs: /)'
    assert _row(text, 't6-x0.5-sb')[6:8] == ['/', '']
    assert '## Records left out\n\n- table6.jsonl line 9 is broken\n' in text
    meta = yaml.safe_load(made[REPOSITORY / 'configs/cifar10/metafile.yml'])
    measured = [m['Name'] for m in meta['Models'] if 'Results' in m]
    assert measured == ['mobilenetv2-sb-w0.35_1xb128-200e_cifar10']


def test_claims_are_judged_for_each_recipe_on_its_own(make_record):
    full = [
        make_record(cell, mean + seed / 10, seed=seed)
        for cell, mean in (('t6-x0.35-sb', 91.0), ('t6-x0.35-static', 90.0))
        for seed in range(3)
    ]
    short = [
        make_record(cell, mean, deviations=['train_cfg.max_epochs=1'])
        for cell, mean in (('t6-x0.35-sb', 40.0), ('t6-x0.35-static', 45.0))
    ]
    made = generate(Results([*full, *short], []))
    text = made[REPOSITORY / 'docs/results.md']
    full_text, reduced = text.split('## Reduced runs')
    claim = 'SB is better than the static network.'
    (row,) = [x for x in full_text.splitlines() if claim in x]
    # One width of four was run.
    assert row.endswith('| **open** (pairs: 1 supported, 3 open) |')
    (row,) = [x for x in reduced.splitlines() if claim in x]
    assert '|  | -5.00 |  | open (a single run is no test) |' in row


def test_changed_networks_stand_in_the_table_of_their_recipe(make_record):
    short, after = 'train_cfg.max_epochs=1', 'model.backbone.attention_after'
    before_norm = [f'{after}=conv', short]
    records = [
        make_record('t6-x0.35-sb', 45.0, seed=1, deviations=[short]),
        make_record('t6-x0.35-sb', 41.0, seed=0, deviations=[short]),
        make_record('t6-x0.35-sb', 30.0, deviations=before_norm),
        make_record('t6-x0.35-static', 20.0, deviations=before_norm),
        make_record('t6-x0.35-dyconv', 10.5, deviations=before_norm[:1]),
    ]
    made = generate(Results(records, []))
    reduced = made[REPOSITORY / 'docs/results.md'].split('## Reduced runs')[1]
    first, second = reduced.split('### Recipe ')[1:]
    rows = [x for x in first.splitlines() if x.startswith('| `t6')]
    change = '`backbone.attention_after=conv`'
    assert rows[0].startswith('| `t6-x0.35-sb` |  | 43.000 ± 2.828 | 0, 1 | ')
    assert rows[1].startswith(f'| `t6-x0.35-sb` | {change} | 30.000 | 0 | ')
    # Only runs whose networks are changed alike are compared.
    claims = first.split('against the unchanged ones')[0]
    (row,) = [x for x in claims.splitlines() if 'a single run' in x]
    assert f'| {change} | +10.00 |' in row
    assert second.startswith("2\n\nThe paper's recipe, with changed networks.")
    assert '10.500 |' not in second  # at chance
    assert f'| `t6-x0.35-dyconv` | {change} | / | 0 | 10.50 (/) |' in second


def test_changed_networks_are_set_against_the_unchanged_ones(make_record):
    def runs(cell, finals, *changed):
        deviations = [*changed, 'train_cfg.max_epochs=1']
        return [
            make_record(cell, final, seed=seed, deviations=deviations)
            for seed, final in enumerate(finals)
        ]

    offset, norm = 'model.backbone.x=4', 'model.backbone.y=False'
    records = [
        *runs('t6-x0.35-sb', [20.0, 22.0, 24.0]),
        *runs('t6-x0.35-sb', [40.0, 42.0, 44.0], offset),
        *runs('t6-x0.35-sb', [30.0], norm),
        # There is nothing to set this against.
        *runs('t6-x0.35-static', [50.0, 51.0], offset),
    ]
    text = generate(Results(records, []))[REPOSITORY / 'docs/results.md']
    part = text.split('against the unchanged ones')[1]
    rows = [x for x in part.splitlines() if x.startswith('| `')]
    # Welch of two samples of three with the deviation 2: 4 degrees of
    # freedom, 2.776 * sqrt(8 / 3) = 4.53.
    assert rows == [
        '| `t6-x0.35-sb` | `backbone.x=4` | +20.00 | +15.47 to +24.53 | '
        'better |',
        '| `t6-x0.35-sb` | `backbone.y=False` | +8.00 |  | open (a single '
        'run is no test) |',
    ]


def test_records_in_the_repository_are_whole():
    found = read_results()
    assert not found.refused
    assert found.records
