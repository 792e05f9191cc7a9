"""The generated files are up to date, and say what was measured only."""

import json

import pytest
import yaml

from sb_mm.paper.cells import REPOSITORY, load_cells
from sb_mm.paper.records import read_records
from sb_mm.paper.report import generate, leaves, stale


def _row(text, cell_id):
    (line,) = [x for x in text.splitlines() if f'`{cell_id}`' in x]
    return [part.strip() for part in line.strip('|').split('|')]


@pytest.fixture(scope='module')
def files():
    return generate([])


@pytest.mark.slow
def test_no_generated_file_is_stale():
    outdated = stale(generate(read_records()))
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
    made = generate(records)
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
    assert _row(reduced, 't6-x0.5-sb')[1] == '`train_cfg.max_epochs=1`'
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
    assert len(index['Import']) == 3


def test_a_changed_file_is_stale(files, tmp_path):
    path = REPOSITORY / 'model-index.yml'
    assert stale({path: path.read_text()}) == []
    assert stale({path: path.read_text() + ' '}) == ['model-index.yml']


def test_records_in_the_repository_are_readable():
    for record in read_records():
        assert json.loads(record.to_line())['final'] == record.final
