"""Validation of a classifier without a step for each picture."""

import torch
from mmengine.dist import get_world_size
from mmengine.model import is_model_wrapper
from mmengine.runner import ValLoop, autocast

from sb_mm.errors import UserInputError
from sb_mm.registry import LOOPS


@LOOPS.register_module()
class BatchedValLoop(ValLoop):
    """MMEngine's ``ValLoop`` with one data sample for each batch.

    For mmpretrain's ``ImageClassifier`` with
    :class:`~sb_mm.models.data_preprocessors.OnDeviceAugmentation` and the
    metric ``Accuracy`` with ``topk=(1,)``. The stock loop wraps and unwraps
    every picture, and copies its scores from the device on their own, which
    takes longer than the network does on a GPU.

    Raises:
        UserInputError: When it starts, if the processes cannot share the
            pictures equally, in which case the stock loop drops the
            repeated ones and this one cannot; or if the preprocessor is
            another one.
    """

    def run(self) -> dict:
        """Launch validation."""
        count, processes = len(self.dataloader.dataset), get_world_size()
        if count % processes:
            raise UserInputError(
                f'{processes} processes cannot share {count} pictures '
                "equally: use MMEngine's ValLoop."
            )
        if not hasattr(self._model.data_preprocessor, 'read'):
            raise UserInputError(
                'sb_mm.BatchedValLoop needs sb_mm.OnDeviceAugmentation as the '
                "data preprocessor: use MMEngine's ValLoop for others."
            )
        return super().run()

    @property
    def _model(self) -> torch.nn.Module:
        model = self.runner.model
        return model.module if is_model_wrapper(model) else model

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Validate one batch of ``IndexedPictures``."""
        from mmpretrain.structures import DataSample

        self.runner.call_hook(
            'before_val_iter', batch_idx=idx, data_batch=data_batch
        )
        model = self._model
        with autocast(enabled=self.fp16):
            inputs, labels = model.data_preprocessor.read(data_batch, False)
            scores = model(inputs, mode='tensor')
        sample = DataSample().set_gt_label(labels)
        outputs = [sample.set_pred_label(scores.argmax(1))]
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(
            'after_val_iter',
            batch_idx=idx,
            data_batch=data_batch,
            outputs=outputs,
        )
