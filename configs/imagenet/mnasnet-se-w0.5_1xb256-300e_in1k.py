# Table 3 of arXiv:2103.13080, MnasNet x0.5 SE.
_base_ = [
    '../_base_/models/mnasnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/runtime/classification_runtime.py',
]

model = dict(
    backbone=dict(widen_factor=0.5, attention=dict(type='sb_mm.SqueezeExcite'))
)
