"""One image through a classifier, in PyTorch and in ONNX Runtime."""

import copy
from collections.abc import Callable

import onnxruntime
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from sb_mm.deploy import fold
from sb_mm.deploy.onnx import exportable, to_onnx, wrap
from sb_mm.deploy.this_cpu import for_this_cpu

from .inputs import CONFIGS
from .measure import Calls, Pair, Rows, Settings, in_turns, one_thread
from .networks import SB, SE, STATIC

EAGER, FOLDED = 'PyTorch', 'PyTorch, folded'
PORTABLE, THIS_CPU = 'ONNX Runtime', 'ONNX Runtime, --this-cpu'


def inference(settings: Settings) -> Rows:
    """Time an image from its pixels to the scores of 1,000 classes.

    On one CPU thread: the waiting threads of PyTorch and ONNX Runtime would
    take the cores from each other.
    """
    size = 64 if settings.tiny else 224
    images = torch.rand(1, 3, size, size) * 255
    for width, most in ((0.35, 2), (1.0, 1.6)):
        with one_thread():
            calls = {}
            for kind in (STATIC, SE, SB):
                for runtime, call in _runtimes(kind, width, images).items():
                    calls[f'{kind}: {runtime}'] = call
            pairs = [
                Pair(f'{SB}: {ours}', f'{kind}: {other}', target)
                for ours, kind, other, target in (
                    (FOLDED, SB, EAGER, None),
                    (THIS_CPU, SB, PORTABLE, None),
                    (FOLDED, STATIC, FOLDED, most),
                    (THIS_CPU, STATIC, THIS_CPU, most),
                    (THIS_CPU, SE, PORTABLE, 1),
                )
            ]
            what = f'one image x{width}'
            yield from in_turns(what, calls, pairs, settings, repeats=10)


def _runtimes(kind: str, width: float, images: Tensor) -> Calls:
    model = _build_classifier(kind, width)
    size = tuple(images.shape[2:])
    plain = wrap(copy.deepcopy(model), size)
    folded = exportable(fold(model), size)
    both = torch.cat([images, images])
    portable = to_onnx(folded, both, dynamic=True)
    this_cpu = for_this_cpu(to_onnx(folded, images, dynamic=False))
    calls = {
        EAGER: torch.inference_mode()(lambda: plain(images)),
        FOLDED: torch.inference_mode()(lambda: folded(images)),
        PORTABLE: _session(portable, images),
        THIS_CPU: _session(this_cpu, images),
    }
    for call in calls.values():  # else times mean nothing
        torch.testing.assert_close(call(), calls[EAGER](), rtol=0, atol=1e-4)
    return calls


def _build_classifier(kind: str, width: float) -> nn.Module:
    """Return an mmpretrain classifier whose norms and shifts do something."""
    torch.manual_seed(0)
    name = f'mobilenetv2-{kind.lower()}-w{width}_1xb256-300e_in1k.py'
    cfg = Config.fromfile(CONFIGS / 'imagenet' / name)
    cfg.model.data_preprocessor = cfg.data_preprocessor
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    for name, parameter in model.named_parameters():
        if name.endswith('lambda_'):
            nn.init.uniform_(parameter, -0.5, 0.5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def _session(model: 'onnx.ModelProto', images: Tensor) -> Callable[[], Tensor]:  # noqa: F821
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    feed = dict(images=images.numpy())
    return lambda: torch.from_numpy(session.run(None, feed)[0])
