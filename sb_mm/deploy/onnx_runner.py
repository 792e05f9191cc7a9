"""Run an exported file and give what the host's networks give."""

import json
from pathlib import Path

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from sb_mm.errors import explain

from .nms import Suppression


class OnnxRunner:
    """A file of ``tools/export_onnx.py``, by its path or bytes, on the CPU.

    Raises:
        UserInputError: If it cannot be loaded, or is none of these files.
    """

    def __init__(self, file: str | Path | bytes) -> None:
        import onnxruntime

        name = 'The file' if isinstance(file, bytes) else file
        remedy = 'give a file that tools/export_onnx.py wrote'
        with explain(f'{name} cannot be used', remedy):
            self.session = onnxruntime.InferenceSession(
                file, providers=['CPUExecutionProvider']
            )
            texts = self.session.get_modelmeta().custom_metadata_map
            self.test_cfg = json.loads(texts['test_cfg'])
        self.names = [o.name for o in self.session.get_outputs()]
        self.batch, _, *self.size = self.session.get_inputs()[0].shape

    def run(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for images, in the order of :attr:`names`.

        Images are ``(N, 3, H, W)``, 0 to 255, as the config's loader gives
        them.
        """
        pixels = images.float().contiguous().numpy()
        outputs = self.session.run(None, {'images': pixels})
        return tuple(map(torch.from_numpy, outputs))

    def predict(self, batch: dict) -> list[BaseDataElement]:
        """Return a batch's samples, and write predictions to them."""
        images = torch.stack(list(batch['inputs']))
        samples = list(batch['data_samples'])
        # One at a time, if the file is for that.
        step = self.batch if isinstance(self.batch, int) else len(images)
        for i in range(0, len(images), step):
            self._predict(images[i : i + step], samples[i : i + step])
        return samples

    def _predict(self, images: Tensor, samples: list) -> None:
        rows = self.run(images)
        if self.names == ['scores']:
            for sample, scores in zip(samples, *rows, strict=True):
                sample.set_pred_score(scores).set_pred_label(scores.argmax())
            return
        if 'image' not in self.names:
            rows = Suppression(self.test_cfg, self.size)(*rows)
        for i, sample in enumerate(samples):
            here = rows[0] == i
            label, box, score = (values[here] for values in rows[1:])
            order = score.argsort(descending=True, stable=True)
            limit = self.test_cfg.get('max_per_img', -1)
            order = order[: limit if limit > 0 else None]
            # From pixels of the input to pixels of the image.
            scale = box.new_tensor(sample.metainfo.get('scale_factor', (1, 1)))
            sample.pred_instances = InstanceData(
                bboxes=box[order] / scale.repeat(2),
                labels=label[order],
                scores=score[order],
            )
