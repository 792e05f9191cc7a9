"""Networks in the form in which they are exported: tensors in and out."""

import copy

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from sb_mm.errors import UserInputError

from ..models.layers import DynamicConv2d


class Normalise(nn.Module):
    """What a data preprocessor does to the pixels of a whole batch.

    Args:
        preprocessor: That of mmengine, mmdet or mmpretrain.
    """

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        # Both hosts pad after the normalisation, on the right and below.
        self.divisor = getattr(preprocessor, 'pad_size_divisor', 1)
        self.pad_value = float(getattr(preprocessor, 'pad_value', 0))
        swap = getattr(preprocessor, '_channel_conversion', False)
        self.swaps_channels = swap or getattr(preprocessor, 'to_rgb', False)
        self.register_buffer('mean', _buffer(preprocessor, 'mean', 0.0))
        self.register_buffer('std', _buffer(preprocessor, 'std', 1.0))

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels of 0 to 255 to what the backbone takes."""
        images = images.flip(1) if self.swaps_channels else images
        images = (images - self.mean) / self.std
        rows, columns = (-side % self.divisor for side in images.shape[2:])
        if not rows and not columns:
            return images
        return F.pad(images, (0, columns, 0, rows), value=self.pad_value)


def _buffer(preprocessor: nn.Module, name: str, absent: float) -> Tensor:
    value = getattr(preprocessor, name, None)
    value = torch.full((3,), absent) if value is None else value
    return value.detach().float().reshape(-1, 1, 1)


class ExportedClassifier(nn.Module):
    """An mmpretrain classifier, from pixels to probabilities.

    Args:
        model: mmpretrain's ``ImageClassifier``.
        size: Height and width of the input in pixels.
    """

    output_names = ('scores',)

    def __init__(self, model: BaseModel, size: tuple[int, int]) -> None:
        super().__init__()
        self.normalise = Normalise(model.data_preprocessor)
        self.model = model
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to scores ``(N, classes)``."""
        x = self.normalise(images)
        return self.model(x, mode='tensor').softmax(1)


class ExportedDetector(nn.Module):
    """An mmdet detector with prior boxes, from pixels to decoded boxes.

    Args:
        model: mmdet's ``SingleStageDetector`` with an ``AnchorHead``.
        size: Height and width of the input in pixels, to which the prior
            boxes are fixed.

    Raises:
        UserInputError: If the head gives more than scores and boxes of the
            priors.
    """

    output_names = ('boxes', 'scores')

    def __init__(self, model: BaseModel, size: tuple[int, int]) -> None:
        super().__init__()
        self.normalise = Normalise(model.data_preprocessor)
        self.model = model
        self.size = size
        head = model.bbox_head
        with torch.no_grad():
            images = self.normalise(torch.zeros(1, 3, *size))
            features = model.extract_feat(images)
            _check_outputs(head, head(features))
        sizes = [tuple(f.shape[2:]) for f in features]
        priors = head.prior_generator.grid_priors(sizes, device='cpu')
        self.register_buffer('priors', torch.cat(priors))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images ``(N, 3, H, W)`` to boxes and scores of the priors.

        Returns:
            Boxes ``(N, P, 4)`` as x1, y1, x2, y2 in pixels of the input,
            clipped to it if the ``bbox_coder`` does so, and scores
            ``(N, P, classes)``, 0 to 1.
        """
        head = self.model.bbox_head
        features = self.model.extract_feat(self.normalise(images))
        logits, deltas = head(features)
        logits = _by_prior(logits, head.cls_out_channels)
        deltas = _by_prior(deltas, head.bbox_coder.encode_size)
        n = images.size(0)
        priors = self.priors.expand(n, -1, -1).reshape(-1, 4)
        boxes = head.bbox_coder.decode(
            priors, deltas.flatten(0, 1), max_shape=self.size
        )
        return boxes.reshape(n, -1, 4), self._scores(logits)

    def _scores(self, logits: Tensor) -> Tensor:
        head = self.model.bbox_head
        if head.use_sigmoid_cls:
            return logits.sigmoid()
        return logits.softmax(-1)[..., : head.num_classes]


def _check_outputs(head: nn.Module, outputs: tuple) -> None:
    """Raise unless these are the levels' logits and deltas."""
    coder = getattr(head.bbox_coder, 'encode_size', 0)
    numbers = (head.cls_out_channels, coder)
    priors = head.prior_generator.num_base_priors
    fits = len(outputs) == len(numbers) and all(
        level.size(1) == each * number
        for levels, number in zip(outputs, numbers, strict=True)
        for level, each in zip(levels, priors, strict=True)
    )
    if not fits:
        raise UserInputError(
            f'{type(head).__name__} cannot be exported: besides a score a '
            "class and a box's four numbers, it gives something else of the "
            'prior boxes.'
        )


