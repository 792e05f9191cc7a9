"""Drawings of detections, one file an image."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmdet')

from mmcv.transforms import LoadImageFromFile  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402
from mmengine.visualization import Visualizer  # noqa: E402

from sb_mm.engine.hooks.drawing import DrawingHook  # noqa: E402

COLOURS = dict(a=(255, 0, 0), b=(0, 0, 255))


def test_each_image_has_its_drawing_of_the_pixels_that_were_read(
    tmp_path, monkeypatch
):
    """Two of one name; by EXIF, viewers turn them, which the test did not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    infos = []
    for folder, colour in COLOURS.items():
        path = tmp_path / f'images/{folder}/frame.jpg'
        path.parent.mkdir(parents=True)
        Image.new('RGB', (64, 48), colour).save(path, exif=exif)
        infos.append(dict(img_path=str(path)))
    reader = LoadImageFromFile(color_type='color_ignore_orientation')
    dataset = MagicMock(pipeline=SimpleNamespace(transforms=[reader]))
    dataset.__len__.return_value = len(infos)
    dataset.get_data_info = infos.__getitem__
    runner = SimpleNamespace(
        work_dir=str(tmp_path),
        timestamp='now',
        test_dataloader=SimpleNamespace(dataset=dataset),
    )
    drawn = {}
    visualizer = SimpleNamespace(
        add_datasample=lambda _, image, **to: drawn.update(
            {to['out_file']: image}
        )
    )
    monkeypatch.setattr(Visualizer, 'get_current_instance', lambda: visualizer)
    hook = DrawingHook(draw=True, test_out_dir='drawn')
    hook.before_test(runner)
    for batch, info in enumerate(infos):
        sample = DetDataSample(metainfo=info, pred_instances=InstanceData())
        hook.after_test_iter(runner, batch, {}, [sample])
    assert len(drawn) == 2
    for folder, colour in COLOURS.items():
        image = drawn[f'{tmp_path}/now/drawn/{folder}/frame.jpg']
        assert image.shape == (48, 64, 3)
        assert np.allclose(image[5, 5], colour, atol=3)
