"""One image through a classifier, by ONNX Runtime."""

from functools import partial

import onnxruntime
import torch
from mmengine.config import Config
from torch import Tensor

from sb_mm.deploy import fold
from sb_mm.deploy.onnx import exportable, to_onnx
from sb_mm.deploy.this_cpu import for_this_cpu
from sb_mm.engine.build import build_model

from .inputs import CONFIGS
from .measure import Calls, Pair, Rows, Settings, in_turns
from .training import SB, SE, STATIC

PORTABLE, THIS_CPU = 'ONNX Runtime', 'ONNX Runtime, --this-cpu'


def inference(settings: Settings) -> Rows:
    """Time an image from its pixels to the scores of 1,000 classes."""
    size = 64 if settings.tiny else 224
    images = torch.rand(1, 3, size, size) * 255
    for width, most in ((0.35, 2), (1.0, 1.6)):
        calls = {
            f'{kind}: {file}': call
            for kind in (STATIC, SE, SB)
            for file, call in _sessions(kind, width, images).items()
        }
        ours = f'{SB}: {THIS_CPU}'
        pairs = [
            Pair(ours, f'{SB}: {PORTABLE}'),
            Pair(ours, f'{STATIC}: {THIS_CPU}', most),
            Pair(ours, f'{SE}: {PORTABLE}', 1),
        ]
        yield from in_turns(f'one image x{width}', calls, pairs, settings)


def _sessions(kind: str, width: float, images: Tensor) -> Calls:
    name = f'mobilenetv2-{kind.lower()}-w{width}_1xb256-300e_in1k.py'
    model = build_model(Config.fromfile(CONFIGS / 'imagenet' / name)).eval()
    folded = exportable(fold(model), tuple(images.shape[2:]))
    portable = to_onnx(folded, torch.cat([images, images]), dynamic=True)
    this_cpu = for_this_cpu(to_onnx(folded, images, dynamic=False))
    options, feed = onnxruntime.SessionOptions(), dict(images=images.numpy())
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    calls = {}
    for name, file in {PORTABLE: portable, THIS_CPU: this_cpu}.items():
        session = onnxruntime.InferenceSession(
            file.SerializeToString(),
            options,
            providers=['CPUExecutionProvider'],
        )
        calls[name] = partial(session.run, None, feed)
    return calls
