"""Validation of a classifier without a step for each image."""

import torch
from mmengine.dist import get_world_size
from mmengine.runner import ValLoop, autocast

from sb_mm.errors import UserInputError
from sb_mm.registry import LOOPS

from .build import unwrapped


@LOOPS.register_module()
class BatchedValLoop(ValLoop):
    """MMEngine's ``ValLoop`` with one data sample for each batch.

    For mmpretrain's ``ImageClassifier`` with
    :class:`~sb_mm.models.data_preprocessors.OnDeviceAugmentation` and the
    metric ``Accuracy`` with ``topk=(1,)``, whose value is that of the stock
    loop. The stock loop wraps and unwraps every image, and copies its
    scores from the device on their own, which takes longer than the network
    does on a GPU. If there are other metrics, this loop does so too.

    Args:
        args: Those of ``ValLoop``.
        kwargs: The same.

    Raises:
        UserInputError: When it is built, if the processes cannot share the
            images equally, in which case the stock loop drops the
            repeated ones and this one cannot; or if the preprocessor is
            another one.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        count, processes = len(self.dataloader.dataset), get_world_size()
        if count % processes:
            raise UserInputError(
                f'{processes} processes cannot share {count} images '
                "equally: use MMEngine's ValLoop."
            )
        if not hasattr(unwrapped(self.runner.model).data_preprocessor, 'read'):
            raise UserInputError(
                'sb_mm.BatchedValLoop needs sb_mm.OnDeviceAugmentation as the '
                "data preprocessor: use MMEngine's ValLoop for others."
            )

    @property
    def _labels_suffice(self) -> bool:
        """Return whether no metric asks for the scores of single images."""
        from mmpretrain.evaluation import Accuracy

        return all(
            type(metric) is Accuracy
            and (metric.topk, metric.thrs) == ((1,), (0.0,))
            for metric in self.evaluator.metrics
        )

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Validate one batch of ``IndexedImages``."""
        from mmpretrain.structures import DataSample

        if not self._labels_suffice:
            super().run_iter(idx, data_batch)
            return
        batch = dict(batch_idx=idx, data_batch=data_batch)
        self.runner.call_hook('before_val_iter', **batch)
        model = unwrapped(self.runner.model)
        with autocast(enabled=self.fp16):
            inputs, labels = model.data_preprocessor.read(data_batch, False)
            scores = model(inputs, mode='tensor').softmax(1)
        # Like Accuracy, which decides between equal scores as topk does.
        values, best = scores.topk(1)
        # A miss to Accuracy too: scores of a diverged network are NaN.
        best = best.where(values > 0, -1)[:, 0]
        outputs = [DataSample().set_gt_label(labels).set_pred_label(best)]
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook('after_val_iter', **batch, outputs=outputs)
