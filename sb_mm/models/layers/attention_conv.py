"""A convolution module with a place for attention."""

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from sb_mm.arguments import check_choice
from sb_mm.registry import MODELS

from .channel_attention import ChannelAttention, NoAttention
from .shift_balance import ShiftBalance
from .shifted_norm import can_shift_in_norm, shifted_batch_norm

# What follows the convolution, by what the attention stands behind.
_STEPS = {
    'conv': ('attention', 'norm', 'activate'),
    'norm': ('norm', 'attention', 'activate'),
    'act': ('norm', 'activate', 'attention'),
}


@MODELS.register_module()
class AttentionConvModule(ConvModule):
    """``conv -> norm -> attention -> act``, the one mechanism of sb_mm.

    mmcv's ``ConvModule`` with the same ``state_dict`` keys (``conv.*``,
    ``bn.*``) plus ``attention.*``. The attention sees the trunk ``T(x)`` and
    the input ``x`` of the convolution.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Pixels.
        attention: Config of a module with ``forward(trunk, x)``, such as
            ``dict(type='sb_mm.ShiftBalance')``. It is built with the
            channels, and with ``depthwise=True`` if the convolution is
            depthwise. None for no attention.
        attention_after: What the attention stands behind: ``'conv'``,
            ``'norm'`` or ``'act'``.
        reduce_depthwise: Tell the attention of a depthwise convolution that
            it is one, so that its gate gets fewer hidden units.
        **kwargs: See mmcv's ``ConvModule``.

    Raises:
        ValueError: If ``attention_after`` is none of these, or for the
            arguments of ``ConvModule`` that have no place here.

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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, Cin, H, W)`` to ``(N, Cout, H', W')``."""
        # The gate before the convolution: in the backward pass the
        # convolution's gradient of x then comes first, and the gate's is
        # added to it in place.
        inputs = (x, *self._channel_values(x))
        y = self.padding_layer(x) if self.with_explicit_padding else x
        y = self.conv(y)
        steps = self.steps
        if self._can_shift_in_norm(y):
            y = shifted_batch_norm(self.norm, y, inputs[1])
            steps = steps[2:]
        for step in steps:
            if step == 'attention':
                y = self.attention(y, *inputs)
            else:
                y = getattr(self, step)(y)
        return y

    def _channel_values(self, x: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(self.attention, ChannelAttention):
            return ()
        return (self.attention.channel_values(x),)

    def _can_shift_in_norm(self, y: Tensor) -> bool:
        return (
            type(self.attention) is ShiftBalance
            and self.steps[:2] == ['norm', 'attention']
            # A hook wants to see the trunk.
            and not self.norm._forward_hooks
            and not self.attention._forward_hooks
            and can_shift_in_norm(self.norm, y)
        )


def build_attention(
    attention: dict | None,
    in_channels: int,
    out_channels: int,
    depthwise: bool = False,
) -> nn.Module:
    """Build an attention from its config, or the identity from None."""
    if attention is None:
        return NoAttention()
    sizes = dict(
        in_channels=in_channels,
        out_channels=out_channels,
        depthwise=depthwise,
    )
    return MODELS.build({**attention, **sizes})
