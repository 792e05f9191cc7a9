"""A convolution module with a place for attention."""

from mmcv.cnn import ConvModule
from torch import Tensor

from sb_mm.arguments import check_choice
from sb_mm.registry import MODELS

from .attention import build_attention, takes

# What follows the convolution, by what the attention stands behind.
_STEPS = {
    'conv': ('attention', 'norm', 'activate'),
    'norm': ('norm', 'attention', 'activate'),
    'act': ('norm', 'activate', 'attention'),
}
# What a fused attention does in one pass.
_TAKEN = ['attention', 'activate']


class ConvNormAct(ConvModule):
    """mmcv's ``ConvModule`` that starts as the network around it says.

    Once it is built, MMEngine asks it for start values no more: they would
    overwrite those of the network's ``init_cfg``.
    """

    is_init = True


@MODELS.register_module()
class AttentionConvModule(ConvNormAct):
    """``conv -> norm -> attention -> act``, the one mechanism of sb_mm.

    mmcv's ``ConvModule`` with the same ``state_dict`` keys (``conv.*``,
    ``bn.*``) plus ``attention.*``. The attention sees the trunk ``T(x)`` and
    the input ``x`` of the convolution.

    Args:
        in_channels, out_channels, kernel_size: See mmcv's ``ConvModule``.
        attention: Config of a module with ``forward(trunk, x)``, such as
            ``dict(type='sb_mm.ShiftBalance')``. It is built with the
            channels, and with ``depthwise=True`` if the convolution is
            depthwise. None for no attention.
        attention_after: What the attention stands behind: ``'conv'``,
            ``'norm'`` or ``'act'``.
        reduce_depthwise: Tell the attention of a depthwise convolution that
            it is one, so that its gate gets fewer hidden units.
        **kwargs: See mmcv's ``ConvModule``; ``order`` and
            ``efficient_conv_bn_eval`` have no place here.

    Raises:
        ValueError: If an argument has no place or is out of its range.

    Note:
        The paper does not say where the attention enters. Behind the
        normalisation, an initial lambda of 0.1 is a tenth of the feature's
        standard deviation, and convolution and norm still fold into one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        attention: dict | None = None,
        attention_after: str = 'norm',
        reduce_depthwise: bool = True,
        **kwargs,
    ) -> None:
        check_choice('attention_after', attention_after, _STEPS)
        for name in ('order', 'efficient_conv_bn_eval'):
            if name in kwargs:
                raise ValueError(
                    f'{name} of ConvModule has no place here: the order is '
                    'conv, norm, act with attention_after.'
                )
        super().__init__(in_channels, out_channels, kernel_size, **kwargs)
        depthwise = reduce_depthwise and 1 < self.groups == in_channels
        self.attention = build_attention(
            attention, in_channels, out_channels, depthwise
        )
        present = {
            'attention': attention is not None,
            'norm': self.with_norm,
            'activate': self.with_activation,
        }
        self.steps = [s for s in _STEPS[attention_after] if present[s]]
        if self.steps[:2] == ['attention', 'norm']:
            # mmcv's fuse_conv_bn merges a norm into the child before it.
            self._modules['conv'] = self._modules.pop('conv')

    def forward(
        self, x: Tensor, activate: bool = True, norm: bool = True
    ) -> Tensor:
        """Map ``(N, Cin, H, W)`` to ``(N, Cout, H', W')``.

        Args:
            x: Input of the layer.
            activate: Whether to apply the activation, if there is one.
            norm: Whether to apply the normalisation, if there is one.
        """
        wanted = dict(attention=True, norm=norm, activate=activate)
        y = self.padding_layer(x) if self.with_explicit_padding else x
        y = self.conv(y)
        steps = [step for step in self.steps if wanted[step]]
        for step in steps:
            if step != 'attention':
                y = getattr(self, step)(y)
            elif steps[-2:] == _TAKEN and takes(self.attention, self.activate):
                return self.attention(y, x, self.activate)
            else:
                y = self.attention(y, x)
        return y
