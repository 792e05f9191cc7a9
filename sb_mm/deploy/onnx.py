"""From a network to an ONNX file: tensors in, tensors out."""

import contextlib
import copy
import io
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from sb_mm.errors import UserInputError, explain, first_line, root_cause

from ..models.layers import DynamicConv2d
from .nms import translations

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
_PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')


def require_packages() -> None:
    """Raise UserInputError unless what the export needs is installed."""
    if torch.__version__ < '2.6':
        raise UserInputError(
            'Export needs PyTorch 2.6 or later, but this is '
            f'{torch.__version__}: upgrade torch.'
        )
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserInputError(
            f'Export needs {", ".join(missing)}: '
            f'pip install {" ".join(_PACKAGES)}.'
        )


class Normalise(nn.Module):
    """What a host's data preprocessor does to the pixels of a batch."""

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        # Both hosts pad after the normalisation, on the right and below.
        self.divisor = getattr(preprocessor, 'pad_size_divisor', 1)
        self.pad_value = float(getattr(preprocessor, 'pad_value', 0))
        # In the words of mmdet, then of mmpretrain.
        swap = getattr(preprocessor, '_channel_conversion', False)
        self.swaps_channels = swap or getattr(preprocessor, 'to_rgb', False)
        for name, absent in (('mean', 0.0), ('std', 1.0)):
            value = getattr(preprocessor, name, torch.full((3,), absent))
            self.register_buffer(name, value.float().reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels of 0 to 255 to what the backbone takes."""
        images = images.flip(1) if self.swaps_channels else images
        images = (images - self.mean) / self.std
        rows, columns = (-side % self.divisor for side in images.shape[2:])
        if not rows and not columns:
            return images
        return F.pad(images, (0, columns, 0, rows), value=self.pad_value)


class ExportedClassifier(nn.Module):
    """mmpretrain's ``ImageClassifier``, from pixels to probabilities."""

    output_names = ('scores',)

    def __init__(self, model: BaseModel, size: tuple[int, int]) -> None:
        super().__init__()
        self.normalise = Normalise(model.data_preprocessor)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to scores ``(N, classes)``."""
        x = self.normalise(images)
        return self.model(x, mode='tensor').softmax(1)


class ExportedDetector(nn.Module):
    """mmdet's detector with prior boxes, from pixels to decoded boxes."""

    output_names = ('boxes', 'scores')

    def __init__(self, model: BaseModel, size: tuple[int, int]) -> None:
        super().__init__()
        self.normalise = Normalise(model.data_preprocessor)
        self.model = model
        self.size = size
        self._add_priors(torch.zeros(1, 3, *size))

    @torch.no_grad()
    def _add_priors(self, images: Tensor) -> None:
        head = self.model.bbox_head
        features = self.model.extract_feat(self.normalise(images))
        sizes = [f.shape[2:] for f in features]
        priors = head.prior_generator.grid_priors(sizes, device='cpu')
        self.register_buffer('priors', torch.cat(priors))
        remedy = 'give a head of a box and a score a class for each prior'
        with explain(f'{type(head).__name__} cannot be exported', remedy):
            self(images)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images ``(N, 3, H, W)`` to boxes and scores of the priors.

        Boxes ``(N, P, 4)`` are x1, y1, x2, y2 in pixels of the input, clipped
        if the ``bbox_coder`` does so; scores ``(N, P, classes)`` 0 to 1.
        """
        head, n = self.model.bbox_head, images.size(0)
        features = self.model.extract_feat(self.normalise(images))
        logits, deltas = head(features)
        logits = _by_prior(logits, head.cls_out_channels)
        deltas = _by_prior(deltas, 4)
        priors = self.priors.expand(n, -1, -1).reshape(-1, 4)
        boxes = head.bbox_coder.decode(
            priors, deltas.flatten(0, 1), max_shape=self.size
        )
        if head.use_sigmoid_cls:
            scores = logits.sigmoid()
        else:
            scores = logits.softmax(-1)[..., : head.num_classes]
        return boxes.reshape(n, -1, 4), scores


def _by_prior(levels: list[Tensor], numbers: int) -> Tensor:
    """Join levels ``(N, A * numbers, H, W)`` to ``(N, P, numbers)``."""
    rows = [
        level.permute(0, 2, 3, 1).reshape(level.size(0), -1, numbers)
        for level in levels
    ]
    return torch.cat(rows, 1)


class SummedDynamicConv2d(nn.Module):
    """A :class:`DynamicConv2d` as a weighted sum of ``K`` convolutions.

    ``K`` times the work, but the same operations for every batch size.
    """

    def __init__(self, conv: DynamicConv2d) -> None:
        super().__init__()
        self.dynamic = conv
        # The kernels of one output side by side, as groups need it.
        bank = conv.weight.unflatten(0, (conv.num_kernels, -1))
        self.kernels = nn.Parameter(bank.transpose(0, 1).flatten(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape ``(N, Cin, H, W)``."""
        conv = self.dynamic
        settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
        y = F.conv2d(x, self.kernels, None, *settings)
        shares = conv.attention(x)
        y = y.unflatten(1, (-1, conv.num_kernels))
        y = (y * shares[:, None, :, None, None]).sum(2)
        if conv.bias is None:
            return y
        bias = shares @ conv.bias.view(conv.num_kernels, -1)
        return y + bias[:, :, None, None]


def exportable(
    model: BaseModel, size: tuple[int, int]
) -> ExportedClassifier | ExportedDetector:
    """Return a network that maps pixels to what the file gives.

    The model is in evaluation mode, on the CPU; ``size`` is that of its
    input in pixels, (height, width).

    Raises:
        UserInputError: If there is no export of this kind of network, or a
            detector's head gives more than scores and boxes of the priors.
    """
    return wrapper_of(model)(model, size).eval()


def wrapper_of(model: BaseModel) -> type[nn.Module]:
    """Return the class that :func:`exportable` makes of a network."""
    head = getattr(model, 'bbox_head', None) or getattr(model, 'head', None)
    # By name, as either host may be absent. A multi-label head is no ClsHead.
    bases = {base.__name__ for m in (model, head) for base in type(m).__mro__}
    if bases >= {'SingleStageDetector', 'AnchorHead'}:
        return ExportedDetector
    if bases >= {'ImageClassifier', 'ClsHead'}:
        return ExportedClassifier
    names = [type(p).__name__ for p in (model, head) if p is not None]
    raise UserInputError(
        f'{" with ".join(names)} cannot be exported: give a single-stage '
        "detector with prior boxes or mmpretrain's ImageClassifier with a "
        'single-label head.'
    )


def to_onnx(module: nn.Module, images: Tensor, dynamic: bool) -> 'ModelProto':
    """Return a network whose outputs are ``output_names`` as ONNX.

    It takes as many images as the example has, any number if ``dynamic``.

    Raises:
        UserInputError: If an operation has no ONNX form; names it.
    """
    module = copy.deepcopy(module).requires_grad_(False)
    for name, part in list(module.named_modules()):
        if isinstance(part, DynamicConv2d):
            module.set_submodule(name, SummedDynamicConv2d(part))
    names = ({0: 'batch'},) if dynamic else None
    dims = ({0: torch.export.Dim('batch')},) if dynamic else None
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter('ignore')
            # Here and not by the exporter, which then tries a slower way too.
            traced = torch.export.export(
                module, (images,), dynamic_shapes=dims, strict=False
            )
            file = torch.onnx.export(
                traced,
                (images,),
                dynamo=True,
                input_names=['images'],
                output_names=list(module.output_names),
                opset_version=OPSET,
                dynamic_shapes=names,
                custom_translation_table=translations(),
                verbose=False,
            ).model_proto
    except Exception as error:  # of any kind, from any step of the exporter
        raise UserInputError(
            'The network cannot be exported to ONNX '
            f'({first_line(root_cause(error))}): replace that operation.'
        ) from error
    for node in file.graph.node:
        node.ClearField('metadata_props')  # where each stands in the code
    return file
