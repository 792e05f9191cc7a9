"""What the attention backbones share: stages, freezing, published weights."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb_mm.arguments import check_number, check_subset
from sb_mm.checkpoint import load_pretrained
from sb_mm.errors import UserInputError

from .blocks import LAYERS

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
    """A stem and stages of blocks, of which some may be frozen.

    Attention sits in the blocks, never in the stem or the last convolution.
    Without attention it is the static network. A subclass builds ``conv1``
    with ``conv_cfgs`` and its blocks with ``block_cfgs``, adds its stages
    with :meth:`_add_stage` (or defines :attr:`stages`), then calls
    :meth:`_freeze_stages`.

    Args:
        out_indices: Stages whose output is returned; the last convolution is
            one of them.
        frozen_stages: Freezes the stem (0) and as many stages; -1 nothing.
        attention: Config of the attention, such as
            ``dict(type='sb_mm.ShiftBalance')``; None for none.
        attention_conv_cfg: Config of the convolution used where the attention
            stands, such as ``dict(type='sb_mm.DynamicConv2d')``.
        attention_layers: Where in every block: any of ``'expand'``,
            ``'depthwise'``, ``'project'``, and of inverted residual blocks
            ``'block'``.
        attention_after: Where in a layer: behind its ``'conv'``, ``'norm'``
            or ``'act'``.
        conv_cfg: Config of the other convolutions.
        norm_cfg: Config of the normalisation; None for none.
        act_cfg: Config of the activation; None for none.
        norm_eval: Keep batch normalisation on its running statistics.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: Initialisation; ``default_init_cfg`` if None.
            ``type='Pretrained'`` loads the trunk and reports what it loaded,
            see :func:`sb_mm.checkpoint.load_pretrained`; what it lacks is
            initialised as without it.

    Raises:
        ValueError: If an argument is out of its range.
    """

    # The last convolution is one of them.
    num_stages: int
    attention_places: tuple[str, ...] = LAYERS
    default_init_cfg: tuple[dict, ...] = HE_INIT

    def __init__(
        self,
        out_indices: Sequence[int],
        frozen_stages: int,
        *,
        attention: dict | None = None,
        attention_conv_cfg: dict | None = None,
        attention_layers: Sequence[str] = LAYERS,
        attention_after: str = 'norm',
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = dict(type='sb_mm.LevelBatchNorm2d'),
        act_cfg: dict | None = dict(type='ReLU6'),
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
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
        # The block's output has no convolution of its own.
        places = self.attention_places[: 3 if attention_conv_cfg else 4]
        check_subset('attention_layers', attention_layers, places)
        _check_has_attention(attention_layers, attention, attention_conv_cfg)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.stage_names: list[str] = []
        self.conv_cfgs = dict(
            conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg
        )
        self.block_cfgs = dict(
            self.conv_cfgs,
            attention=attention,
            attention_conv_cfg=attention_conv_cfg,
            attention_layers=tuple(attention_layers),
            attention_after=attention_after,
            with_cp=with_cp,
        )

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


def _check_has_attention(
    attention_layers: Sequence[str], *attentions: dict | None
) -> None:
    """Raise if layers are chosen for an attention that is not there."""
    if tuple(attention_layers) != LAYERS and not any(attentions):
        raise UserInputError(
            f'attention_layers={tuple(attention_layers)} has no effect '
            'without attention or attention_conv_cfg: give one of them, or '
            'leave attention_layers out.'
        )
