"""What the attention backbones share: freezing and published weights."""

from mmengine.model import BaseModule
from mmengine.model.weight_init import update_init_info
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sb_mm.checkpoint import load_pretrained

# As in mmpretrain's MobileNetV2.
_DEFAULT_INIT = (
    dict(type='Kaiming', layer=['Conv2d']),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
)


class AttentionBackbone(BaseModule):
    """A stem ``conv1`` and named stages, some of which may be frozen.

    Args:
        frozen_stages: Freezes the stem (0) and as many stages; -1 nothing.
        norm_eval: Keep batch normalisation on its running statistics.
        init_cfg: Initialisation. ``type='Pretrained'`` loads the trunk and
            reports what it loaded, see
            :func:`sb_mm.checkpoint.load_pretrained`; what it lacks is
            initialised as without it.
    """

    def __init__(
        self,
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: dict | list | None,
    ) -> None:
        given = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
        random = [c for c in given if c['type'] != 'Pretrained']
        super().__init__(random or [dict(c) for c in _DEFAULT_INIT])
        self.pretrained = [c for c in given if c['type'] == 'Pretrained']
        if any('checkpoint' not in cfg for cfg in self.pretrained):
            raise ValueError(
                "init_cfg=dict(type='Pretrained') needs checkpoint=<file or "
                'URL>.'
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.stage_names: list[str] = []

    def _add_stage(self, name: str, stage: nn.Module) -> None:
        self.add_module(name, stage)
        self.stage_names.append(name)

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

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for name in ['conv1', *self.stage_names[: self.frozen_stages]]:
            stage = getattr(self, name)
            stage.eval()
            stage.requires_grad_(False)
