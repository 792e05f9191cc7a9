"""Drawings of detections, one file an image."""

import os.path as osp
from collections.abc import Sequence

from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmengine.runner import Runner

from sb_mm.datasets.images import reader_of
from sb_mm.registry import HOOKS


@HOOKS.register_module()
class DrawingHook(DetVisualizationHook):
    """mmdet's hook, for tests of images in several folders.

    Drawings lie below ``test_out_dir`` as the images do below the folder
    that they have in common: mmdet puts all into one. Boxes are drawn on the
    pixels that the test read, whether it ignores EXIF's orientation or not.
    """

    def before_test(self, runner: Runner) -> None:
        """Find the folder that the images have in common."""
        dataset = runner.test_dataloader.dataset
        if self.draw:
            infos = (dataset.get_data_info(i) for i in range(len(dataset)))
            folders = {osp.dirname(info['img_path']) for info in infos}
            self._root = osp.commonpath(map(osp.abspath, folders))
            pipeline = getattr(dataset, 'pipeline', None)
            self._reader = reader_of(getattr(pipeline, 'transforms', []))

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw the detections of a batch."""
        for sample in outputs if self.draw else ():
            self._test_index += 1
            path, folder, out_file = sample.img_path, self.test_out_dir, None
            if folder is not None:
                inner = osp.relpath(osp.abspath(path), self._root)
                run = osp.join(runner.work_dir, runner.timestamp)
                out_file = osp.join(run, folder, inner)
            self._visualizer.add_datasample(
                osp.basename(path) if self.show else 'test_img',
                self._reader(dict(img_path=path))['img'][..., ::-1],
                data_sample=sample,
                show=self.show,
                wait_time=self.wait_time,
                pred_score_thr=self.score_thr,
                out_file=out_file,
                step=self._test_index,
            )
