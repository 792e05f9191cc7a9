"""The demo leaves what it promises, and says when it fails."""

import json

import numpy as np
import pytest
from PIL import Image

from sb_mm.engine import demo as demo_module


@pytest.fixture
def demo(tool):
    """Run tools/demo.py on few images."""

    def run(out, *more):
        few = ['--images', 8, '--epochs', 1, '--workers', 0]
        return tool('demo', '--out', out, *few, *more)

    return run


def test_the_demo_leaves_its_results_in_one_folder(demo, tmp_path, capsys):
    precious = tmp_path / 'run/mine.txt'
    precious.parent.mkdir()
    precious.write_text('not of the demo')
    code, error = demo(tmp_path, '--min-map', 0)
    assert code == 0, error
    assert precious.read_text() == 'not of the demo'
    assert (tmp_path / 'checkpoint.pth').is_file()
    rows = json.loads((tmp_path / 'per_class.json').read_text())
    assert [r['name'] for r in rows['classes']][:2] == ['circle', 'square']
    assert '| circle' in (tmp_path / 'per_class.md').read_text()
    for name in ('curves', 'detections'):
        with Image.open(tmp_path / f'{name}.png') as image:
            pixels = np.asarray(image.convert('RGB'))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    # 4 rows of 2 pairs, each on 4 x 2 inches of 100 pixels.
    assert pixels.shape == (4 * 200, 2 * 400, 3)


def test_a_detector_that_learnt_too_little_fails_the_demo(tool, monkeypatch):
    monkeypatch.setattr(
        demo_module, 'run_demo', lambda **_: {'pascal_voc/mAP': 0.59}
    )
    code, _ = tool('demo')
    assert code == 'error: The mAP is 0.590, below --min-map 0.6.'
    assert tool('demo', '--min-map', 0.5) == (0, '')


@pytest.mark.parametrize(
    ('option', 'value'),
    [('--images', 1), ('--epochs', 0), ('--min-map', 2)],
)
def test_an_option_out_of_range_is_named(tool, tmp_path, option, value):
    code, error = tool('demo', '--out', tmp_path / 'x', option, value)
    assert code == 2
    assert f'error: {option} must be' in error
    assert not (tmp_path / 'x').exists()
