"""What the attention backbones share: stages, freezing, published weights."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb_mm.arguments import check_number
from sb_mm.checkpoint import load_pretrained
from sb_mm.errors import UserInputError

NORM_INIT = dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])
# He, fan-out, as torchvision draws MobileNetV2 and MnasNet.
HE_INIT = (dict(type='Kaiming', layer=['Conv2d']), NORM_INIT)
# PyTorch's default for convolutions: uniform in +-1 / sqrt(fan-in). Networks
# whose source code leaves the weights as they are start so.
TORCH_INIT = (
    dict(
        type='Kaiming',
        layer=['Conv2d'],
        a=5**0.5,
        mode='fan_in',
        nonlinearity='leaky_relu',
        distribution='uniform',
    ),
    NORM_INIT,
)


class AttentionBackbone(BaseModule):
    """A stem and stages, of which some may be frozen.

    A subclass sets ``out_indices``, builds ``conv1``, adds its stages with
    :meth:`_add_stage` (or defines :attr:`stages`), then calls
    :meth:`_freeze_stages`.

    Args:
        frozen_stages: Freezes the stem (0) and as many stages; -1 nothing.
        norm_eval: Keep batch normalisation on its running statistics.
        init_cfg: Initialisation; ``default_init_cfg`` if None.
            ``type='Pretrained'`` loads the trunk and reports what it loaded,
            see :func:`sb_mm.checkpoint.load_pretrained`; what it lacks is
            initialised as without it.

    Raises:
        ValueError: If an argument is out of its range.
    """

    # The last convolution is one of them.
    num_stages: int
    out_indices: tuple[int, ...]
    default_init_cfg: tuple[dict, ...] = HE_INIT

    def __init__(
        self,
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: dict | list | None,
    ) -> None:
        given = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
        random = [c for c in given if c['type'] != 'Pretrained']
        super().__init__(random or [dict(c) for c in self.default_init_cfg])
        self.pretrained = [c for c in given if c['type'] == 'Pretrained']
        if any('checkpoint' not in cfg for cfg in self.pretrained):
            raise ValueError(
                "init_cfg=dict(type='Pretrained') needs checkpoint=<file or "
                'URL>.'
            )
        # Not the last convolution, as in mmpretrain.
        most = self.num_stages - 1
        check_number('frozen_stages', frozen_stages, -1, most, integer=True)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.stage_names: list[str] = []

    def _add_stage(self, name: str, stage: nn.Module) -> None:
        self.add_module(name, stage)
        self.stage_names.append(name)

    @property
    def stages(self) -> list[nn.Module]:
        """The stages, shallow to deep, without the stem."""
        return [getattr(self, name) for name in self.stage_names]

    def stem(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to the first stage's input."""
        return self.conv1(x)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen features of images ``(N, 3, H, W)``.

        Returns:
            Shallow to deep, each ``(N, C, H / stride, W / stride)``.
        """
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def init_weights(self) -> None:
        """Initialise at random, then load published weights if asked to."""
        super().init_weights()
        for cfg in self.pretrained:
            load_pretrained(
                self,
                cfg['checkpoint'],
                prefix=cfg.get('prefix'),
                map_location=cfg.get('map_location', 'cpu'),
            )
            if hasattr(self, '_params_init_info'):
                update_init_info(self, f'load from {cfg["checkpoint"]}')

    def train(self, mode: bool = True) -> 'AttentionBackbone':
        """Set the mode; frozen stages stay frozen and in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Set evaluation mode and fold, see :func:`sb_mm.deploy.fold`."""
        # Only who folds needs the room.
        from sb_mm.deploy import fold

        fold(self.eval())

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for stage in [self.conv1, *self.stages[: self.frozen_stages]]:
            stage.eval()
            stage.requires_grad_(False)


def check_has_attention(
    attention_layers: Sequence[str], *attentions: dict | None
) -> None:
    """Raise if layers are chosen for an attention that is not there.

    Raises:
        UserInputError: Names the missing argument.
    """
    chosen = tuple(attention_layers) != ('expand', 'depthwise', 'project')
    if chosen and not any(attentions):
        raise UserInputError(
            f'attention_layers={tuple(attention_layers)} has no effect '
            'without attention or attention_conv_cfg: give one of them, or '
            'leave attention_layers out.'
        )
