# The same training as mobilenetv2-sb-w0.35_1xb128-200e_cifar10.py with all
# images on the device: an example for configs of your own.
_base_ = [
    '../_base_/models/mobilenetv2_cifar.py',
    '../_base_/datasets/cifar10_on_device.py',
    '../_base_/schedules/cifar10_200e.py',
    '../_base_/runtime/classification_runtime.py',
]

model = dict(
    backbone=dict(widen_factor=0.35, attention=dict(type='sb_mm.ShiftBalance'))
)
# Without it, a resume draws the first epochs' crops again, and several
# processes draw the same ones.
custom_hooks = [dict(type='sb_mm.EpochSeedHook')]
