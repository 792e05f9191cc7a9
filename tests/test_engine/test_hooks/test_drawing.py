"""Drawings of detections, one file an image."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmdet')

from mmdet.structures import DetDataSample  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402
from mmengine.visualization import Visualizer  # noqa: E402

from sb_mm.engine.hooks.drawing import DrawingHook  # noqa: E402

COLOURS = ((255, 0, 0), (0, 0, 255))


@pytest.fixture
def images(tmp_path):
    """Two images of one name; EXIF says that a viewer turns them by 90."""
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [tmp_path / f'images/{folder}/frame.jpg' for folder in 'ab']
    for path, colour in zip(paths, COLOURS, strict=True):
        path.parent.mkdir(parents=True)
        Image.new('RGB', (64, 48), colour).save(path, exif=exif)
    return paths


class Drawn(list):
    def add_datasample(self, name, image, out_file, **kwargs):
        self.append((image, out_file))


def test_each_image_has_its_drawing_of_the_pixels_that_were_read(
    images, tmp_path, monkeypatch
):
    from mmcv.transforms import LoadImageFromFile

    reader = LoadImageFromFile(color_type='color_ignore_orientation')
    infos = [dict(img_path=str(path)) for path in images]
    dataset = type('Dataset', (list,), dict(get_data_info=list.__getitem__))(
        infos
    )
    dataset.pipeline = SimpleNamespace(transforms=[reader])
    runner = SimpleNamespace(
        work_dir=str(tmp_path),
        timestamp='now',
        test_dataloader=SimpleNamespace(dataset=dataset),
    )
    drawn = Drawn()
    monkeypatch.setattr(Visualizer, 'get_current_instance', lambda: drawn)
    hook = DrawingHook(draw=True, test_out_dir='drawn')
    hook.before_test(runner)
    for batch, info in enumerate(infos):
        sample = DetDataSample(metainfo=info, pred_instances=InstanceData())
        hook.after_test_iter(runner, batch, {}, [sample])
    assert [path for _, path in drawn] == [
        f'{tmp_path}/now/drawn/{folder}/frame.jpg' for folder in 'ab'
    ]
    for (image, _), colour in zip(drawn, COLOURS, strict=True):
        assert image.shape == (48, 64, 3)
        assert np.allclose(image[5, 5], colour, atol=3)