def _by_prior(levels: list[Tensor], numbers: int) -> Tensor:
    """Join levels ``(N, A * numbers, H, W)`` to ``(N, P, numbers)``."""
    rows = [
        level.permute(0, 2, 3, 1).reshape(level.size(0), -1, numbers)
        for level in levels
    ]
    return torch.cat(rows, 1)


class SummedDynamicConv2d(nn.Module):
    """A :class:`DynamicConv2d` as a weighted sum of ``K`` convolutions.

    Of the same value and ``K`` times the work, but in operations that are
    the same for every batch size.

    Args:
        conv: The dynamic convolution.
    """

    def __init__(self, conv: DynamicConv2d) -> None:
        super().__init__()
        self.dynamic = conv
        self.plain = nn.Conv2d(
            conv.in_channels,
            conv.out_channels * conv.num_kernels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=conv.bias is not None,
        )
        # The kernels of one output side by side, as groups need it.
        for name, bank in conv.named_parameters(recurse=False):
            kernels = bank.data.unflatten(0, (conv.num_kernels, -1))
            kernels = kernels.transpose(0, 1).flatten(0, 1)
            getattr(self.plain, name).data = kernels

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape ``(N, Cin, H, W)``."""
        shares = self.dynamic.attention(x)[:, None, :, None, None]
        y = self.plain(x).unflatten(1, (-1, self.dynamic.num_kernels))
        return (y * shares).sum(2)


def exportable(
    model: BaseModel, size: tuple[int, int]
) -> ExportedClassifier | ExportedDetector:
    """Return a copy of a network in operations that can be exported.

    See :func:`wrap` for arguments and errors.
    """
    model = copy.deepcopy(model).requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, DynamicConv2d):
            model.set_submodule(name, SummedDynamicConv2d(module))
    return wrap(model, size)


def wrap(
    model: BaseModel, size: tuple[int, int]
) -> ExportedClassifier | ExportedDetector:
    """Return a network that maps pixels to what the file gives.

    Args:
        model: A classifier or detector in evaluation mode, on the CPU.
        size: Height and width of its input in pixels.

    Raises:
        UserInputError: If there is no export of this kind of network.
    """
    return _wrapper_of(model)(model, size).eval()


def check_model_type(model: BaseModel) -> None:
    """Raise unless there is an export of this kind of network.

    Raises:
        UserInputError: Names the type.
    """
    _wrapper_of(model)


def _wrapper_of(model: BaseModel) -> type:
    if _is_detector(model):
        return ExportedDetector
    if _is_classifier(model):
        return ExportedClassifier
    parts = [model, *(getattr(model, n, None) for n in ('bbox_head', 'head'))]
    names = [type(p).__name__ for p in parts if p is not None]
    raise UserInputError(
        f'{" with ".join(names)} cannot be exported: give a single-stage '
        "detector with prior boxes or mmpretrain's ImageClassifier with a "
        'single-label head.'
    )


def _is_detector(model: BaseModel) -> bool:
    try:
        from mmdet.models import AnchorHead, SingleStageDetector
    except ImportError:
        return False
    return isinstance(model, SingleStageDetector) and isinstance(
        model.bbox_head, AnchorHead
    )


def _is_classifier(model: BaseModel) -> bool:
    try:
        from mmpretrain.models import ClsHead, ImageClassifier
    except ImportError:
        return False
    # A multi-label head is none of these.
    return isinstance(model, ImageClassifier) and isinstance(
        model.head, ClsHead
    )
