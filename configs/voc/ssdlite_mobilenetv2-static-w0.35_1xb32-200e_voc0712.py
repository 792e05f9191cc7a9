# Table 4 of arXiv:2103.13080, SSD-MobileNetV2 x0.35 static.
_base_ = '../ssd_sb_voc.py'

# Level 1 has 6 * make_divisible(96 * 0.35) = 192 channels.
model = dict(
    backbone=dict(
        type='sb_mm.AttentionMobileNetV2',
        widen_factor=0.35,
    ),
    neck=dict(in_channels=(192, 1280)),
    bbox_head=dict(in_channels=(192, 1280, 512, 256, 256, 64)),
)
